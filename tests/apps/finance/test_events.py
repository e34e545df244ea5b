"""From scores to events: an algebra of intervals."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.finance.events import detections, spans

scores = st.lists(st.floats(0, 1), min_size=1, max_size=300).map(np.asarray)
quiet = st.integers(0, 50)
thresholds = st.floats(0.15, 0.95)


@settings(max_examples=100, deadline=None)
@given(scores, quiet, thresholds)
def test_events_are_apart_in_order_and_begin_where_the_detector_spoke(values, quiet_rows, threshold):
    spoken = detections(values, quiet_rows=quiet_rows, margin=0.05)
    found = spans(values, spoken, threshold=threshold, quiet_rows=quiet_rows)
    for first, last in found:
        assert 0 <= first <= last < len(values)
        assert spoken[first] >= threshold
    for (_, last), (first, _) in itertools.pairwise(found):
        assert first - last > quiet_rows
    # Every row that spoke loudly enough lies in an event.
    loud = np.flatnonzero(spoken >= threshold)
    assert all(any(first <= row <= last for first, last in found) for row in loud)


@settings(max_examples=100, deadline=None)
@given(scores, quiet, st.integers(0, 299))
def test_what_was_said_does_not_change_with_what_comes_later(values, quiet_rows, cut):
    cut = min(cut, len(values))
    whole = detections(values, quiet_rows=quiet_rows, margin=0.05)
    np.testing.assert_array_equal(whole[:cut], detections(values[:cut], quiet_rows=quiet_rows, margin=0.05))


@settings(max_examples=50, deadline=None)
@given(scores, quiet, thresholds)
def test_a_lower_threshold_covers_the_events_of_a_higher_one(values, quiet_rows, threshold):
    spoken = detections(values, quiet_rows=quiet_rows, margin=0.05)
    low = spans(values, spoken, threshold=threshold / 2, quiet_rows=quiet_rows)
    for first, _ in spans(values, spoken, threshold=threshold, quiet_rows=quiet_rows):
        assert any(a <= first <= b for a, b in low)


def test_one_disturbance_speaks_once_and_a_stronger_one_again():
    values = np.zeros(1000)
    values[500:520] = 0.5
    values[510] = 0.9
    spoken = detections(values, quiet_rows=100, margin=0.05)
    assert np.flatnonzero(spoken).tolist() == [500, 510]
    assert spans(values, spoken, threshold=0.4, quiet_rows=100) == [(500, 519)]
    assert spans(values, spoken, threshold=0.6, quiet_rows=100) == [(510, 519)]
    assert spans(values, detections(values * 0, quiet_rows=9, margin=0), threshold=0.4, quiet_rows=9) == []
