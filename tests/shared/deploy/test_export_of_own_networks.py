"""What the network of a user's application must be to be exported, and how one that ONNX cannot express is served."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import trivium
from shared.deploy.onnx_network import write_onnx
from tests.shared.engine import line
from tests.shared.line_app import make_app

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Module(nn.Module):
    """A linear layer whose output goes through ``after(y, x)``."""

    def __init__(self, after):
        super().__init__()
        self.layer, self.after = nn.Linear(2, 2), after

    def forward(self, x):
        return self.after(self.layer(x.float()), x)


def dense(after, x=None, outputs=("y",), **settings):
    return trivium.DenseNetwork(
        module=Module(after), inputs={"x": torch.rand(2, 2) if x is None else x}, outputs=outputs, **settings
    )


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (dense(lambda y, x: OrderedDict(y=y)), "returns an object of type OrderedDict, not a tensor or a tuple of ten"),
        (dense(lambda y, x: (y, x)), r"returns 2 tensors, and DenseNetwork names 1 outputs \(y\)"),
        (dense(lambda y, x: y, outputs=("y", "z")), r"returns 1 tensors, and DenseNetwork names 2 outputs \(y, z\)"),
        (dense(lambda y, x: y.mean()), r"y has the shape \(\) and no axis 0, which should be dynamic"),
        (dense(lambda y, x: y.to(torch.complex64)), r"y is a tensor of torch\.complex64, which cannot be served"),
        (dense(lambda y, x: y if y.sum() > 0 else x), r"torch cannot export the network as ONNX: .+ has_onnx=False"),
    ],
    ids=["mapping", "more outputs", "fewer outputs", "scalar", "complex", "control flow"],
)
def test_a_network_that_is_not_as_described_is_refused_with_what_differs(tmp_path, network, message):
    with pytest.raises(trivium.InvalidInputError, match=message):
        write_onnx(network, tmp_path / "model.onnx")


def refuse_torch_export(*arguments, **settings):
    raise AssertionError("torch.export is used")


def test_a_traceable_network_is_exported_without_torch_export(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.export, "export", refuse_torch_export)
    network = dense(lambda y, x: y * x.shape[0], traceable=True)
    write_onnx(network, tmp_path / "model.onnx")
    x = torch.rand(5, 2)
    found = ort.InferenceSession(tmp_path / "model.onnx").run(["y"], {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, network.module(x).detach(), rtol=1e-5)


def test_a_batch_is_not_made_larger_than_the_example_for_the_comparison(tmp_path):
    """The example may fill the memory: a batch of another size is its first row."""
    sizes = []
    network = dense(lambda y, x: y if torch.jit.is_tracing() else sizes.append(len(x)) or y, traceable=True)
    write_onnx(network, tmp_path / "model.onnx")
    assert sizes == [2, 1]


def test_a_trace_that_fixes_a_size_is_not_kept(tmp_path):
    network = dense(lambda y, x: y * int(x.shape[0]), traceable=True)
    with pytest.raises(ArithmeticError, match=r"axis 0 of x was exported as \[2, 2\], not as dynamic"):
        write_onnx(network, tmp_path / "model.onnx")  # torch.export, which is tried next, fixes the input's size


def test_images_in_bytes_and_decisions_are_exported_with_their_types(tmp_path):
    pixels = torch.tensor([[1, 200], [7, 90]], dtype=torch.uint8)
    outputs = write_onnx(
        dense(lambda y, x: (y > 0, y.argmax(1), x + 1), pixels, ("sure", "class", "next")), tmp_path / "model.onnx"
    )
    assert [value.dtype for value in outputs.values()] == [torch.bool, torch.int64, torch.uint8]
    doubles = dense(lambda y, x: x * 2, torch.rand(2, 2, dtype=torch.float64))
    assert write_onnx(doubles, tmp_path / "doubles.onnx")["y"].dtype == torch.float64


class Branching(nn.Module):
    """A network that ONNX cannot express."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


class Network(line.Network):
    def build(self, input=None):
        return Branching()


class Predictor:
    def __init__(self, app, artifact, device):
        self.network = trivium.open_network(app, artifact, device)
        self.programs = {"line": self.network}

    def predict(self, batch, options=None):
        return self.network.arrays({"x": np.float32(batch)})["y"][:, 0].tolist()


def test_a_network_without_onnx_is_exported_and_computed_by_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def describe(recipe, model):
        return trivium.DenseNetwork(module=model, inputs={"x": torch.rand(2, 2)}, outputs=("y",), has_onnx=False)

    recipe = replace(line.recipe(steps=4), model=Network())
    app = make_app(tmp_path / "line", dense=describe, recipes=lambda: {"line": lambda: recipe})
    app = replace(app, predictor=lambda artifacts, device: Predictor(app, artifacts[0], device))
    trivium.fit(recipe, trivium.Run(tmp_path / "run", "line", "line"), device="cpu", quiet=True)
    artifact = trivium.export(tmp_path / "run", tmp_path / "models", app=app)
    assert "has_onnx" in artifact.manifest.training["without_onnx"] and not Path(artifact.path / "model.onnx").exists()
    model = trivium.load(app, artifact=artifact.path, device="cpu")
    assert model.predictor.network.name.startswith("torch")
    network = Branching()
    network.load_state_dict(trivium.read_weights(artifact.path))
    expected = network(torch.tensor([[1.0, 2.0]])).item()
    assert model.predict((1.0, 2.0)) == pytest.approx(expected, abs=0.05)  # the program may compute in bf16


def test_a_run_whose_score_was_never_finite_is_told_so(tmp_path):
    class Broken(line.Regression):
        def evaluate(self, model, batch, scores):
            scores.total, scores.count = float("nan"), 1

    line.train(tmp_path / "run", Broken, steps=4)
    app = make_app(tmp_path / "line", recipes=lambda: {"line": lambda: line.recipe(Broken)})
    with pytest.raises(trivium.InvalidInputError, match=r"monitor of .* was not a finite number in any of its"):
        trivium.export(tmp_path / "run", tmp_path / "models", app=app)
