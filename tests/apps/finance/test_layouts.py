"""Layouts of exported files: titles, further header lines, totals, empty columns, decimal marks and units."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from apps.finance.adapters import read_contents
from apps.finance.adapters.options import DEFAULT_OPTIONS, TableOptions
from apps.finance.types import iso_utc
from shared.errors import InvalidInputError
from tests.apps.finance.reading import read_series


def read(folder, text: str | bytes, options: TableOptions = DEFAULT_OPTIONS):
    path = folder / "series.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_series(path, options)


ROWS = "2024-01-01,1.5\n2024-01-02,2.5\n2024-01-03,3.5\n"


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("https://example.org/export\ndate,close\n" + ROWS, "the first line was left out: it precedes line 2"),
        ("Prices of AAPL\nmade by hand\n\ndate,close\n" + ROWS, "the first 2 lines were left out"),
        ("# a comment, with a comma\ndate,close\n" + ROWS, "the first line was left out"),
        ("Symbol,AAPL\nCurrency,USD\n\ndate,close\n" + ROWS, "the first 2 lines were left out"),
        (
            "sep=;\ndate;close\n2024-01-01;1,5\n2024-01-02;2,5\n2024-01-03;3,5\n",
            "the first line was left out: it precedes line 2",
        ),
        ("date,close\n(UTC),(EUR)\n" + ROWS, "1 further line of names below the header"),
        ("date,close\n" + ROWS + "Total,7.5\n", "everything from line 5 on was left out: 'Total' is not a time"),
        ("date,close\n" + ROWS + "\n# source: a bank\n", "from line 6 on was left out"),
        ("date,close\n" + ROWS + ",7.5\n", "everything from line 5 on was left out: an empty cell is not a time"),
    ],
)
def test_text_around_the_rows_is_left_out_with_a_note(tmp_path, text, note):
    series = read(tmp_path, text)
    assert series.target.tolist() == [1.5, 2.5, 3.5] and series.column == "close"
    assert note in series.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        "date,close,\n2024-01-01,1.5,\n2024-01-02,2.5,\n2024-01-03,3.5,\n",
        "date,close,,\n2024-01-01,1.5,,\n,,,\n2024-01-02,2.5,,\n2024-01-03,3.5,,\n,,,\n",
        "#date,close\n" + ROWS,
        ",date,close\n0,2024-01-01,1.5\n1,2024-01-02,2.5\n2,2024-01-03,3.5\n",
        "date,close\r" + ROWS.replace("\n", "\r"),
        ("date,close\n" + ROWS).encode("utf-16"),
    ],
)
def test_harmless_oddities_are_read_without_a_note(tmp_path, text):
    series = read(tmp_path, text)
    assert series.target.tolist() == [1.5, 2.5, 3.5]
    assert series.notes == ()


@pytest.mark.parametrize("header", ["Unnamed: 0,close", ",0", "when,close"])
def test_a_time_column_found_by_its_cells_is_noted(tmp_path, header):
    series = read(tmp_path, f"{header}\n" + ROWS)
    assert series.target.tolist() == [1.5, 2.5, 3.5]
    name = header.split(",")[0]
    which = f"column {name!r}" if name else "the first column, which has no name,"
    assert series.notes == (f"{which} was taken as the times; the option 'time' selects another",)
    assert read(tmp_path, f"{header}\n" + ROWS, TableOptions(time=header.split(",")[0] or None)).target[0] == 1.5


def test_two_header_lines_make_column_names_unique(tmp_path):
    text = "Price,Close,Close,Volume\nTicker,AAPL,MSFT,AAPL\nDate,,,\n" + "".join(
        f"2024-01-{day:02d},{day},{day + 100},{9 * day}\n" for day in range(2, 9)
    )
    series = read(tmp_path, text)
    assert list(series.values) == ["Close AAPL", "Close MSFT", "Volume"] and series.column == "Close AAPL"
    assert read(tmp_path, text, TableOptions(value="close msft")).target[0] == 102


def test_a_terminals_chinese_export(tmp_path):
    text = "600519 贵州茅台 日线 前复权\n      日期\t    开盘\t    收盘\t    成交量\n"
    text += "".join(f"2024/01/{day:02d}\t17{day}.00\t16{day}.50\t{day}000\n" for day in range(10, 20))
    series = read(tmp_path, (text + "#数据来源:通达信\n").encode("gbk"))
    assert series.column == "收盘" and series.target[0] == 1610.5 and len(series) == 10
    assert read(tmp_path, text.encode("gbk"), TableOptions(value="成交量")).target[0] == 10000


@pytest.mark.parametrize("line", [0, 4, 8])
@pytest.mark.parametrize("date", ["2024-01-{:02d}", '"Jan {}, 2024"'])
def test_a_short_row_is_refused_with_its_line_number(tmp_path, line, date):
    rows = [f"{date.format(day)},{day},{day + 2},{day + 1}" for day in range(1, 11)]
    rows[line] = rows[line].rsplit(",", 1)[0]
    sentence = f"line {line + 2} has 3 cells but the header has 4; keep the separators of missing values"
    with pytest.raises(InvalidInputError, match=sentence):
        read(tmp_path, "\n".join(["date,open,high,close", *rows]) + "\n")


def test_empty_and_omitted_last_cells_are_missing_values(tmp_path):
    rows = [f"2024-{day // 28 + 1:02d}-{day % 28 + 1:02d},{day}" for day in range(60)]
    rows = [row + ("," if day < 3 else "" if day < 20 else ",7") for day, row in enumerate(rows)]
    series = read(tmp_path, "\n".join(["date,close,volume", *rows[:25], "", *rows[25:]]) + "\n\n")
    assert np.isnan(series.values["volume"][:20]).all() and series.values["volume"][20] == 7
    assert series.target.tolist() == list(range(60))
    series = read(tmp_path, "date\tclose\tvolume\n2024-01-01\t1\t\n2024-01-02\t\t\n2024-01-03\t3\t7\n")
    np.testing.assert_array_equal(series.values["volume"], [np.nan, np.nan, 7])


@pytest.mark.parametrize(
    ("below", "first"),
    [
        ("Total,7.5", "Total"),
        ("Total 2024,7.5", "Total 2024"),
        ('\nSource: Refinitiv\n"Downloaded 31-Jan-2024 09:30"', "Source: Refinitiv"),
        ("\n\nSource: Refinitiv, 31.01.2024", "Source: Refinitiv"),
        ("Data by a bank, a broker, and others, 2024", "Data by a bank"),
        ("# exported 2024-02-01", "# exported 2024-02-01"),
        ("(c) 2024, a bank", "(c) 2024"),
        ("数据来源:2024年", "数据来源:2024年"),
    ],
)
def test_totals_and_sources_below_the_rows_are_left_out_also_with_numbers_and_commas(tmp_path, below, first):
    series = read(tmp_path, f"date,close\n{ROWS}{below}\n")
    line = 5 + len(below) - len(below.lstrip("\n"))
    assert series.target.tolist() == [1.5, 2.5, 3.5]
    assert series.notes == (f"everything from line {line} on was left out: {first!r} is not a time",)


def test_rows_that_begin_with_their_series_name_are_not_a_footer(tmp_path):
    rows = [f"{name},2024-01-{day:02d},{day}" for name in ("0700", "AAPL") for day in range(1, 6)]
    (tmp_path / "a.csv").write_text("\n".join(["code,date,close", *rows]) + "\n")
    assert [len(series) for series in read_contents(tmp_path / "a.csv").series] == [5, 5]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("AAPL,2024-01-01,185.0\nAAPL,2024-01-02,186.0\n", "no header line"),
        ("2024-01-01,1.5\n2024-01-02,2.5\n", "no header line"),
        ("20240101 000000;1.5;1.6;1.4;1.5;0\n20240101 000100;1.5;1.6;1.4;1.5;0\n", "no header line"),
        ("country,2024-01-01,2024-01-02,2024-01-03\nDE,1,2,3\nFR,4,5,6\n", "no header line that names its columns"),
        ("date,close\n2024-01-01,1\n,2\n2024-01-02,3\n", "line 3: 'None' is not a time; fill in the cell"),
        (
            "date,close\n2024-01-01,1,5\n2024-01-02,2,5\n",
            "has 2 cells in its header in line 1 and 3 in most lines; if numbers or dates contain commas",
        ),
        (
            "date,close,volume\n2024-01-01,5 EUR/MWh,1\n2024-01-02,6 EUR/MWh,2\n",
            "'close' holds '5 EUR/MWh', which is no",
        ),
        (
            'date,close\n2024-01-01,"1\n2024-01-02,2\n2024-01-03,3\n',
            "line 2 has an unmatched quotation mark",
        ),
        ('date,close\n2024-01-01,1\n2024-01-02,5" pipe\n2024-01-03,3\n', "line 3 has an unmatched quotation mark"),
        ("date,close,volume\n2024-01-01,1\n2024-01-02,2\n", "has 3 cells in its header in line 1 and 2 in most lines"),
        (
            "date,close\n2024-01-01,1\n2024-01-02,1e308\n",
            "'close' holds '1e308' in line 3, which is not a usable number",
        ),
        ("<!DOCTYPE html>\n<title>Not, found</title>\n", "is HTML or JSON, not CSV"),
        ('[{"date":"2024-01-01","close":1},{"date":"2024-01-02","close":2}]', "is HTML or JSON, not CSV"),
        ("date,close\n2024-01-01,1\n\n2024-01-02,2\n2024-13-03,3\n", "line 5: '2024-13-03' is not a time"),
        ("a title\n\ndate,close\n2024-01-01,1\n2024-01-02,x1\n2024-01-03,3\n", "'x1' in line 5"),
        (
            "a title\ndate,close\n2024-01-01,1\n2024-01-02,2,3\n2024-01-03,3\n",
            "line 4 has 3 cells but the header has 2",
        ),
    ],
)
def test_ambiguous_files_are_refused(tmp_path, text, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["1,23,45,678.90", "2,345", "1"], [12345678.9, 2345, 1]),
        (["52.15M", "1.5K", "950"], [52.15e6, 1500, 950]),
        (["1.5亿", "2万", "3"], [1.5e8, 2e4, 3]),
        (["12.5 €", "3 €", "$4"], [12.5, 3, 4]),
        (["0.55%", "-1.2 %", "+3"], [0.55, -1.2, 3]),
        (["--", "#N/A", "1"], [np.nan, np.nan, 1]),
        (["1.234.567", "2.345", "1"], [1234567, 2345, 1]),
    ],
)
def test_numbers_as_people_write_them(tmp_path, cells, numbers):
    rows = "".join(f'2024-01-0{day},"{cell}"\n' for day, cell in enumerate(cells, start=1))
    np.testing.assert_array_equal(read(tmp_path, "date,value\n" + rows).target, numbers)


@pytest.mark.parametrize("cell", ["(1,23.50)", "1'2345.50", "1 23 567", "12.5 EUR"])
def test_numbers_in_unknown_formats_are_refused(tmp_path, cell):
    with pytest.raises(InvalidInputError, match=r"'value' holds .*, which is not a (usable )?number"):
        read(tmp_path, f'date,value\n2024-01-01,"{cell}"\n2024-01-02,2\n2024-01-03,3\n')


def test_points_between_semicolons_are_refused_without_the_option_decimal(tmp_path):
    text = "date;close;x\n2024-01-01;1.234;0,5\n2024-01-02;2.345;1,25\n2024-01-03;3.456;2\n"
    with pytest.raises(InvalidInputError, match=r"'1\.234' in line 2, which may be 1234 or 1\.234.*option decimal"):
        read(tmp_path, text)
    assert read(tmp_path, text, TableOptions(decimal=",")).target[0] == 1234
    assert read(tmp_path, text, TableOptions(decimal=".", value="close")).target[0] == 1.234


def test_a_null_column_and_nested_ones_do_no_harm(tmp_path):
    frame = pl.DataFrame(
        {
            "time": ["2024-01-01", "2024-01-02"],
            "none": [None, None],
            "list": [[1], [2]],
            "flag": [True, False],
            "v": [1.5, 2],
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    series = read_series(tmp_path / "a.parquet")
    assert series.column == "v" and series.target.tolist() == [1.5, 2]


def test_a_file_of_one_series_has_the_files_name(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("date,close\n" + ROWS)
    assert [series.name for series in read_contents(path).series] == ["one.csv"]


def test_the_incomplete_last_line_of_a_cut_file_is_left_out_with_a_note(tmp_path):
    whole = "date,close,volume\n" + "".join(f"2024-01-{day:02d},{day}00.5,7\n" for day in range(1, 10))
    series = read(tmp_path, whole + "2024-01-10,1")
    assert series.target[-1] == 900.5
    assert series.notes[0] == "the last line, 11, was left out: the file is cut off after 2 of 3 cells"
    assert read(tmp_path, whole + "2024-01-10,1\n").target[-1] == 1


def test_an_ambiguous_number_column_is_left_out_with_a_note_if_another_is_scored(tmp_path):
    text = 'date,close,volume\n2024-01-01,10.25,"1,234"\n2024-01-02,10.50,"2,345"\n2024-01-03,10.75,999\n'
    series = read(tmp_path, text)
    assert list(series.values) == ["close"] and "column 'volume' was left out" in series.notes[-1]
    assert read(tmp_path, text, TableOptions(value="volume", decimal=".")).target.tolist() == [1234, 2345, 999]


def test_columns_of_parquet_as_other_programs_write_them(tmp_path):
    minutes = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 1, 1, 1), "1m", eager=True)
    frame = pl.DataFrame(
        {"date": minutes.dt.date(), "time": minutes.dt.time(), "price": pl.Series([100.13] * 61, dtype=pl.Float32)}
    )
    frame.write_parquet(tmp_path / "a.parquet")
    series = read_series(tmp_path / "a.parquet")
    assert series.interval_ns == 60 * 10**9 and series.target[0] == 100.13


def test_columns_of_a_file_without_a_header_are_named_by_their_numbers(tmp_path):
    text = "2024.01.31,09:30,1,3,1,2,10\n2024.01.31,09:35,2,4,2,3,20\n"
    series = read(tmp_path, text, TableOptions(time="1+2", value="6"))
    assert series.target.tolist() == [2, 3] and series.interval_ns == 300 * 10**9
    with pytest.raises(InvalidInputError, match="no column of numbers called '8'"):
        read(tmp_path, text, TableOptions(time="1+2", value="8"))


PRICES = {("Close", "AAPL"): 100.0, ("Close", "BRK.B"): 300.0, ("Volume", "AAPL"): 9.0, ("Volume", "BRK.B"): 8.0}


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_two_level_columns_of_parquet_are_read_as_those_of_csv(tmp_path, reset, swapped):
    days = pd.date_range("2024-01-01", periods=9, name="Date")
    frame = pd.DataFrame({pair: start + np.arange(9.0) for pair, start in PRICES.items()}, index=days)
    frame = frame.swaplevel(axis=1) if swapped else frame
    frame.to_csv(tmp_path / "a.csv")
    (frame.reset_index() if reset else frame).to_parquet(tmp_path / "a.parquet")
    close = "BRK.B Close" if swapped else "Close BRK.B"
    for name in ("a.csv", "a.parquet"):
        series = read_series(tmp_path / name)
        assert series.column in ("AAPL Close", "Close AAPL") and len(series.values) == 4
        assert iso_utc(int(series.times_ns[0])) == "2024-01-01T00:00:00Z"
        assert read_series(tmp_path / name, TableOptions(value=close)).target[0] == 300
    only = frame.loc[:, [pair for pair in frame.columns if "AAPL" in pair]]
    only.to_parquet(tmp_path / "one.parquet")
    assert list(read_series(tmp_path / "one.parquet").values) == ["Close", "Volume"]
