"""Local times in a named zone: the repeated hour, the skipped hour, and a zone named in the header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.finance.adapters import read_contents
from apps.finance.adapters.options import DEFAULT_OPTIONS, TableOptions
from apps.finance.adapters.table import Contents
from apps.finance.types import iso_utc
from shared.errors import InvalidInputError

BERLIN = TableOptions(zone="Europe/Berlin")
NIGHT = [f"2024-10-27 {hour}:{minute:02d}" for hour in ("01", "02", "02", "03") for minute in (0, 15, 30, 45)]
"""Local times in Berlin in the night in which summer time ends."""


def read(folder: Path, times: list[str], options: TableOptions = DEFAULT_OPTIONS, label: str = "time") -> Contents:
    rows = [f"{label},value", *(f"{time},{100 + row}" for row, time in enumerate(times))]
    (folder / "a.csv").write_text("\n".join(rows) + "\n")
    return read_contents(folder / "a.csv", options)


def test_rows_sorted_by_the_clock_keep_both_hours_in_the_order_of_the_file(tmp_path):
    contents = read(tmp_path, sorted(NIGHT), BERLIN)
    (series,) = contents.series
    assert np.diff(series.times_ns).tolist() == [15 * 60 * 10**9] * 15
    assert series.target.tolist() == [100, 101, 102, 103, 104, 106, 108, 110, 105, 107, 109, 111, 112, 113, 114, 115]
    how = "of two rows with the same time, the first was taken as the earlier hour"
    assert contents.notes[0] == f"8 rows lie in an hour that occurs twice in Europe/Berlin; {how}"


@pytest.mark.parametrize(
    "times",
    [
        sorted(NIGHT)[::-1],  # the order before sorting cannot be known
        sorted(NIGHT[:9] + NIGHT[10:]),  # nor can the hour that lacks a row
        NIGHT[:7] + NIGHT[8:9] + NIGHT[7:8] + NIGHT[9:],
    ],
)
def test_rows_in_a_repeated_hour_are_refused_if_their_order_is_ambiguous(tmp_path, times):
    sentence = r"'2024-10-27 02:\d\d' is in an hour that occurs twice in Europe/Berlin.*does not say which.*\+01:00"
    with pytest.raises(InvalidInputError, match=sentence):
        read(tmp_path, times, BERLIN)


def test_a_late_row_is_not_taken_as_the_clock_set_back(tmp_path):
    times = [f"2024-10-27 02:{minute:02d}" for minute in (0, 20, 15, 40, 50, 5, 30, 55)]
    (series,) = read(tmp_path, ["2024-10-27 01:00", *times, "2024-10-27 03:00"], BERLIN).series
    assert [iso_utc(int(time))[11:16] for time in series.times_ns] == [
        *("23:00", "00:00", "00:15", "00:20", "00:40", "00:50", "01:05", "01:30", "01:55", "02:00")
    ]


def test_times_that_occur_once_are_taken_as_the_earlier_hour_with_a_note(tmp_path):
    contents = read(tmp_path, NIGHT[:8] + NIGHT[12:], BERLIN)
    assert iso_utc(int(contents.series[0].times_ns[7])) == "2024-10-27T00:45:00Z"
    how = "each time occurs once and was taken as the earlier hour"
    assert contents.notes == (f"4 rows lie in an hour that occurs twice in Europe/Berlin; {how}",)


@pytest.mark.parametrize(
    "times",
    [
        [f"2024-03-31 {hour:02d}:{minute:02d}" for hour in range(1, 5) for minute in (0, 15, 30, 45)],
        [f"2024-03-31 {hour:02d}:00" for hour in range(6)],
    ],
)
def test_a_time_in_the_skipped_hour_of_spring_is_refused(tmp_path, times):
    with pytest.raises(
        InvalidInputError, match=r"'2024-03-31 02:00' is in an hour that does not exist in Europe/Berlin.*option 'zone'"
    ):
        read(tmp_path, times, BERLIN)


def test_a_date_whose_midnight_is_skipped_stays_a_date(tmp_path):
    contents = read(tmp_path, [f"2018-11-{day:02d}" for day in range(1, 8)], TableOptions(zone="America/Sao_Paulo"))
    times = [iso_utc(int(time)) for time in contents.series[0].times_ns]
    assert times[2:5] == ["2018-11-03T03:00:00Z", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"]
    assert contents.notes == ()


@pytest.mark.parametrize(
    ("label", "first", "zone"),
    [
        ("Date(UTC)", "09:00", "UTC"),
        ("Time (UTC)", "09:00", "UTC"),
        ("time_utc", "09:00", "UTC"),
        ("Date(UTC+8)", "01:00", "UTC+08:00"),
        ("timestamp(UTC+8)", "01:00", "UTC+08:00"),
        ("Date (UTC-05:30)", "14:30", "UTC-05:30"),
        ("Time [GMT+0100]", "08:00", "UTC+01:00"),
        ("Time (Europe/Berlin)", "07:00", "Europe/Berlin"),
    ],
)
def test_the_zone_in_the_header_is_that_of_the_times_unless_the_option_names_another(tmp_path, label, first, zone):
    times = [f"2024-07-01 09:0{minute}" for minute in range(3)]
    contents = read(tmp_path, times, label=label)
    assert iso_utc(int(contents.series[0].times_ns[0])) == f"2024-07-01T{first}:00Z"
    note = f"column {label!r}: its times are in {zone}, according to its name; the option 'zone' overrides this"
    assert (note in contents.notes) == (zone != "UTC")
    contents = read(tmp_path, times, TableOptions(zone="Asia/Tokyo"), label)
    assert iso_utc(int(contents.series[0].times_ns[0])) == "2024-07-01T00:00:00Z"
    assert not any("according to its name" in note for note in contents.notes)


def test_a_separate_time_of_day_column_may_name_the_zone(tmp_path):
    rows = [f"2024-07-01,09:0{minute},{minute}" for minute in range(3)]
    (tmp_path / "a.csv").write_text("\n".join(["Date,Time (UTC+8),value", *rows]) + "\n")
    assert iso_utc(int(read_contents(tmp_path / "a.csv").series[0].times_ns[0])) == "2024-07-01T01:00:00Z"


def test_a_zone_abbreviation_in_the_header_is_refused_except_for_dates(tmp_path):
    times = [f"2024-07-01 09:0{minute}" for minute in range(3)]
    with pytest.raises(InvalidInputError, match=r"'Time \(EST\)' is in EST according to its name, .*the option 'zone'"):
        read(tmp_path, times, label="Time (EST)")
    assert len(read(tmp_path, times, BERLIN, "Time (CET)").series[0]) == 3
    assert len(read(tmp_path, ["2024-07-01", "2024-07-02"], label="Date (EST)").series[0]) == 2


def test_numbers_since_1970_are_in_utc_whatever_the_header_says(tmp_path):
    contents = read(tmp_path, ["1719824400", "1719824460"], label="timestamp(UTC+8)")
    assert iso_utc(int(contents.series[0].times_ns[0])) == "2024-07-01T09:00:00Z" and contents.notes == ()
