"""The network, its fast path and its windows: equal to the library, causal, independent of units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from apps.finance.datasets.synth import markets
from apps.finance.datasets.synth.faults import FAULTS
from apps.finance.datasets.synth.shapes import SHAPES
from apps.finance.datasets.windows import COLUMNS, Windows, covariate_table, windows_of
from apps.finance.inference.forecasting import forecast, normal_scores
from apps.finance.inference.scoring import Calibration, score
from apps.finance.models.fast import Resize, accelerate, resize_matrix
from apps.finance.models.settings import FinanceModel, ProgramForecaster
from apps.finance.models.tft import Forecaster, build_tft, tft_inputs
from apps.finance.recipes import tiny
from apps.finance.types import MINUTE_NS, QUANTILES, FinanceInput, Series
from shared.data.order import Key
from shared.deploy.programs.program import ArrayCompute, Arrays, Program

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
INPUT = FinanceInput(context=24, horizon=4)
SMALL = FinanceModel(name="test", hidden=8, hidden_continuous=4, heads=2)


def synthetic_series(index: int, length: int = 300, shape: str | None = None) -> Series:
    return markets.series(np.random.Generator(np.random.Philox(index)), length=length, shape=shape).series


def batch(count: int = 6) -> list[torch.Tensor]:
    windows = windows_of([synthetic_series(1), synthetic_series(2)], context=24, horizon=4)
    found = windows.batch(np.arange(count) * 7, None)
    return [found[name] for name in ("encoder_cont", "decoder_cont", "static")]


@pytest.mark.parametrize(("size_in", "size_out"), [(8, 16), (16, 8), (4, 7), (8, 1), (1, 5), (11, 11)])
def test_the_resize_as_a_product_equals_interpolation(size_in, size_out):
    x = torch.randn(5, 3, size_in)
    expected = functional.interpolate(x.reshape(-1, 1, size_in), size_out, mode="linear", align_corners=True)
    torch.testing.assert_close(Resize(size_in, size_out)(x), expected.reshape(5, 3, size_out), atol=5e-7, rtol=1e-6)
    assert resize_matrix(size_in, size_out).shape == (size_in, size_out)


@pytest.mark.parametrize(("hidden", "continuous"), [(8, 4), (8, 8), (16, 8)])
def test_the_fast_path_equals_the_unmodified_tft(hidden, continuous):
    settings_ = FinanceModel(name="t", hidden=hidden, hidden_continuous=continuous, heads=2, dropout=0.0)
    torch.manual_seed(3)
    original = build_tft(settings_, INPUT)
    fast = accelerate(build_tft(settings_, INPUT), context=24, horizon=4)
    assert original.state_dict().keys() == fast.state_dict().keys()
    fast.load_state_dict(original.state_dict())
    ours = Forecaster(fast, context=24, horizon=4, fast=True)
    inputs = batch()
    expected = original(tft_inputs(*inputs))["prediction"]
    found = ours.raw(*inputs)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    # The gradients are equal, so both learn the same.
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    gradients = dict(fast.named_parameters())
    for name, parameter in original.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=2e-4, rtol=1e-3, msg=name)


def test_quantiles_increase_and_have_the_documented_shape():
    model = SMALL.build(INPUT).eval()
    quantiles = model(*batch())
    assert quantiles.shape == (6, 4, len(QUANTILES))
    assert bool((quantiles.diff(dim=-1) >= 0).all())


def test_windows_do_not_depend_on_unit_and_level():
    first_series = synthetic_series(5, shape="utilisation")
    scaled_series = Series(
        name="b",
        times_ns=first_series.times_ns,
        values={"value": first_series.target * 1e4 - 3e5},
        column="value",
        interval_ns=first_series.interval_ns,
    )
    first, second = (
        windows_of([series], context=24, horizon=4).batch(np.arange(0, 200, 9), None)
        for series in (first_series, scaled_series)
    )
    for name in ("encoder_cont", "decoder_cont", "target"):
        torch.testing.assert_close(first[name], second[name], atol=2e-4, rtol=1e-3)


def test_no_covariate_of_the_forecast_rows_holds_their_values():
    windows = windows_of([synthetic_series(4)], context=24, horizon=4)
    found = windows.batch(np.arange(50), None)
    assert float(found["decoder_cont"][:, :, :2].abs().max()) == 0
    assert len(COLUMNS) == found["encoder_cont"].shape[2]


@settings(max_examples=12)
@given(st.integers(0, 1000), st.integers(60, 290), st.sampled_from(["price", "counts", "plateau", "sensor"]))
def test_forecast_and_score_do_not_look_ahead(seed, cut, shape):
    series = synthetic_series(seed, 300, shape)
    changed = series.target.copy()
    changed[cut:] = changed[cut:] * -3 + 1000
    changed_series = Series(
        name="b", times_ns=series.times_ns, values={"value": changed}, column="value", interval_ns=series.interval_ns
    )
    before, after = forecast(_MODEL, [series, changed_series], stride=2)
    # The band of a row uses only earlier rows; its surprise and score also use the row itself, but no later rows.
    np.testing.assert_array_equal(before.quantiles[:cut], after.quantiles[:cut])
    np.testing.assert_array_equal(before.surprise[:cut], after.surprise[:cut])
    calibration = Calibration()
    np.testing.assert_allclose(score(series, calibration)[:cut], score(changed_series, calibration)[:cut], atol=1e-9)


torch.manual_seed(0)
_MODEL = SMALL.build(INPUT).eval()


def test_every_row_after_the_first_few_is_forecast():
    made_ = forecast(_MODEL, [synthetic_series(9, 301)], stride=2)[0]
    assert made_.quantiles.shape == (301, len(QUANTILES)) and made_.surprise.shape == (301, 2)
    assert np.isfinite(made_.quantiles[16:]).all() and np.isfinite(made_.surprise[20:]).all()


def test_a_batch_gives_the_same_results_as_single_series():
    series = [synthetic_series(1), synthetic_series(2, 180)]
    together = forecast(_MODEL, series, stride=4)
    for single_series, expected in zip(series, together, strict=True):
        np.testing.assert_allclose(
            forecast(_MODEL, [single_series], stride=4, batch=7)[0].quantiles, expected.quantiles, rtol=1e-4, atol=1e-4
        )


def test_short_series_share_a_programs_batches():
    """A program computes whole batches: one for each series of 100 rows would take six times as long."""
    calls: list[int] = []

    def compute(windows: Arrays) -> dict[str, NDArray[Any]]:
        calls.append(len(windows["static"]))
        levels = windows["static"][:, :1, None] + np.arange(len(QUANTILES), dtype=np.float32)
        return {"quantiles": np.repeat(levels, INPUT.horizon, axis=1)}

    program = Program(name="counting", compute=ArrayCompute(compute))
    model = ProgramForecaster(program=program, context=INPUT.context, horizon=INPUT.horizon)
    series = [synthetic_series(number, length) for number, length in enumerate((100, 90, 300, 3000, 61, 110))]
    series[4].target[:20] = np.nan
    alone = [forecast(model, [item], stride=2)[0] for item in series]
    assert len(calls) == 11
    calls.clear()
    for expected, found in zip(alone, forecast(model, series, stride=2), strict=True):
        np.testing.assert_array_equal(found.quantiles, expected.quantiles)
        np.testing.assert_array_equal(found.surprise, expected.surprise)
    assert calls[0] == sum(len(range(16, length, 2)) for length in (100, 90, 300)) and len(calls) == 8


def test_missing_values_and_constants_give_finite_forecasts():
    values = np.full(200, 5.0)
    values[50:70] = np.nan
    times = np.arange(200, dtype=np.int64) * MINUTE_NS
    series = Series(name="c", times_ns=times, values={"v": values}, column="v", interval_ns=MINUTE_NS)
    found = forecast(_MODEL, [series], stride=4)[0]
    assert np.isfinite(found.quantiles[24:]).all()
    assert np.isnan(found.surprise[50:70]).all() and np.isfinite(found.surprise[80:]).all()
    assert float(score(series, Calibration()).max()) < 0.3


def test_normal_scores_of_a_normal_distribution():
    z = np.array([-2.0537489, -1.2815516, -0.6744898, 0.0, 0.6744898, 1.2815516, 2.0537489])
    values = np.array([-4.0, -2.0537489, -1.0, 0.0, 0.5, 2.0537489, 4.0])
    found = normal_scores(10 + 2 * values, np.broadcast_to(10 + 2 * z, (7, 7)))
    np.testing.assert_allclose(found, values, atol=1e-6)


def test_augmentation_is_a_function_of_seed_epoch_and_index():
    windows = Windows([covariate_table(synthetic_series(3), context=24, horizon=4)], context=24, horizon=4)
    indices = np.array([5, 60, 7, 200])
    first = windows.batch(indices, Key(seed=1, epoch=2))
    reversed_batch = windows.batch(indices[::-1].copy(), Key(seed=1, epoch=2))
    next_epoch = windows.batch(indices, Key(seed=1, epoch=3))
    torch.testing.assert_close(first["encoder_cont"], reversed_batch["encoder_cont"].flip(0))
    assert not torch.equal(first["encoder_cont"], next_epoch["encoder_cont"])
    assert torch.equal(windows.batch(indices, None)["target"], windows.batch(indices, None)["target"])


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_synthetic_series_are_the_same_again_and_finite(shape):
    first, second = (
        markets.series(np.random.Generator(np.random.Philox(7)), length=500, shape=shape) for _ in range(2)
    )
    np.testing.assert_array_equal(first.series.target, second.series.target)
    assert first.windows == second.windows
    assert np.isfinite(first.series.target).all() and (np.diff(first.series.times_ns) > 0).all()


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_faults_do_not_change_earlier_rows(kind):
    generator = np.random.Generator(np.random.Philox(11))
    values = SHAPES["utilisation"](generator, np.arange(600, dtype=np.int64) * MINUTE_NS)
    changed, end = FAULTS[kind](generator, values, 400, 40, 12.0)
    np.testing.assert_array_equal(changed[:400], values[:400])
    assert 400 <= end < 600 and (changed[400 : end + 1] != values[400 : end + 1]).any()


def test_the_market_has_consistent_bars_and_four_labelled_events():
    found = markets.market(np.random.Generator(np.random.Philox(1)))
    bars = found.series.values
    assert (bars["high"] >= np.maximum(bars["open"], bars["close"])).all()
    assert (bars["low"] <= np.minimum(bars["open"], bars["close"])).all()
    assert [window.kind for window in found.windows] == ["pump_and_dump", "jump", "volatility_burst", "halt"]


def test_the_tiny_recipe_learns():
    recipe = tiny()
    task, data = recipe.task.build(), recipe.data.train(recipe.input)
    torch.manual_seed(0)
    model = recipe.model.build(recipe.input)
    optimizer = recipe.optimizer.build(model)
    losses = []
    indices = np.arange(0, len(data), len(data) // 32)[:32]
    for _ in range(80):
        loss = task.loss(model, data.batch(indices, None)).mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    scores = task.scores()
    with torch.no_grad():
        task.evaluate(model.eval(), data.batch(np.arange(64), None), scores)
    assert set(scores.summary()) == {"loss", "mae", "coverage_80", "coverage_96"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_works_on_every_cpu(dtype):
    model, inputs = SMALL.build(INPUT).eval(), batch()
    with torch.autocast("cpu", dtype=dtype):
        found = model.raw(*inputs)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found.float(), model.raw(*inputs), atol=0.05, rtol=0.05)
