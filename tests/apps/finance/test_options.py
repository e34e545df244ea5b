"""A user's options override guesses, and names of missing columns are refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from apps.finance.adapters import read_contents
from apps.finance.adapters.options import TableOptions, table_options
from apps.finance.types import iso_utc
from shared.cli.main import main
from shared.errors import InvalidInputError
from tests.apps.finance.reading import read_series


def written(folder: Path, text: str) -> Path:
    (folder / "a.csv").write_text(text, encoding="utf-8")
    return folder / "a.csv"


def test_time_value_and_series_are_the_columns_that_were_named(tmp_path):
    rows = [f"2024-01-{day:02d},2023-06-{day:02d},{name},{day},{9 * day}" for day in range(1, 11) for name in "ab"]
    path = written(tmp_path, "\n".join(["date,settled on,desk,close,size", *rows]) + "\n")
    options = TableOptions(time="Settled On", value="size", series="desk")
    contents = read_contents(path, options)
    assert [series.name for series in contents.series] == ["a", "b"] and contents.series_column == "desk"
    assert contents.series[0].column == "size" and contents.series[0].target[0] == 9
    assert iso_utc(int(contents.series[0].times_ns[0])) == "2023-06-01T00:00:00Z"
    assert not any("option" in note for note in contents.notes), "nothing was guessed"
    for name in ("time", "series"):
        with pytest.raises(InvalidInputError, match=f"no column 'nowhere', named by '{name}'; its columns are"):
            read_contents(path, TableOptions(**{name: "nowhere"}))


@pytest.mark.parametrize(
    ("cells", "options", "times"),
    [
        (("2024-01-15 09:30", "2024-07-15 09:30"), {"zone": "America/New_York"}, ("14:30", "13:30")),
        (("2024-01-15 09:30Z", "2024-07-15 09:30"), {"zone": "America/New_York"}, ("09:30", "13:30")),
        (("01/02/2024", "02/02/2024"), {"unit": "day-first"}, ("2024-02-01", "2024-02-02")),
        (("01/02/2024", "02/02/2024"), {"unit": "month-first"}, ("2024-01-02", "2024-02-02")),
        (("19737", "19738"), {"unit": "days"}, ("2024-01-15", "2024-01-16")),
        (("45306", "45307.5"), {"unit": "excel"}, ("2024-01-15", "2024-01-16T12")),
        (("86400", "172800"), {"unit": "s"}, ("1970-01-02", "1970-01-03")),
    ],
)
def test_zone_and_unit_say_how_times_are_written(tmp_path, cells, options, times):
    path = written(tmp_path, f"timestamp,value\n{cells[0]},1\n{cells[1]},2\n")
    found = [iso_utc(int(time)) for time in read_series(path, table_options(options)).times_ns]
    assert all(expected in time for expected, time in zip(times, found, strict=True)), found


def test_the_order_of_rows_resolves_the_repeated_hour_of_autumn(tmp_path):
    clock = ["01:00", "01:30", "01:00", "01:30", "02:00"]
    rows = [f"2024-11-03 {time},{row}" for row, time in enumerate(clock)]
    path = written(tmp_path, "\n".join(["time,value", *rows]) + "\n")
    series = read_series(path, TableOptions(zone="America/New_York"))
    assert np.diff(series.times_ns).tolist() == [30 * 60 * 10**9] * 4 and series.target.tolist() == [0, 1, 2, 3, 4]


def test_the_option_decimal_resolves_ambiguous_cells(tmp_path):
    path = written(tmp_path, 'date,close\n2024-01-01,999\n2024-01-02,"1,234"\n')
    assert read_series(path, TableOptions(decimal=".")).target.tolist() == [999, 1234]
    assert read_series(path, TableOptions(decimal=",")).target.tolist() == [999, 1.234]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"zone": "Mars/Olympus"}, "'Mars/Olympus', which is not an IANA time zone"),
        ({"decimal": ";"}, r"give '\.' or ','"),
        ({"unit": "weeks"}, "give one of s, ms, us, ns"),
    ],
)
def test_invalid_options_are_refused(options, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        table_options(options)


def test_many_columns_with_names_like_dates_are_read_in_seconds(tmp_path):
    names = ",".join(f"price {number:04d} 20" for number in range(1000))
    rows = [f"2024-01-{day:02d}," + ",".join(str(day + number % 7) for number in range(1000)) for day in range(1, 29)]
    began = time.process_time()
    series = read_series(written(tmp_path, "\n".join([f"timestamp,{names}", *rows]) + "\n"))
    assert len(series.values) == 1000 and time.process_time() - began < 20


def test_a_file_that_is_too_wide_or_too_long_is_refused_before_it_is_read(tmp_path, monkeypatch):
    wide = ",".join(["time", *(f"c{number}" for number in range(50_000))])
    path = written(tmp_path, wide + "\n" + ("2024-01-01" + ",1" * 50_000 + "\n") * 3)
    with pytest.raises(InvalidInputError, match="more than 2000 columns"):
        read_contents(path)
    times = pl.Series("time", ["2024-01-01", "2024-01-02", "2024-01-03"])
    pl.DataFrame([times, *(pl.Series(f"c{n}", [1, 1, 2]) for n in range(3000))]).write_parquet(tmp_path / "w.parquet")
    with pytest.raises(InvalidInputError, match="has 3 rows of 3001 columns, and at most 2000 columns"):
        read_contents(tmp_path / "w.parquet")
    options = TableOptions(time="time", value="c7", series="c8")
    assert [len(series) for series in read_contents(tmp_path / "w.parquet", options).series] == [2]
    monkeypatch.setattr(pl, "read_parquet", lambda *_, **__: pytest.fail("it was read"))
    long = pl.DataFrame({"t": pl.zeros(40_000_000, dtype=pl.Int8, eager=True)})
    long.write_parquet(tmp_path / "long.parquet")
    with pytest.raises(InvalidInputError, match="has 40000000 rows, and at most 10000000 can be read"):
        read_contents(tmp_path / "long.parquet")
    few = long.head(9_000_000).with_columns(pl.col("t").alias(f"v{number}") for number in range(12))
    few.write_parquet(tmp_path / "cells.parquet")
    with pytest.raises(
        InvalidInputError, match="has 9000000 rows of 13 columns, and at most 2000 columns and 100000000 cells"
    ):
        read_contents(tmp_path / "cells.parquet")


def test_repeated_command_line_options_add_up_and_duplicates_are_refused(tmp_path, capsys):
    rows = [f"2024-07-01 {hour:02d}:{minute:02d},{minute},{hour}" for hour in range(10) for minute in range(60)]
    (tmp_path / "two.csv").write_text("\n".join(["time,one,other", *rows]) + "\n")
    words = ["predict", "finance", str(tmp_path / "two.csv"), "--out", str(tmp_path / "out")]
    assert main([*words, "--option", "value=other", "--option", "zone=Europe/Berlin"]) == 0
    output = "".join(capsys.readouterr().out.splitlines()[-3:])
    assert all(file.name in output.partition("Wrote into")[2] for file in (tmp_path / "out").iterdir())
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    series = result["series"]
    assert series["column"] == "other" and series["start"].startswith("2024-06-30T22:00")
    assert main([*words, "--option", "value=other", "--option", "value=one"]) == 2
    assert "--option value is given twice" in capsys.readouterr().err


def test_the_command_line_prints_each_note_once(tmp_path, capsys):
    rows = [f"2024-07-01 {hour:02d}:{minute:02d},{minute},{hour}" for hour in range(10) for minute in range(60)]
    (tmp_path / "two.csv").write_text("\n".join(["time,one,other", *rows]) + "\n")
    words = ["predict", "finance", str(tmp_path / "two.csv"), "--out", str(tmp_path / "out")]
    assert main([*words, "--option", "threshold=0.05"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    notes = result["series"]["notes"]
    assert result["events"] and notes and [lines.count(note) for note in notes] == [1] * len(notes)
