"""From scores to events: an algebra of intervals, and events as long as their causes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.finance.inference.detectors import DETECTORS
from apps.finance.inference.events import anomalies, detections, fresh, spans
from apps.finance.inference.scoring import Calibration, combine, improbability
from apps.finance.types import MINUTE_NS, Forecast, Series

scores = st.lists(st.floats(0, 1), min_size=1, max_size=300).map(np.asarray)
quiet = st.integers(0, 50)
thresholds = st.floats(0.15, 0.95)


@settings(max_examples=100, deadline=None)
@given(scores, quiet, thresholds)
def test_events_are_apart_in_order_and_begin_where_the_detector_spoke(values, quiet_rows, threshold):
    spoken = detections(values, threshold=threshold, quiet_rows=quiet_rows, margin=0.05)
    found = spans(spoken, values, values >= 0.7 * threshold, threshold=threshold)
    for first, last in found:
        assert 0 <= first <= last < len(values)
        assert spoken[first] >= threshold
    for (_, last), (first, _) in itertools.pairwise(found):
        assert first - last > 1
    # Every row of which the detector spoke lies in an event.
    assert all(any(first <= row <= last for first, last in found) for row in np.flatnonzero(spoken))


@settings(max_examples=100, deadline=None)
@given(scores, quiet, thresholds, st.integers(0, 299))
def test_what_was_said_does_not_change_with_what_comes_later(values, quiet_rows, threshold, cut):
    cut = min(cut, len(values))
    whole = detections(values, threshold=threshold, quiet_rows=quiet_rows, margin=0.05)
    part = detections(values[:cut], threshold=threshold, quiet_rows=quiet_rows, margin=0.05)
    np.testing.assert_array_equal(whole[:cut], part)


@settings(max_examples=50, deadline=None)
@given(scores, quiet, thresholds)
def test_every_row_above_the_threshold_is_told_of_or_follows_one_that_was(values, quiet_rows, threshold):
    spoken = np.flatnonzero(detections(values, threshold=threshold, quiet_rows=quiet_rows, margin=0.05))
    for row in np.flatnonzero(values >= threshold):
        before = spoken[spoken <= row]
        assert len(before) and row - before[-1] <= quiet_rows


def test_one_disturbance_speaks_once_and_a_stronger_one_again():
    values = np.zeros(1000)
    values[500:520] = 0.5
    values[510] = 0.9
    spoken = detections(values, threshold=0.4, quiet_rows=100, margin=0.05)
    assert np.flatnonzero(spoken).tolist() == [500, 510]
    assert spans(spoken, values, values > 0, threshold=0.4) == [(500, 519)]
    strict = detections(values, threshold=0.8, quiet_rows=100, margin=0.05)
    assert spans(strict, values, values > 0, threshold=0.8) == [(510, 510)]
    assert not detections(values * 0, threshold=0.4, quiet_rows=9, margin=0).any()


def test_a_row_below_the_threshold_begins_no_quiet_time():
    values = np.zeros(300)
    values[100], values[150] = 0.38, 0.41
    assert np.flatnonzero(detections(values, threshold=0.4, quiet_rows=120, margin=0.2)).tolist() == [150]


def test_the_echo_of_a_mean_is_no_cause():
    channels = {name: np.zeros(400) for name in DETECTORS}
    channels["jump"][100] = 6
    channels["high_volatility"][100:148] = 4  # a mean over 48 rows has seen one wild row
    channels["move"][[100, 104]] = 5  # and a change over four rows sees it come and go
    channels["drift"][200:300] = 5  # a hundred rows and more above what is usual
    lasting = fresh(channels, 0.3)
    assert np.flatnonzero(lasting[:200]).tolist() == [100]
    assert np.flatnonzero(lasting).max() == 300 - 1 - DETECTORS["drift"].echo


def _noise(seed: int, length: int = 1500) -> np.ndarray:
    return 100 + np.random.default_rng(seed).standard_normal(length).cumsum() * 0.1


def _judged(values: np.ndarray) -> list[tuple[int, int, str]]:
    """First and last rows and the channel of each event, of a forecaster that expects the last value."""
    change = np.diff(values, prepend=values[0])
    bands = np.concatenate([values[:1], values[:-1]])[:, None] + 0.1 * np.linspace(-2, 2, 7)
    forecast = Forecast(levels=(0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98), quantiles=bands, surprise=change[:, None] / 0.1)
    times = np.arange(len(values), dtype=np.int64) * MINUTE_NS
    series = Series(name="s", times_ns=times, values={"v": values}, column="v", interval_ns=MINUTE_NS)
    calibration = Calibration(threshold=0.4)
    channels = improbability(series, forecast, calibration)
    found = anomalies(series, forecast, combine(channels), calibration, channels)
    return [(one.start_ns // MINUTE_NS, one.end_ns // MINUTE_NS, one.channel) for one in found]


@pytest.mark.parametrize("seed", range(4))
def test_one_wild_row_makes_an_event_of_its_own_length(seed):
    values = _noise(seed)
    values[1000] += 5
    events = [event for event in _judged(values) if event[0] <= 1000 <= event[1]]
    ((first, last, channel),) = events
    # Up and back again are the wild row and the one after it.
    assert first == 1000 and last <= 1001
    assert channel in ("jump", "surprise")


def test_a_burst_lasts_until_it_is_over_and_is_called_high_volatility_or_a_jump():
    values = _noise(1)
    values[1000:1100] += np.random.default_rng(5).standard_normal(100) * 0.6
    events = [event for event in _judged(values) if event[1] >= 1000 and event[0] <= 1100]
    assert events and min(event[0] for event in events) <= 1030
    assert 1050 <= max(event[1] for event in events) <= 1110
    assert {event[2] for event in events} <= {"high_volatility", "jump", "surprise"}


def test_a_halt_is_called_low_volatility():
    values = _noise(2)
    values[1000:] += values[999] - values[1059]
    values[1000:1060] = values[999]
    (event,) = [event for event in _judged(values) if event[1] >= 1000 and event[0] <= 1060]
    assert event[2] == "low_volatility" and 1000 < event[0] <= 1020 and 1055 <= event[1] <= 1065
