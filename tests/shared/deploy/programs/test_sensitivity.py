"""The layers that cause most of a quantised network's output error are found and left in floating point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared.app import DenseNetwork
from shared.deploy import sensitivity
from shared.deploy.int8_network import SMOOTHING_ALPHA, layer_names, quantise, read_network, with_floating_point_layer
from shared.deploy.onnx_network import write_onnx
from shared.deploy.programs.openvino import compile_in_memory, openvino_compute
from shared.deploy.programs.program import Placement
from shared.deploy.sensitivity import Evaluator, SearchBudget, find_candidates, output_error

pytestmark = pytest.mark.filterwarnings("ignore")


class Glaring(nn.Module):
    """Maps an image (B, 1, 16, 16) to logits; pixels above 1 become a thousand times as bright before the third layer.

    The range of that layer's input is then so wide that all other pixels fall into one of 256 levels. Before the fourth
    layer the brightness is clamped again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.apart, self.joined = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)
        self.smooth, self.judged = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in (self.smooth, self.judged):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            self.apart.weight.copy_(torch.tensor([1.0, 1000.0]).view(2, 1, 1, 1))
            assert self.apart.bias is not None and self.joined.bias is not None
            self.apart.bias.copy_(torch.tensor([0.0, -1000.0]))
            self.joined.weight.fill_(1.0)
            self.joined.bias.zero_()

    def forward(self, image: Tensor) -> Tensor:
        bright = torch.relu(self.joined(torch.relu(self.apart(image))))
        logits: Tensor = self.judged(torch.clamp(self.smooth(bright), 0, 1))
        return logits


def dense() -> DenseNetwork:
    torch.manual_seed(0)
    return dense_of(Glaring().eval())


def dense_of(network: nn.Module) -> DenseNetwork:
    inputs = {"image": torch.rand(2, 1, 16, 16)}
    return DenseNetwork(module=network, inputs=inputs, outputs=("logits",), logits=("logits",), traceable=True)


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    images = random.random((count, 1, 1, 16, 16)).astype(np.float32)
    images[:, 0, 0, 3, 3] = 2.0
    return [{"image": image} for image in images]


def run(model: Any) -> Any:
    return openvino_compute(compile_in_memory(model, "fp32", Placement("cpu", 1))).arrays


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(dense(), path)
    return read_network(path)


def test_a_layer_that_ruins_the_output_is_left_in_floating_point(model: Any) -> None:
    holdout = rows(4, seed=1)
    evaluator = Evaluator(holdout, [run(model)(row) for row in holdout], ("logits",), run)
    lines: list[str] = []
    found = next(
        find_candidates(model, rows(12, seed=0), evaluator, budgets=(SearchBudget(1e6, 0.05),), report=lines.append)
    )
    all_layers = layer_names(model)
    assert len(all_layers) == 4 and all_layers[2] in found.floating
    assert all_layers[3] not in found.floating, "what comes after the brightness is limited does no harm"
    fully_quantised = evaluator.evaluate(
        quantise(model, rows(12, seed=0), smoothing=found.smoothing), found.smoothing, ()
    )
    assert found.error < 0.2 * fully_quantised.error and found.error < 0.1
    assert any(f"with {all_layers[2]} in floating point: error of the outputs" in line for line in lines)
    types = {
        node.get_friendly_name(): node.input_value(0).get_node().get_type_name()
        for node in found.model.get_ordered_ops()
        if node.get_friendly_name() in all_layers
    }
    assert [name for name in all_layers if types[name] != "FakeQuantize"] == sorted(
        found.floating, key=all_layers.index
    )


def test_biases_that_cannot_be_corrected_are_kept(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, correct_biases: bool = True, **options: Any) -> Any:
        if correct_biases:
            raise KeyError("node_conv3d_12")
        return quantise(*args, correct_biases=False, **options)

    monkeypatch.setattr(sensitivity, "quantise", failing)
    holdout, lines = rows(4, seed=1), []
    evaluator = Evaluator(holdout, [run(model)(row) for row in holdout], ("logits",), run)
    found = next(
        find_candidates(model, rows(12, seed=0), evaluator, budgets=(SearchBudget(1e6, 0.05),), report=lines.append)
    )
    assert found.floating and found.error < 0.1
    assert any("NNCF cannot correct the biases" in line for line in lines)


def test_no_layer_is_left_in_floating_point_beyond_the_time_budget(model: Any) -> None:
    holdout = rows(4, seed=1)
    evaluator = Evaluator(holdout, [run(model)(row) for row in holdout], ("logits",), run)
    found = list(find_candidates(model, rows(12, seed=0), evaluator, budgets=(SearchBudget(-1.0, 0.05),)))
    assert len(found) == 1 and found[0].floating == () and found[0].floating_layers == "nothing"


