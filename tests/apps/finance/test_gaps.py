"""A gap in time is a separate kind of event; nights, weekends and the value after a gap are not events."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apps.finance.inference.gaps import Pauses, duration, gaps
from apps.finance.types import DAY_NS, HOUR_NS, MINUTE_NS, Series, usual_interval_ns
from tests.apps.finance.untrained import untrained

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
MONDAY_NS = 19_723 * DAY_NS  # 2024-01-01


def of(times: np.ndarray, values: np.ndarray | None = None) -> Series:
    times = times.astype(np.int64)
    values = np.sin(np.arange(len(times))) if values is None else values
    return Series(name="s", times_ns=times, values={"v": values}, column="v", interval_ns=usual_interval_ns(times))


def sessions(days: int) -> np.ndarray:
    """Bars of 5 minutes from 14:30 to 21:00 UTC, Monday to Friday, with a break from 17:00 to 18:00."""
    starts = [MONDAY_NS + day * DAY_NS for day in range(days) if day % 7 < 5]
    minutes = [minute for minute in range(870, 1260, 5) if not 1020 <= minute < 1080]
    return np.array([start + minute * MINUTE_NS for start in starts for minute in minutes])


def test_nights_weekends_breaks_and_holidays_of_one_day_are_no_gaps_and_a_missing_week_is():
    times = sessions(60)
    assert gaps(of(times)) == []
    day = (times - MONDAY_NS) // DAY_NS
    assert gaps(of(times[day != 30])) == []
    (gap,) = gaps(of(times[(day < 28) | (day >= 42)]))
    assert gap.note == "no value for 16 d 18 h"


def test_daily_bars_have_weekends_and_a_gap_where_two_weeks_are_missing():
    days = np.array([day for day in range(300) if day % 7 < 5])
    assert gaps(of(MONDAY_NS + days * DAY_NS)) == []
    (gap,) = gaps(of(MONDAY_NS + days[(days < 203) | (days > 218)] * DAY_NS))
    assert gap.note == "no value for 19 d"


def test_an_outage_of_a_series_that_never_stops_is_a_gap_each_time_and_sooner_than_after_a_day():
    rows = np.arange(8000)
    out = ((rows >= 900) & (rows < 912)) | ((rows >= 4000) & (rows < 4024)) | ((rows >= 7000) & (rows < 7024))
    found = gaps(of(rows[~out] * 5 * MINUTE_NS))
    assert [gap.note for gap in found] == ["no value for 1 h 5 min", "no value for 2 h 5 min", "no value for 2 h 5 min"]
    for first, known in ((150, [149]), (40, [])):
        early = (rows >= first) & (rows < first + 12)
        assert [gap.before for gap in gaps(of(rows[~early] * 5 * MINUTE_NS))] == known


def test_frequent_pauses_are_no_gaps():
    generator = np.random.default_rng(0)
    steps = np.where(generator.uniform(size=5000) < 0.01, generator.integers(6, 60, 5000), 1)
    found = gaps(of(np.cumsum(steps) * MINUTE_NS))
    assert len(found) <= 4


def test_few_pauses_between_ticks_are_kept_and_a_halt_is_still_a_gap():
    """Every seventh step between ticks is a pause; if all were kept, each gap would be compared with all of them."""
    times = MONDAY_NS + np.cumsum(np.random.default_rng(0).exponential(3e7, 60_000))
    times[50_000:] += 2 * MINUTE_NS
    pauses = Pauses()
    assert [(gap.before, gap.note) for gap in gaps(of(times), pauses)] == [(49_999, "no value for 2 min")]
    assert len(pauses.starts) <= 3 and len(pauses.lengths) <= 4096


@pytest.mark.parametrize("cut", [70, 901, 905, 3000])
def test_gaps_are_known_at_the_next_value(cut):
    rows = np.delete(np.arange(4000), np.r_[700:900, 2500:2550])
    whole = of(rows * MINUTE_NS)
    part = of(rows[:cut] * MINUTE_NS)
    assert gaps(part) == [gap for gap in gaps(whole) if gap.after < cut]


def test_missing_cells_are_a_gap_and_missing_rows_are_reported_once_per_table():
    values = np.sin(np.arange(2000.0))
    values[1000:1100] = np.nan
    series = of(np.delete(np.arange(2050), np.r_[1500:1550]) * MINUTE_NS, values)
    assert [(gap.before, gap.after) for gap in gaps(series)] == [(999, 1100), (1499, 1500)]
    assert [(gap.before, gap.after) for gap in gaps(replace(series, column_of_table=True))] == [(999, 1100)]
    assert [(gap.before, gap.after) for gap in gaps(replace(series, joint=True))] == [(1499, 1500)]


def dead(length: int, since: int, *, end: int | None = None) -> Series:
    """Five-minute rows without values from ``since`` on, or only until ``end``."""
    values = np.sin(np.arange(float(length)))
    values[since:end] = np.nan
    return of(MONDAY_NS + np.arange(length) * 5 * MINUTE_NS, values)


def test_a_stopped_feed_is_a_gap_even_if_other_columns_continue():
    for series in (dead(3000, 2900), replace(dead(3000, 2900), column_of_table=True)):
        (gap,) = gaps(series)
        assert (gap.before, gap.after, gap.open) == (2899, 2999, True)
        assert gap.note == "no value for 8 h 20 min, to the end of the series" and gap.score > 0.5
    assert gaps(dead(3000, 2997)) == [] and gaps(dead(200, 150)) == [], "too short, and on the first day"
    assert gaps(replace(dead(3000, 2900), joint=True)) == []


@pytest.mark.parametrize("since", [300, 1000, 1500, 2000, 3500])
@pytest.mark.parametrize("weekdays", [False, True])
def test_an_open_gap_is_not_reported_if_later_rows_could_retract_it(since, weekdays):
    """Two weeks of five-minute rows; with ``weekdays``, the weekends have rows without values as well."""
    whole = dead(4032, since, end=since + 400)
    if weekdays:
        closed = (np.arange(4032) * 5 // 1440) % 7 >= 5
        whole = of(whole.times_ns, np.where(closed, np.nan, whole.target))
    starts = {gap.before for gap in gaps(whole)}
    found = {gap.before for cut in range(80, 4032, 16) for gap in gaps(of(whole.times_ns[:cut], whole.target[:cut]))}
    assert found <= starts


def test_a_stopped_feed_is_an_event_at_its_last_value():
    series = walk(0.0)
    values = np.where(np.arange(len(series)) >= 1900, np.nan, series.target)
    series = replace(series, times_ns=series.times_ns + MONDAY_NS, values={"v": values})
    (detection,) = untrained().predict([series])
    (event,) = [anomaly for anomaly in detection.anomalies if anomaly.note.endswith("to the end of the series")]
    assert (event.channel, event.end_ns) == ("gap", int(series.times_ns[-1]))
    assert event.observed == values[1899] and event.peak_ns == event.start_ns == int(series.times_ns[1899])


def walk(jump: float) -> Series:
    """A random walk in minutes with a gap of three hours, after which it is ``jump`` standard deviations off."""
    steps = np.random.default_rng(3).standard_normal(2180)
    values = 1000 + np.delete(np.cumsum(steps), np.r_[1500:1680]) + np.where(np.arange(2000) >= 1500, jump, 0.0)
    return of(np.delete(np.arange(2180), np.r_[1500:1680]) * MINUTE_NS, values)


def test_a_gap_is_the_event_and_not_the_value_after_it_unless_that_is_unusual_too():
    predictor = untrained()
    (usual, unusual) = predictor.predict([walk(0.0), walk(150.0)])
    near = [
        [
            event
            for event in detection.anomalies
            if event.end_ns >= 1499 * MINUTE_NS and event.start_ns <= 1700 * MINUTE_NS
        ]
        for detection in (usual, unusual)
    ]
    (gap,) = near[0]
    assert gap.channel == "gap" and gap.note == "no value for 3 h 1 min"
    assert (gap.start_ns, gap.end_ns) == (1499 * MINUTE_NS, 1680 * MINUTE_NS) and gap.score > 0.5
    (second_gap, value) = near[1]
    assert second_gap.channel == "gap" and value.channel in ("jump", "beyond_range")


def test_durations_are_written_in_their_two_largest_units():
    texts = {90 * 10**9: "90 s", 5 * MINUTE_NS: "5 min", 26 * HOUR_NS: "1 d 2 h", 3 * DAY_NS: "3 d"}
    assert {length: duration(length) for length in texts} == texts
