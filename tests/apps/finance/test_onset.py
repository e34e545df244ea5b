"""The onset: an estimate of when the level began to move, made at the row that noticed it."""

from __future__ import annotations

import numpy as np
import pytest

from apps.finance.inference.conformal import Control, report
from apps.finance.inference.events import anomalies
from apps.finance.inference.onset import onset
from apps.finance.inference.scoring import Calibration, combine, improbability
from apps.finance.outputs.files import event_entry
from apps.finance.types import MINUTE_NS, Anomaly, Forecast, Series, iso_utc

BEGINS = 1500


def drifting(slope: float, seed: int) -> np.ndarray:
    rows = np.arange(2000)
    return 100 + np.random.default_rng(seed).standard_normal(2000) + slope * np.maximum(rows - BEGINS, 0)


def first_event(values: np.ndarray) -> Anomaly:
    """The first event after the row at which the series begins to drift, minute 1500."""
    times = np.arange(len(values), dtype=np.int64) * MINUTE_NS
    series = Series(name="s", times_ns=times, values={"v": values}, column="v", interval_ns=MINUTE_NS)
    forecast = Forecast(
        levels=(0.1, 0.5, 0.9), quantiles=np.full((len(values), 3), 100.0), surprise=np.full((len(values), 2), np.nan)
    )
    channels = improbability(series, forecast, Calibration())
    scores = combine(channels)
    reported = report(scores, np.zeros(len(scores)), Control(start=0.35))
    found = anomalies(series, forecast, scores, reported, channels)
    return next(event for event in found if event.start_ns >= times[BEGINS])


@pytest.mark.parametrize("slope", [0.02, 0.05])
def test_the_event_of_a_drift_states_since_when_the_level_has_moved(slope):
    events = [first_event(drifting(slope, seed)) for seed in range(8)]
    dated = [event for event in events if event.since_ns is not None]
    assert len(dated) >= 6
    late = np.array([(event.start_ns - BEGINS * MINUTE_NS) // MINUTE_NS for event in dated])
    off = np.array([(event.since_ns - BEGINS * MINUTE_NS) // MINUTE_NS for event in dated])
    assert (off < late).all() and np.abs(off).max() <= 40
    assert np.median(np.abs(off)) <= 25 <= np.median(late)


def test_the_onset_is_in_the_fields_and_the_note_of_an_event():
    event = first_event(drifting(0.02, 0))
    entry = event_entry(event)
    assert entry["since"] == iso_utc(event.since_ns) < entry["start"]
    moment = entry["since"].replace("T", " ").removesuffix("Z")
    assert entry["note"] == f"away from its former median since about {moment} UTC"


def test_the_onset_does_not_depend_on_later_rows():
    values = drifting(0.02, 0)
    row = first_event(values).start_ns // MINUTE_NS
    cut = values.copy()
    cut[row + 1 :] = np.nan
    assert onset(values, row) == onset(values[: row + 1], row) == onset(cut, row) is not None


@pytest.mark.parametrize("height", [8, 20])
def test_a_sudden_step_has_no_earlier_onset(height):
    values = drifting(0.0, 5)
    values[BEGINS:] += height
    event = first_event(values)
    assert event.start_ns == BEGINS * MINUTE_NS and event.since_ns is None
    assert "since" not in event_entry(event)


def test_a_steady_drift_and_a_short_history_have_no_onset():
    line = np.arange(2000.0)
    assert onset(line, 1500) is None and onset(line, 100) is None
    assert onset(np.full(2000, np.nan), 1500) is None
