"""The fast path of the shipped network equals the unmodified TFT on windows of every kind of series."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch

from apps.finance.app import app
from apps.finance.datasets.synth import markets
from apps.finance.datasets.synth.shapes import SHAPES
from apps.finance.datasets.windows import windows_of
from apps.finance.models.fast import accelerate
from apps.finance.models.stored import stored_settings
from apps.finance.models.tft import Forecaster, build_tft, dense, tft_inputs
from shared.deploy.onnx_network import write_onnx
from shared.deploy.registry import shipped

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
EXACT = 1e-6
"""The maximum difference relative to the largest output; 6.3e-7 was measured on one thread with AVX2."""


def test_the_shipped_weights_forecast_the_same_on_the_fast_path_as_in_the_library():
    artifact = shipped(app)[0]
    settings, input = stored_settings(artifact.recipe()["recipe"])
    weights = {name.removeprefix("tft."): value for name, value in artifact.weights().items()}
    original = build_tft(settings, input).eval()
    original.load_state_dict(weights)
    fast = accelerate(build_tft(settings, input), context=input.context, horizon=input.horizon)
    fast.load_state_dict(weights)
    ours = Forecaster(fast, context=input.context, horizon=input.horizon, fast=True).eval()
    for number, shape in enumerate(sorted(SHAPES)):
        series = markets.series(np.random.Generator(np.random.Philox(number)), length=400, shape=shape).series
        windows = windows_of([series], context=input.context, horizon=input.horizon)
        batch = windows.batch(np.arange(0, len(windows), 11), None)
        inputs = [batch[name] for name in ("encoder_cont", "decoder_cont", "static")]
        with torch.no_grad():
            expected, found = original(tft_inputs(*inputs))["prediction"], ours.raw(*inputs)
        assert float((found - expected).abs().max()) < EXACT * max(1.0, float(expected.abs().max())), shape


def test_the_network_is_exported_in_seconds(tmp_path, monkeypatch):
    """By tracing: torch.export takes twenty times as long. The file takes other batches than the example."""
    monkeypatch.setattr(torch.export, "export", None)
    settings, input = stored_settings(shipped(app)[0].recipe()["recipe"])
    input = replace(input, context=12)
    model = Forecaster(
        accelerate(build_tft(settings, input), context=input.context, horizon=input.horizon),
        context=input.context,
        horizon=input.horizon,
        fast=True,
    )
    network = dense(model.eval())
    write_onnx(network, tmp_path / "model.onnx")
    inputs = {name: torch.randn(5, *example.shape[1:]) for name, example in network.inputs.items()}
    feeds = {name: value.numpy() for name, value in inputs.items()}
    (found,) = ort.InferenceSession(tmp_path / "model.onnx").run(None, feeds)
    with torch.no_grad():
        np.testing.assert_allclose(found, network.module(*inputs.values()), rtol=1e-4, atol=1e-5)
