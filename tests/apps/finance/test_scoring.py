"""Tail probabilities: ranks among earlier values, a fitted tail beyond them, and each disturbance counted once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.finance.datasets.synth.markets import market
from apps.finance.inference.detectors import CANDIDATES, DETECTORS
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.low_volatility import low_volatility
from apps.finance.inference.detectors.ranked import tabulate_prior
from apps.finance.inference.scoring import Calibration, combine, improbability
from apps.finance.inference.trial import changes_over_deviation, price_with_a_tick, run_trial
from apps.finance.metrics.quantile_loss import quantile_loss
from apps.finance.types import MINUTE_NS, Forecast, Series

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)


def scored(values: np.ndarray, deviation: float) -> tuple[Series, Forecast]:
    """A series with persistence as its forecast."""
    times = np.arange(len(values), dtype=np.int64) * MINUTE_NS
    series = Series(name="s", times_ns=times, values={"v": values}, column="v", interval_ns=MINUTE_NS)
    before = np.concatenate([values[:1], values[:-1]])
    bands = before[:, None] + deviation * np.linspace(-2, 2, 7)
    surprise = ((values - before) / deviation)[:, None]
    return series, Forecast(levels=LEVELS, quantiles=bands, surprise=surprise)


def walk(seed: int, length: int = 2000) -> np.ndarray:
    return 100 + 0.1 * np.random.default_rng(seed).standard_normal(length).cumsum()


def test_a_rows_probability_follows_its_rank_and_a_tail_beyond_the_maximum():
    values = walk(0)
    values[1500:] += 0.35  # near the edge of the earlier values
    values[1700:] += 3.0
    found = CANDIDATES["surprise"].score(ForecastedSeries(*scored(values, 0.1)))
    # 0.35 is 3.5 deviations: about one row in 2,000 of a normal distribution, up to the noise of one row.
    assert 2.0 < found[1500] < 5.0
    assert found[1700] > found[1500] + 3
    ordinary = found[400:1500]
    for level in (1, 2):
        assert np.mean(ordinary >= level) == pytest.approx(10.0**-level, rel=0.9)


@settings(max_examples=30)
@given(st.integers(0, 99), st.floats(0.01, 1000))
def test_scores_do_not_depend_on_the_unit(seed, unit):
    values = walk(seed, 700)
    usual = improbability(*scored(values, 0.1), Calibration())
    scaled_scores = improbability(*scored(values * unit, 0.1 * unit), Calibration())
    for name in DETECTORS:
        np.testing.assert_allclose(usual[name], scaled_scores[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("unit", [1e-21, 1e-13, 1e-10, 1e-6, 1e12])
def test_scores_of_a_tokens_price_do_not_depend_on_its_unit(unit):
    """Prices of 1e-11 to 1e-8 are usual for tokens quoted in bitcoin; a first row without a value, or of 0, is none."""
    values = walk(5, 900)
    values[:3], values[700] = (np.nan, 0, 0), values[700] * 1.3
    usual = improbability(*scored(values, 0.1), Calibration())
    found = improbability(*scored(values * unit, 0.1 * unit), Calibration())
    assert max(usual[name][700] for name in DETECTORS) > 3
    for name in DETECTORS:
        np.testing.assert_allclose(found[name], usual[name], atol=1e-6, err_msg=name)


def test_one_disturbance_does_not_hide_the_next():
    values = walk(1, 4000)
    burst = np.random.default_rng(2).standard_normal(60).cumsum()
    for first in (1500, 3000):
        values[first : first + 60] += burst - np.linspace(0, burst[-1], 60)
    volatile = improbability(*scored(values, 0.1), Calibration())["high_volatility"]
    # The 48 rows of the first burst count as one disturbance, not as 48.
    assert volatile[1500:1560].max() > 4 and volatile[3000:3060].max() > 2.5


def test_an_event_is_not_compared_with_its_own_beginning():
    values = walk(3)
    values[1000:1100] = values[999]
    values[1100:] += values[999] - values[1100]
    calm = improbability(*scored(values, 0.1), Calibration())["low_volatility"]
    assert calm[1012:1100].min() > 3


def test_a_prior_of_volatile_series_lowers_scores_of_a_short_history():
    series, forecast = scored(walk(4, 400), 0.1)
    loud = {name: tabulate_prior(20 * np.abs(np.random.default_rng(5).standard_cauchy(9999))) for name in DETECTORS}
    alone = combine(improbability(series, forecast, Calibration()))
    tempered = combine(improbability(series, forecast, Calibration(prior=loud)))
    assert tempered.max() < alone.max() and ((tempered >= 0) & (tempered <= 1)).all()


def test_a_value_off_its_forecast_counts_if_the_calibration_says_so():
    """As with covariates: the value is within its usual range, but far from its forecast."""
    series, forecast = scored(walk(9), 0.1)
    off = forecast.surprise.copy()
    off[1500] = 9.0
    forecast = replace(forecast, surprise=off)
    found = {}
    for by_forecast in (False, True):
        calibration = Calibration(by_forecast=by_forecast)
        channels = improbability(series, forecast, calibration)
        assert ("surprise" in channels) is by_forecast
        found[by_forecast] = combine(channels, alone=calibration.alone)
    assert found[True][1500] == pytest.approx(channels["surprise"][1500] / 5) and found[True][1500] > 0.9
    assert found[False][1500] < 0.5 and (found[True] >= found[False]).all()


def test_regularly_constant_series_get_no_low_volatility():
    values = walk(6)
    for first in range(100, 2000, 60):
        values[first : first + 30] = values[first]
    calm = low_volatility(ForecastedSeries(*scored(values, 0.1)), 8000)
    assert np.isnan(calm[300:]).all()


def test_the_peer_of_the_trial_finds_a_bad_print_and_the_trial_counts_it():
    items = [price_with_a_tick(np.random.Generator(np.random.Philox(seed))) for seed in range(3)]
    assert [item.windows[0].kind for item in items] == ["tick"] * 3
    # The peer compared with itself has as many hits on both sides.
    peer = run_trial(lambda series: changes_over_deviation(series.target), Calibration(threshold=0.32), items, "price")
    assert dict(peer.number) == {"tick": 3} and dict(peer.hit) == {"tick": 3} == dict(peer.peer_hit)
    blind = run_trial(lambda series: np.zeros(len(series)), Calibration(), items, "price")
    assert dict(blind.hit).get("tick", 0) == 0 and blind.false_events == 0
    faults = market(np.random.Generator(np.random.Philox(1)))
    often = lambda series: (np.arange(len(series)) % 80 == 0).astype(float)  # noqa: E731
    all_ = run_trial(often, Calibration(), [faults], "market")
    assert set(all_.number) == {"pump_and_dump", "jump", "volatility_burst", "halt"}
    assert dict(all_.hit) == dict(all_.number)


def test_the_loss_over_persistence_is_half_the_librarys_quantile_loss():
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("pytorch_forecasting.metrics")
    generator = np.random.default_rng(7)
    values, quantiles = generator.standard_normal((5, 4)), np.sort(generator.standard_normal((5, 4, 7)), axis=-1)
    expected = metrics.QuantileLoss(list(LEVELS)).loss(torch.from_numpy(quantiles), torch.from_numpy(values))
    # The library counts it twice, so that the loss of the median is the absolute error.
    assert 2 * quantile_loss(values, quantiles, LEVELS) == pytest.approx(float(expected.mean()), rel=1e-6)
