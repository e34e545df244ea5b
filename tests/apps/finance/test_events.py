"""From scores to events: properties of their intervals, and events as long as their causes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.finance.inference.conformal import Control, report
from apps.finance.inference.detectors import DETECTORS
from apps.finance.inference.events import active_rows, anomalies, event_spans
from apps.finance.inference.scoring import Calibration, combine, improbability
from apps.finance.types import MINUTE_NS, Forecast, Series

scores = st.lists(st.floats(0, 1), min_size=1, max_size=300).map(np.asarray)
controls = st.builds(
    Control,
    start=st.floats(0.15, 0.95),
    step=st.sampled_from([0.0, 0.02, 0.1]),
    hold_rows=st.floats(2, 80),
    margin=st.floats(0.05, 0.4),
)


@settings(max_examples=100)
@given(scores, controls)
def test_events_are_disjoint_ordered_and_begin_at_reports(values, control):
    reported = report(values, 0.01 * np.arange(len(values)), control)
    found = event_spans(reported, values, values >= 0.5)
    for first, last in found:
        assert 0 <= first <= last < len(values)
        assert reported.scores[first] >= reported.thresholds[first] - 1e-9
    for (_, last), (first, _) in itertools.pairwise(found):
        assert first - last > 1 or (first - last == 1 and reported.renewed[first])
    # Every reported row lies in an event.
    assert all(any(first <= row <= last for first, last in found) for row in np.flatnonzero(reported.scores))


def test_a_disturbance_is_reported_once_and_a_stronger_one_again():
    values = np.zeros(1000)
    values[500:520] = 0.5
    values[510] = 0.9
    reported = report(values, np.zeros(1000), Control(start=0.4))
    assert np.flatnonzero(reported.scores).tolist() == [500, 510]
    assert event_spans(reported, values, values > 0) == [(500, 519)]
    strict = report(values, np.zeros(1000), Control(start=0.8))
    assert event_spans(strict, values, values > 0) == [(510, 510)]
    assert not report(values * 0, np.zeros(1000), Control(start=0.4)).scores.any()


def test_a_new_level_keeps_an_event_open_for_48_rows():
    channels = {name: np.zeros(900) for name in DETECTORS}
    channels["level"][200:800] = 8
    channels["jump"][[200, 500]] = 8
    lasting = active_rows(channels)
    assert np.flatnonzero(lasting).tolist() == [*range(200, 249), 500]
    score = combine(channels)
    found = event_spans(report(score, np.zeros(900), Control(start=0.3)), score, lasting)
    # The jump in the middle of a new level is a separate event.
    assert found == [(200, 248), (500, 500)]


def test_rows_in_which_a_mean_only_repeats_itself_are_not_active():
    channels = {name: np.zeros(400) for name in DETECTORS}
    channels["jump"][100] = 6
    channels["high_volatility"][100:148] = 4  # a mean over 48 rows after one extreme row
    channels["move"][[100, 104]] = 5  # and a change over four rows at its start and end
    channels["rhythm"][200:300] = 5  # a hundred unusual rows
    lasting = active_rows(channels, 3.0)
    assert np.flatnonzero(lasting[:200]).tolist() == [100]
    assert np.flatnonzero(lasting).max() == 300 - 1 - DETECTORS["rhythm"].echo_rows


def _noise(seed: int, length: int = 1500) -> np.ndarray:
    return 100 + np.random.default_rng(seed).standard_normal(length).cumsum() * 0.1


def _scored(values: np.ndarray) -> list[tuple[int, int, str]]:
    """First row, last row and channel of each event, with persistence as the forecast."""
    change = np.diff(values, prepend=values[0])
    bands = np.concatenate([values[:1], values[:-1]])[:, None] + 0.1 * np.linspace(-2, 2, 7)
    forecast = Forecast(levels=(0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98), quantiles=bands, surprise=change[:, None] / 0.1)
    times = np.arange(len(values), dtype=np.int64) * MINUTE_NS
    series = Series(name="s", times_ns=times, values={"v": values}, column="v", interval_ns=MINUTE_NS)
    channels = improbability(series, forecast, Calibration())
    scores = combine(channels)
    reported = report(scores, np.zeros(len(scores)), Control(start=0.36))
    found = anomalies(series, forecast, scores, reported, channels)
    return [(event.start_ns // MINUTE_NS, event.end_ns // MINUTE_NS, event.channel) for event in found]


@pytest.mark.parametrize("seed", range(4))
def test_a_single_extreme_row_makes_a_short_event(seed):
    values = _noise(seed)
    values[1000] += 5
    events = [event for event in _scored(values) if event[0] <= 1000 <= event[1]]
    ((first, last, channel),) = events
    # The two changes are those of the extreme row and of the row after it.
    assert first == 1000 and last <= 1001
    assert channel in ("jump", "surprise")


def test_a_burst_lasts_until_it_is_over_and_is_called_high_volatility_or_a_jump():
    values = _noise(1)
    values[1000:1100] += np.random.default_rng(5).standard_normal(100) * 0.6
    events = [event for event in _scored(values) if event[1] >= 1000 and event[0] <= 1100]
    assert events and min(event[0] for event in events) <= 1030
    assert 1050 <= max(event[1] for event in events) <= 1110
    assert {event[2] for event in events} <= {"high_volatility", "jump", "surprise"}


@pytest.mark.parametrize(("first", "second", "apart"), [(20, 15, 100), (8, 12, 100), (20, -20, 100), (20, 12, 60)])
def test_a_second_shift_of_the_level_is_an_event_of_its_own(first, second, apart):
    values = 100 + np.random.default_rng(11).standard_normal(2000)
    values[1500:] += first
    values[1500 + apart :] += second
    events = [event for event in _scored(values) if 1480 <= event[0] <= 1700]
    assert [event[0] for event in events] == [1500, 1500 + apart] and events[0][1] < 1500 + apart
    # The event is named after what is new, because the level was already unusual.
    assert events[1][2] in ("jump", "discord", "beyond_range")


def test_a_halt_is_called_low_volatility():
    values = _noise(2)
    values[1000:] += values[999] - values[1059]
    values[1000:1060] = values[999]
    (event,) = [event for event in _scored(values) if event[1] >= 1000 and event[0] <= 1060]
    assert event[2] == "low_volatility" and 1000 < event[0] <= 1020 and 1055 <= event[1] <= 1065
