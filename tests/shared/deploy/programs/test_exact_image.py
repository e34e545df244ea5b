"""A bf16 network gets a one-channel image without rounding to eight bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.deploy.programs.exact_image import with_exact_image
from shared.deploy.programs.openvino import OpenVino, compile_model
from shared.deploy.programs.program import Placement
from shared.precision import cpu_has_bf16

openvino = pytest.importorskip("openvino")

CHANNELS = 16


def network(channels: int) -> Any:
    """One layer with arbitrary weights, and one whose weights are exact in bf16."""
    from openvino import opset13 as op

    random = np.random.default_rng(0)
    image = op.parameter([-1, channels, -1, -1, -1], np.float32)
    image.get_output_tensor(0).set_names({"image"})
    ones, pads = [1, 1, 1], [1, 1, 1]
    feature_map: Any = image
    first = random.normal(0, 1 / np.sqrt(27 * channels), (CHANNELS, channels, 3, 3, 3))
    for weights in (first.astype(np.float32), np.full((1, CHANNELS, 3, 3, 3), 1 / 32, np.float32)):
        feature_map = op.relu(op.convolution(feature_map, op.constant(weights), ones, pads, pads, ones))
    result = op.result(feature_map)
    result.get_output_tensor(0).set_names({"found"})
    return openvino.Model([result], [image], "network")


def computed(model: Any, precision: str, image: np.ndarray) -> np.ndarray:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return np.array(compiled([image])[0])


def test_fp32_outputs_are_unchanged() -> None:
    image = np.random.default_rng(1).random((1, 1, 12, 12, 12), np.float32)
    exact = computed(network(1), "f32", image)
    np.testing.assert_allclose(computed(with_exact_image(network(1)), "f32", image), exact, rtol=0, atol=2e-5)


@pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU does not compute in bf16")
def test_the_bf16_error_is_halved(tmp_path: Path) -> None:
    image = 0.5 + np.random.default_rng(1).random((1, 1, 24, 24, 24), np.float32) / 2
    exact, plain = (computed(network(1), precision, image) for precision in ("f32", "bf16"))
    file = tmp_path / "network.xml"
    openvino.save_model(network(1), file, compress_to_fp16=False)
    found = compile_model(file, "bf16", Placement("cpu", 1))([image])[0]
    errors = [np.sqrt(np.mean((output - exact) ** 2)) for output in (found, plain)]
    assert errors[0] < errors[1] / 2, errors
    assert "bf16" in OpenVino.formats


def test_images_of_several_channels_are_unchanged() -> None:
    kinds = [node.get_type_name() for node in with_exact_image(network(3)).get_ops()]
    assert kinds == [node.get_type_name() for node in network(3).get_ops()] and "Floor" not in kinds
