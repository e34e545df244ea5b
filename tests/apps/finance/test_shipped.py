"""The shipped detector on synthetic markets: it finds their faults, names them, and gets their durations right."""

from __future__ import annotations

import numpy as np
import pytest

from apps.finance.app import app
from apps.finance.datasets.labels import window_rows
from apps.finance.datasets.synth.markets import market
from apps.finance.inference.trial import long_walk, strongest_rows
from apps.finance.outputs.files import result
from apps.finance.predictor import FinancePredictor, Options
from apps.finance.types import MINUTE_NS, Series
from shared.deploy.registry import shipped

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
WORDS = {"pump_and_dump": "jump", "jump": "jump", "volatility_burst": "high_volatility", "halt": "low_volatility"}


@pytest.fixture(scope="module")
def detector() -> FinancePredictor:
    return FinancePredictor.load(shipped(app), "cpu")


def in_noise(seed: int, length: int = 2600) -> np.ndarray:
    return 100 + np.random.default_rng(seed).standard_normal(length)


def events_at(detector: FinancePredictor, values: np.ndarray, row: int) -> list[str]:
    """The names of the events that begin within two rows of ``row``, in 5-minute bars."""
    times = np.arange(len(values), dtype=np.int64) * 5 * MINUTE_NS
    series = Series(name="w", times_ns=times, values={"v": values}, column="v", interval_ns=5 * MINUTE_NS)
    (found,) = detector.predict([series])
    return [event.channel for event in found.anomalies if abs(event.start_ns // (5 * MINUTE_NS) - row) <= 2]


def test_a_shift_in_noise_is_a_level_and_a_bad_print_a_jump_or_beyond_range(detector):
    events = []
    for seed in range(6):
        shifted, printed = in_noise(seed), in_noise(seed)
        shifted[2000:] += 10
        printed[2000] += 12
        events += [*events_at(detector, shifted, 2000), *events_at(detector, printed, 2000)]
    assert events.count("level") == 6 and events.count("beyond_range") + events.count("jump") == 6, events


@pytest.mark.parametrize("after", [20, 40])
def test_the_second_of_two_bad_prints_is_an_event(detector, after):
    found = 0
    for seed in range(6):
        values = in_noise(seed)
        values[[2000, 2000 + after]] += 12
        found += bool(events_at(detector, values, 2000)) and bool(events_at(detector, values, 2000 + after))
    assert found >= 5


def test_the_four_faults_of_a_market_are_found_with_their_names_and_durations(detector):
    truth = market(np.random.Generator(np.random.Philox(20)))
    (found,) = detector.predict([truth.series])
    bounds = [
        np.searchsorted(truth.series.times_ns, (event.start_ns, event.end_ns)).tolist() for event in found.anomalies
    ]
    for (first, last), window in zip(window_rows(truth.series.times_ns, truth.windows), truth.windows, strict=True):
        ((start, end), event) = next(
            (rows, event)
            for rows, event in zip(bounds, found.anomalies, strict=True)
            if rows[0] <= last and rows[1] >= first
        )
        assert event.channel == WORDS[window.kind]
        assert first <= start and end <= last + 12, window.kind
    written = result(found, model="shipped")["events"]
    assert [event["channel"] for event in written] == [event.channel for event in found.anomalies]


def test_a_long_random_walk_has_as_many_events_as_asked_for_and_its_two_faults_are_the_strongest(detector):
    walk, faults = long_walk(20_000)
    (few,) = detector.predict([walk], Options(events_per_1000_rows=0.2))
    assert 2 <= len(few.anomalies) <= 8
    near = [min(abs(row - fault) for fault in faults) for row in strongest_rows(few, 2)]
    assert max(near) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_a_single_extreme_price_is_an_event_of_two_rows(detector, seed):
    generator = np.random.Generator(np.random.Philox(100 + seed))
    values = 100 * np.exp(np.cumsum(0.001 * generator.standard_normal(2000)))
    values[1500] *= 1.05
    times = np.arange(2000, dtype=np.int64) * 5 * MINUTE_NS
    series = Series(name="w", times_ns=times, values={"v": values}, column="v", interval_ns=5 * MINUTE_NS)
    (event,) = [anomaly for anomaly in detector.predict([series])[0].anomalies if anomaly.end_ns >= times[1500]]
    assert event.channel == "jump" and event.direction == "above"
    assert event.start_ns == event.peak_ns == times[1500] and event.end_ns <= times[1501]