def test_the_quantisation_of_a_layer_is_undone_in_a_copy(model: Any) -> None:
    quantised = quantise(model, rows(8, seed=0), smoothing=SMOOTHING_ALPHA, correct_biases=False)
    expected = [run(model)(row) for row in rows(2, seed=1)]

    def error(candidate: Any) -> float:
        return output_error(expected, [run(candidate)(row) for row in rows(2, seed=1)], ("logits",))

    before = error(quantised)
    ruined = layer_names(model)[2]
    assert error(with_floating_point_layer(quantised, ruined)) < 0.5 * before
    assert error(quantised) == before


class Unequal(nn.Module):
    """Maps an image (B, 1, 16, 16) to logits through channels, one of which is 300 times as large as the others."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            self.first.weight[0] *= 300
            self.second.weight[:, 0] /= 300

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.second(torch.relu(self.first(image)))
        return logits


class Joined(Unequal):
    """The same with the concatenated channels of two layers, one of them a deconvolution, as in a neck."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.ConvTranspose2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(16, 2, 3, padding=1)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for layer in (self.beside, self.second):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            self.beside.weight[:, 3] *= 100
            self.second.weight[:, 0] /= 300
            self.second.weight[:, 11] /= 100

    def forward(self, image: Tensor) -> Tensor:
        both = torch.cat([torch.relu(self.first(image)), torch.relu(self.beside(image))], dim=1)
        logits: Tensor = self.second(both)
        return logits


@pytest.mark.parametrize("kind", [Unequal, Joined])
def test_smoothing_of_unequal_channels_is_folded_into_layers(kind: type[nn.Module], tmp_path: Path) -> None:
    network = kind().eval()
    write_onnx(dense_of(network), tmp_path / "model.onnx")
    model = read_network(tmp_path / "model.onnx")
    images = [{"image": row["image"] / 2} for row in rows(8, seed=0)]
    expected = [run(model)(image) for image in images]
    errors = {}
    for smoothing in (None, SMOOTHING_ALPHA):
        quantised = quantise(model, images, smoothing=smoothing)
        errors[smoothing] = output_error(expected, [run(quantised)(image) for image in images], ("logits",))
    smoothed = [
        operation for operation in quantised.get_ordered_ops() if "smooth_quant" in operation.get_friendly_name()
    ]
    behind = [
        operation.input_value(0).get_node().get_type_name()
        for operation in smoothed
        if operation.get_type_name() == "Multiply"
    ]
    assert not {"Relu", "Concat"} & {*behind}, "the factors have gone into the layers before"
    assert errors[SMOOTHING_ALPHA] < 0.5 * errors[None]


class Shared(Unequal):
    """Two images through one shared layer, like the levels of a pyramid through one head, then separate layers."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(8, 2, 3, padding=1)
        with torch.no_grad():
            self.other.weight[:, 0] /= 300

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.second(torch.relu(self.first(image))) + self.other(torch.relu(self.first(image.flip(2))))
        return logits


def test_weights_shared_by_two_layers_are_not_scaled_for_one(tmp_path: Path) -> None:
    write_onnx(dense_of(Shared().eval()), tmp_path / "model.onnx")
    model = read_network(tmp_path / "model.onnx")
    images = [{"image": row["image"] / 2} for row in rows(8, seed=0)]
    expected = [run(model)(image) for image in images]
    quantised = quantise(model, images, smoothing=SMOOTHING_ALPHA)
    assert output_error(expected, [run(quantised)(image) for image in images], ("logits",)) < 0.1


def test_the_error_is_weighted_by_scores() -> None:
    logits = np.full((1, 2, 8, 8), -12.0, np.float32)
    logits[0, :, 2, 2] = 3.0
    boxes = np.random.default_rng(0).normal(size=(1, 6, 8, 8)).astype(np.float32)
    boxes[0, :, 3, 3], logits[0, 0, 3, 3] = -boxes[0, :, 2, 2], 2.0
    expected = [{"logits_0": logits, "boxes_0": boxes}]
    elsewhere, there, cold = boxes.copy(), boxes.copy(), logits.copy()
    elsewhere[0, :, 6, 6] += 5.0
    there[0, :, 2, 2] += 5.0
    cold[logits < -10] = -300.0
    names = ("logits_0",)
    assert output_error(expected, [{"logits_0": logits, "boxes_0": elsewhere}], names) < 0.01
    assert output_error(expected, [{"logits_0": logits, "boxes_0": there}], names) > 0.5
    assert output_error(expected, [{"logits_0": cold, "boxes_0": boxes}], names) < 0.01
    missed = logits.copy()
    missed[0, :, 2, 2] = -3.0
    assert output_error(expected, [{"logits_0": missed, "boxes_0": boxes}], names) > 0.3
    shifted = [{"value": np.arange(8.0)[:, None] + 0.5}]
    spread = float(np.arange(8.0).std())
    assert output_error([{"value": np.arange(8.0)[:, None]}], shifted, ()) == pytest.approx(0.5 / spread)
