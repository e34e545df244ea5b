"""The fast path of the shipped network equals the unmodified TFT on windows of every kind of series."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apps.finance.app import app
from apps.finance.datasets.synth import markets
from apps.finance.datasets.synth.shapes import SHAPES
from apps.finance.datasets.windows import windows_of
from apps.finance.models.fast import accelerate
from apps.finance.models.stored import stored_settings
from apps.finance.models.tft import Forecaster, build_tft, tft_inputs
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
