"""Numbers and dates as times: what is read, the notes about it, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from apps.finance.adapters import read_contents
from apps.finance.adapters.options import DEFAULT_OPTIONS, TableOptions
from apps.finance.adapters.table import Contents
from apps.finance.types import iso_utc
from shared.errors import InvalidInputError
from tests.apps.finance.reading import read_series, read_times


def times_of(texts: list[str], label: str = "date") -> list[str]:
    return [iso_utc(int(time)) for time in read_times(pl.Series(label, texts)).times_ns]


@pytest.mark.parametrize(
    ("texts", "first", "last"),
    [
        (["2024", "2025"], "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"),
        (["202401", "202412"], "2024-01-01T00:00:00Z", "2024-12-01T00:00:00Z"),
        (["20240115", "20240229"], "2024-01-15T00:00:00Z", "2024-02-29T00:00:00Z"),
        (["2024011509", "2024011523"], "2024-01-15T09:00:00Z", "2024-01-15T23:00:00Z"),
        (["202401150930", "202401150931"], "2024-01-15T09:30:00Z", "2024-01-15T09:31:00Z"),
        (["20240115093000", "20240115093059"], "2024-01-15T09:30:00Z", "2024-01-15T09:30:59Z"),
        (["1704110400", "2024011999"], "2024-01-01T12:00:00Z", "2034-02-20T01:33:19Z"),
    ],
)
def test_unambiguous_numbers_are_read_as_times_from_text_and_parquet(texts, first, last):
    found = times_of(texts)
    assert (found[0], found[-1]) == (first, last)
    from_integers = read_times(pl.Series("date", texts).cast(pl.Int64)).times_ns
    assert [iso_utc(int(time)) for time in from_integers] == found


def test_a_note_gives_an_example_of_how_numbers_were_read():
    assert "numbers such as 202401 were read as 2024-01-01" in read_times(pl.Series("d", [202401, 202402])).note
    assert read_times(pl.Series("d", ["1704110400"] * 2)).note == ""


@pytest.mark.parametrize(
    ("label", "texts"),
    [
        ("time", ["34200.1", "34200.2"]),  # seconds of a day, in the range of Excel's day numbers
        ("date", ["45292", "45293"]),  # Excel's day numbers, which need the option unit
        ("date", ["20240115093000250"] * 2),
        ("date", ["19737", "19738"]),  # days since 1970, or Excel's day numbers of 1954
        ("date", ["2024.01", "2024.02"]),
        ("date", ["240115", "240116"]),
        ("date", ["738000", "738001"]),
        ("timestamp", ["0", "1", "2"]),
        ("timestamp", ["86400", "172800"]),
        ("timestamp", ["1704110400", "1704110400000"]),
    ],
)
def test_ambiguous_numbers_are_refused_with_the_remedy(label, texts):
    with pytest.raises(InvalidInputError, match=r"may be seconds, days or a count.*write times as 2024-01-31 09:30:00"):
        times_of(texts, label)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["20240131", "20240132"], "line 3: '20240132' may be"),
        (["20240131", "20240130", "99991231"], "line 4: '99991231' may be"),
        (["202412", "202413"], "line 3: '202413' may be"),
        (["20240131093000", "20240131096000"], "line 3: '20240131096000' may be"),
    ],
)
def test_a_date_that_is_not_in_the_calendar_is_named(texts, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        times_of(texts)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024年1月15日", "2024-01-15T00:00:00Z"),
        ("2024年01月15日 9:30", "2024-01-15T09:30:00Z"),
        ("2024.01.15 09:30", "2024-01-15T09:30:00Z"),
        ("2024/1/5 9:30", "2024-01-05T09:30:00Z"),
        ("Mon, 15 Jan 2024 09:30:00 GMT", "2024-01-15T09:30:00Z"),
        ("15-Jan-2024", "2024-01-15T00:00:00Z"),
        ("15 January 2024 09:30", "2024-01-15T09:30:00Z"),
        ("Jan 15, 2024", "2024-01-15T00:00:00Z"),
        ("Sept 5, 2024", "2024-09-05T00:00:00Z"),
        ("Jan 2024", "2024-01-01T00:00:00Z"),
        ("2024-06", "2024-06-01T00:00:00Z"),
        ("2024Q3", "2024-07-01T00:00:00Z"),
        ("01/15/2024 09:30:00 PM", "2024-01-15T21:30:00Z"),
        ("1/15/2024 12:05 am", "2024-01-15T00:05:00Z"),
        ("2024-01-15 09:30:00 +0800", "2024-01-15T01:30:00Z"),
        ("20120201 000500", "2012-02-01T00:05:00Z"),
    ],
)
def test_more_ways_to_write_a_date(text, time):
    assert times_of([text, text]) == [time, time]


@pytest.mark.parametrize(
    "text",
    [
        *("Jan-24", "15-Jan-24", "2024-02-30", "soon", "2024-W54", "2024年1月", "2024-01-15,一", "45292,5"),
        "2024-01-15T09:30-05:00[America/New_York]",
    ],
)
def test_ambiguous_dates_are_refused_with_the_remedy(text):
    with pytest.raises(InvalidInputError, match="is not a time; write it as 2024-01-31 09:30:00"):
        times_of([text, text])


def test_first_days_of_months_are_ambiguous_without_the_option_unit():
    texts = pl.Series("date", [f"01/{month:02d}/2024" for month in range(1, 13)])
    with pytest.raises(InvalidInputError, match=r"is ambiguous in '01/01/2024' and '01/12/2024'; .*unit=day-first"):
        read_times(texts)
    found = read_times(texts, TableOptions(unit="day-first")).times_ns
    assert [iso_utc(int(time)) for time in found] == [f"2024-{month:02d}-01T00:00:00Z" for month in range(1, 13)]


def test_compact_dates_of_a_csv_and_its_note(tmp_path: Path):
    path = tmp_path / "months.csv"
    path.write_text("month,value\n202401,1.5\n202402,2.5\n")
    series = read_series(path)
    assert [iso_utc(int(time)) for time in series.times_ns] == ["2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z"]
    assert series.notes == ("column 'month': numbers such as 202401 were read as 2024-01-01T00:00:00",)


@pytest.mark.parametrize(
    "text",
    [
        "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<CLOSE>\nX,5,20240101,120000,9,1.5\nX,5,20240101,120500,9,2.5\n",
        "<DATE>\t<TIME>\t<OPEN>\t<CLOSE>\n2024.01.01\t12:00:00\t9\t1.5\n2024.01.01\t12:05:00\t9\t2.5\n",
        "交易日期,交易时间,收盘价\n2024-01-01,12:00,1.5\n2024-01-01,12:05,2.5\n",
    ],
)
def test_dates_and_times_of_day_in_columns_of_their_own(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    series = read_series(path)
    assert [iso_utc(int(time)) for time in series.times_ns] == ["2024-01-01T12:00:00Z", "2024-01-01T12:05:00Z"]
    assert series.target.tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("year,month,value\n2023,12,1.5\n2024,1,2.5\n", "'month', line 2: '12' may be seconds, days or a count"),
        ("date,time,value\n2024-01-01,1200,1\n2024-01-01,1205,2\n", "'time', line 2: '1200' may be seconds, days or"),
    ],
)
def test_parts_of_a_time_in_other_columns_are_refused(tmp_path, text, sentence):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=sentence):
        read_series(path)


def test_excels_days_with_a_decimal_comma_need_unit_and_decimal():
    texts = pl.Series("date", ["45292,395833", "45293"])
    found = read_times(texts, TableOptions(unit="excel", decimal=",")).times_ns
    assert [iso_utc(int(time)) for time in found] == ["2024-01-01T09:30:00Z", "2024-01-02T00:00:00Z"]


def test_a_column_with_a_word_for_a_time_is_the_times(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("fund,Valuation Date,NAV\nA,20240101,1.5\nA,20240102,2.5\n")
    assert iso_utc(int(read_series(path).times_ns[1])) == "2024-01-02T00:00:00Z"


def rows_of(tmp_path: Path, rows: list[str], options: TableOptions = DEFAULT_OPTIONS) -> Contents:
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return read_contents(tmp_path / "a.csv", options)


QUARTERS = [f"{hour:02d}:{minute:02d}" for hour in (0, 1, 1, 2) for minute in (0, 15, 30, 45)]
"""Local times in New York in the night in which summer time ends."""


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("tickers", [("A",), ("A", "B")])
def test_no_row_of_a_repeated_hour_is_lost_if_the_zone_is_named(tmp_path, tickers, newest_first):
    rows = [f"2024-11-03 {time},{name},{row}" for row, time in enumerate(QUARTERS) for name in tickers]
    rows = ["time,ticker,value", *(reversed(rows) if newest_first else rows)]
    contents = rows_of(tmp_path, rows, TableOptions(zone="America/New_York"))
    for series in contents.series:
        assert np.diff(series.times_ns).tolist() == [15 * 60 * 10**9] * 15
        assert series.target.tolist() == list(range(16)) and iso_utc(int(series.times_ns[0])) == "2024-11-03T04:00:00Z"
    assert any(
        f"{8 * len(tickers)} rows lie in an hour that occurs twice in America/New_York" in n for n in contents.notes
    )
    assert not any("the same time as another" in note for note in contents.notes)


def test_repeated_hours_of_two_autumns_are_resolved_for_irregular_rows(tmp_path):
    nights = [f"{day} {time}" for day in ("2023-11-05", "2024-11-03") for time in ("00:50", "01:10", "01:40", "01:05")]
    options = TableOptions(zone="America/New_York")
    (series,) = rows_of(tmp_path, ["time,value", *(f"{time},1" for time in nights)], options).series
    assert [iso_utc(int(time))[11:16] for time in series.times_ns] == ["04:50", "05:10", "05:40", "06:05"] * 2


@pytest.mark.parametrize("clock", [QUARTERS, ["00:00", "01:00", "01:00", "02:00", "03:00", "04:00"]])
def test_a_clock_set_back_is_refused_without_the_option_zone(tmp_path, clock):
    rows = ["time,value", *(f"2024-11-03 {time},{row}" for row, time in enumerate(clock))]
    with pytest.raises(InvalidInputError, match=r"'2024-11-03 01:00' is about an hour back.*the option 'zone'"):
        rows_of(tmp_path, rows)
    (series,) = rows_of(tmp_path, rows, TableOptions(zone="America/New_York")).series
    assert len(series) == len(clock)
    assert "had the same time as another" in rows_of(tmp_path, rows, TableOptions(zone="UTC")).notes[-1]


def test_ticks_of_a_clock_set_back_on_any_night_are_refused_without_the_option_zone(tmp_path):
    """Irregular rows in New York; 5-minute rows in Sao Paulo, which set clocks back on Saturday at midnight."""
    ticks = ["00:58:10", "01:20:05", "01:59:31", "01:00:12", "01:31:40", "02:10:00"]
    new_york = [f"2024-11-03 {time}" for time in ticks]
    before = [f"2018-02-17 {hour}:{minute:02d}" for hour in (22, 23, 23) for minute in range(0, 60, 5)]
    for times, zone in ((new_york, "America/New_York"), ([*before, "2018-02-18 00:00"], "America/Sao_Paulo")):
        rows = ["time,value", *(f"{time},{row}" for row, time in enumerate(times))]
        with pytest.raises(InvalidInputError, match=r"is about an hour back.*the option 'zone'"):
            rows_of(tmp_path, rows)
        (series,) = rows_of(tmp_path, rows, TableOptions(zone=zone)).series
        assert series.target.tolist() == list(range(len(times)))


@pytest.mark.parametrize(
    "times",
    [
        ["00:10", "02:10", "01:15", "02:20", "02:30"],  # one late row
        ["00:10", "01:50", "01:00", "01:50", "01:00", "01:10"],  # in no order
        ["12:10", "12:50", "12:00", "12:10", "12:20"],  # no clock is set back at noon
    ],
)
def test_rows_out_of_order_are_sorted_and_no_zone_is_asked_for(tmp_path, times):
    contents = rows_of(tmp_path, ["time,value", *(f"2024-11-05 {time},1" for time in times)])
    assert any("have been sorted" in note for note in contents.notes)


def test_the_abbreviation_of_the_named_zone_resolves_the_repeated_hour(tmp_path):
    rows = ["time,value", "2024-11-03 01:30 EDT,1", "2024-11-03 01:30 EST,2", "11/3/2024 02:30 AM EST,3"]
    (series,) = rows_of(tmp_path, rows, TableOptions(zone="America/New_York", unit="month-first")).series
    assert [iso_utc(int(time))[11:16] for time in series.times_ns] == ["05:30", "06:30", "07:30"]
    with pytest.raises(InvalidInputError, match=r"EDT' ends with an unknown abbreviation.*the option 'zone'"):
        rows_of(tmp_path, rows, TableOptions(unit="month-first"))
    with pytest.raises(
        InvalidInputError, match=r"EDT' ends with an unknown abbreviation \(known: UTC, GMT, CET, CEST\)"
    ):
        rows_of(tmp_path, rows, TableOptions(zone="Europe/Berlin", unit="month-first"))


@pytest.mark.parametrize(
    ("texts", "unit", "days"),
    [
        (["1/31/24", "02/01/24 00:00"], None, ["2024-01-31", "2024-02-01"]),
        (["12/31/68", "01/01/69"], None, ["2068-12-31", "1969-01-01"]),
        (["31.01.24", "01.02.24"], "day-first", ["2024-01-31", "2024-02-01"]),
        (["01/02/24", "01/03/24"], "month-first", ["2024-01-02", "2024-01-03"]),
        (["01/31/24", "02/01/2024"], None, ["2024-01-31", "2024-02-01"]),
    ],
)
def test_years_of_two_digits(texts, unit, days):
    found = read_times(pl.Series("date", texts), TableOptions(unit=unit)).times_ns
    assert [iso_utc(int(time))[:10] for time in found] == days


@pytest.mark.parametrize("texts", [["31/01/24", "01/02/24"], ["01.01.24", "02.01.24"], ["24-01-30", "24-01-31"]])
def test_years_of_two_digits_at_either_end_are_refused_without_the_option_unit(texts):
    with pytest.raises(InvalidInputError, match=rf"month is ambiguous in '{texts[0]}' and .*unit=day-first"):
        read_times(pl.Series("date", texts))


def test_milliseconds_before_microseconds_are_read_and_noted_but_not_one_wrong_time():
    cells = pl.Series("time", [1735689540000, 1735689600000000, 1735689660000000])
    assert read_times(cells).note == "1 time was read as milliseconds and the 2 later ones as microseconds"
    assert np.diff(read_times(cells).times_ns).tolist() == [60 * 10**9] * 2
    with pytest.raises(InvalidInputError, match="line 4: '173568966000099' may be seconds"):
        read_times(pl.Series("time", [1735689540000, 1735689600000, 173568966000099]))


@pytest.mark.parametrize(
    "written",
    ["%a %d/%m/%Y", "%A, %d/%m/%Y", "%a %d.%m.%Y", "%a %d-%m-%Y", "%I:%M:%S %p %d/%m/%Y", "%H:%M %d/%m/%Y"],
)
def test_one_order_of_day_and_month_holds_for_a_column_whatever_precedes_the_date(written):
    days = [datetime(2024, 6, 3) + timedelta(days=n) for n in range(80)]
    texts = pl.Series("date", [day.strftime(written) for day in days])
    read = read_times(texts, TableOptions(unit="day-first")).times_ns
    assert np.array_equal(read, [int(day.replace(tzinfo=UTC).timestamp()) * 10**9 for day in days])
    assert np.array_equal(read, read_times(texts, TableOptions()).times_ns), "the days beyond the twelfth say which"


@pytest.mark.parametrize("text", ["10/07/24 09:30:00 AM +0000", "at 10/07/2024 AM"])
def test_a_date_whose_month_may_be_either_is_not_guessed_cell_by_cell(text):
    with pytest.raises(InvalidInputError, match=r"is not a time|is ambiguous"):
        read_times(pl.Series("date", [text, text.replace("10/", "25/")]), TableOptions())


@pytest.mark.parametrize(
    "text",
    [
        "20240710T090000+0200",
        "20240710T090000.000+0200",
        "20240710T09+02",
        "2024-07-10T09+02:00",
        "2024-07-10 09:00+02",
    ],
)
def test_a_time_with_an_offset_from_utc_ignores_the_option_zone(text):
    assert not read_times(pl.Series("date", [text]), TableOptions(zone="Europe/Berlin")).lacks_zone.any()
    assert read_times(pl.Series("date", ["2024-07-10 09:00"]), TableOptions(zone="Europe/Berlin")).lacks_zone.all()


def test_the_later_of_two_rows_with_the_same_time_is_kept_even_if_the_newest_comes_first(tmp_path):
    rows = [f"2024-01-01T00:{minute:02d}:00Z,{value}" for minute in range(30) for value in (100 + minute, 200 + minute)]
    values_by_order = {}
    for name, order in (("asc", rows), ("desc", rows[::-1])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["time,value", *order]) + "\n")
        values_by_order[name] = read_series(tmp_path / f"{name}.csv").values["value"].tolist()
    assert values_by_order["asc"] == values_by_order["desc"] == [200.0 + minute for minute in range(30)]


@pytest.mark.parametrize("options", [DEFAULT_OPTIONS, TableOptions(unit="ms"), TableOptions(decimal=",")])
@pytest.mark.parametrize("cell", ["1.7066{}E+12", "1,7066{}E+12", "1.7E+{}", "1.70669{}E+09"])
def test_times_rounded_by_a_spreadsheet_are_refused_with_the_remedy(cell, options):
    cells = pl.Series("time", [cell.format(row // 4) for row in range(12, 40)])
    with pytest.raises(
        InvalidInputError, match=r"line 2: '1.*' is rounded.*format the column as a number.*save it again"
    ):
        read_times(cells, options)


@pytest.mark.parametrize("number", ["1.7066916e+18", "1.706691600000000000e+09"])
def test_times_with_an_exponent_and_all_their_digits_are_read(number):
    assert times_of([number, number])[0] == "2024-01-31T09:00:00Z"


@pytest.mark.parametrize("form", ["{}-Q{}", "{}Q{}", "{} Q{}", "Q{1} {0}", "q{1}/{0}", "Q{1}-{0}"])
def test_quarters_are_their_first_days(form):
    texts = [form.format(1960 + number // 4, number % 4 + 1) for number in range(5)]
    days = ["1960-01-01", "1960-04-01", "1960-07-01", "1960-10-01", "1961-01-01"]
    assert times_of(texts) == [f"{day}T00:00:00Z" for day in days]


def test_half_years_of_sdmx_are_their_first_days():
    assert times_of(["2023-S1", "2023-S2"]) == ["2023-01-01T00:00:00Z", "2023-07-01T00:00:00Z"]
