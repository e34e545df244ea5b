"""Requirements for every detector: causal scores, and a prior that survives the manifest."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from apps.finance.datasets.synth import markets
from apps.finance.inference.calibration import from_manifest
from apps.finance.inference.detectors import ANCHORS, CANDIDATES, DETECTORS, amplitude, nearest
from apps.finance.inference.detectors.detector import Detector, ForecastedSeries, Ranking
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.types import MINUTE_NS, Forecast, Series
from shared.errors import InvalidInputError

ALL = {**DETECTORS, **CANDIDATES, **ANCHORS}
ROWS = 700
CUTS = (90, 200, 333, 512, 699)


def forecasted(seed: int, shape: str) -> ForecastedSeries:
    """A synthetic series with persistence as the forecast and the spread of the changes so far."""
    series = markets.series(np.random.Generator(np.random.Philox(seed)), length=ROWS, shape=shape).series
    before = np.concatenate([series.target[:1], series.target[:-1]])
    change = np.abs(np.diff(series.target, prepend=series.target[0]))
    deviation = np.maximum(np.cumsum(change) / np.arange(1, ROWS + 1), 1e-9)
    deviation = np.concatenate([[1.0], deviation[:-1]])
    bands = before[:, None] + deviation[:, None] * np.linspace(-2, 2, 7)
    surprise = np.clip((series.target - before) / deviation, -50, 50)[:, None]
    levels = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
    return ForecastedSeries(series, Forecast(levels=levels, quantiles=bands, surprise=surprise))


def cut(whole: ForecastedSeries, rows: int) -> ForecastedSeries:
    values = {name: numbers[:rows] for name, numbers in whole.series.values.items()}
    series: Series = replace(whole.series, times_ns=whole.series.times_ns[:rows], values=values)
    forecast = whole.forecast
    return ForecastedSeries(
        series, replace(forecast, quantiles=forecast.quantiles[:rows], surprise=forecast.surprise[:rows])
    )


SHAPES = ("price", "counts", "plateau", "sensor", "bursts", "constant")


def assert_causal(detector: Detector, shapes: tuple[str, ...] = SHAPES) -> None:
    for seed, shape in enumerate(shapes):
        whole = forecasted(seed, shape)
        scores = detector.score(whole)
        assert scores.shape == (ROWS,) and np.isfinite(scores).all() and (scores >= 0).all()
        for rows in CUTS:
            np.testing.assert_allclose(detector.score(cut(whole, rows)), scores[:rows], atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_a_detector_scores_a_row_from_it_and_earlier_rows_alone(name):
    assert_causal(ALL[name], shapes=("counts",) if name in ANCHORS else SHAPES)


@pytest.mark.parametrize("name", [*DETECTORS, *CANDIDATES])
def test_a_fitted_detector_survives_the_manifest_and_stays_causal(name):
    fitted = ALL[name].fit([forecasted(seed, "utilisation") for seed in range(3)])
    assert ALL[name].prior == (), "fitting makes another detector"
    prior = json.loads(json.dumps(list(fitted.prior)))
    restored = ALL[name].configured(prior, Ranking())
    counts = forecasted(9, "counts")
    np.testing.assert_array_equal(restored.score(counts), fitted.score(counts))
    assert_causal(restored)


def test_a_detector_that_looks_ahead_is_caught():
    def ahead(forecasted_series: ForecastedSeries, memory: int) -> np.ndarray:
        return np.abs(forecasted_series.series.target - forecasted_series.series.target.mean())

    with pytest.raises(AssertionError):
        assert_causal(RankedStatistic(channel="ahead", statistic=ahead))


def test_a_calibration_ignores_further_entries_of_the_manifest():
    found = from_manifest({"prior": {"high_volatility": [1.0], "jump": [3.0]}, "threshold": 0.31, "stride": 4})
    assert found.prior == {"high_volatility": [1.0], "jump": [3.0]}
    assert found.threshold == 0.31


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"prior": None}, "prior"),
        ({"prior": {"level": "high"}}, "prior.level"),
        ({"tail": [1]}, "tail"),
        ({"memory": "x"}, "memory"),
    ],
)
def test_a_calibration_with_wrong_types_is_refused_with_the_reason(wrong, where):
    with pytest.raises(InvalidInputError, match=f"calibration cannot be used: {where}"):
        from_manifest(wrong)


def test_amplitude_is_measured_from_where_the_series_began():
    """A level five spreads above the first 600 rows, with one value a hundred spreads above them."""
    price = forecasted(0, "price")
    values = np.tile([1.0, 2.0, 3.0], 400)
    values[900:] += 5
    values[1000] += 100
    times = np.arange(1200, dtype=np.int64) * MINUTE_NS
    series = Series(name="s", times_ns=times, values={"v": values}, column="v", interval_ns=MINUTE_NS)
    moved = replace(price, series=series)
    away, shift = amplitude.deviation(moved, 8000), amplitude.mean_shift(moved, 8000)
    assert np.isnan(away[:600]).all() and np.isnan(shift[:600]).all()
    assert np.nanmax(away[:900]) == 1 and away[901] == 5 and away[1000] == pytest.approx(105, abs=1)
    assert shift[899] < 0.1 and shift[990] == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("shape", ["price", "plateau"])
def test_the_distance_to_the_nearest_rows_is_the_same_with_and_without_a_search_tree(shape, monkeypatch):
    series = forecasted(3, shape)
    compared = nearest.nearest(series, memory=400)
    monkeypatch.setattr(nearest, "_BRUTE_FORCE_VECTORS", 0)
    np.testing.assert_array_equal(nearest.nearest(series, memory=400), compared)
