"""CSV and Parquet files as users have them, and the errors for files that are refused."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.finance.adapters import read_contents
from apps.finance.adapters.options import TableOptions
from apps.finance.outputs.series_csv import write_csv
from apps.finance.types import Series, iso_utc, usual_interval_ns
from shared.errors import InvalidInputError
from tests.apps.finance.reading import read_series, read_times

NOON_NS = 1_704_110_400 * 10**9  # 2024-01-01 12:00 UTC


def written(folder: Path, text: str | bytes, name: str = "series.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "first",
    [
        "2024-01-01 12:00:00",
        "2024-01-01T12:00:00",
        "2024-01-01T12:00:00Z",
        "2024-01-01 12:00:00 UTC",
        "2024-01-01T13:00:00+01:00",
        "2024-01-01 07:00:00-05",
        "2024-01-01 20:00:00+08:00",
        "2024-01-01 12:00",
        "2024-01-01 12:00:00.000000",
        "2024/01/01 12:00:00",
        "20240101 12:00:00",
        "01.01.2024 12:00",
        "1704110400",
        "1704110400.0",
        "1704110400000",
        "1704110400000000",
        "1704110400000000000",
    ],
)
def test_noon_is_read_in_many_notations(first):
    assert read_times(pl.Series([first, first])).times_ns.tolist() == [NOON_NS] * 2


def test_a_file_name_in_another_encoding_than_utf_8_is_refused(tmp_path):
    path = written(tmp_path, "time,value\n2024-01-01,1\n", os.fsdecode("价格.csv".encode("gbk")))
    with pytest.raises(InvalidInputError, match=r"'\\udcbc.*csv' is not in UTF-8.*rename it"):
        read_contents(path)


def test_plain_dates_and_dates_with_the_day_or_the_month_first():
    midnight = NOON_NS - 12 * 3600 * 10**9
    day = 86400 * 10**9
    for texts, days in (
        (["2024-01-01", "2024-01-31"], 30),
        (["20240101", "20240131"], 30),
        (["01/01/2024", "31/01/2024"], 30),
        (["01/01/2024", "01/31/2024"], 30),
        (["1.1.2024", "31.1.2024"], 30),
    ):
        assert read_times(pl.Series(texts)).times_ns.tolist() == [midnight, midnight + days * day]
    with pytest.raises(InvalidInputError, match=r"ambiguous.*2024-01-31"):
        read_times(pl.Series(["01/02/2024", "02/02/2024"]))


def test_the_column_types_of_parquet():
    noon = datetime.datetime(2024, 1, 1, 12)
    for unit in ("ms", "us", "ns"):
        assert read_times(pl.Series([noon], dtype=pl.Datetime(unit))).times_ns.tolist() == [NOON_NS]
    zoned = pl.Series([noon], dtype=pl.Datetime("us")).dt.replace_time_zone("America/New_York")
    assert read_times(zoned).times_ns.tolist() == [NOON_NS + 5 * 3600 * 10**9]
    assert read_times(pl.Series([noon.date()])).times_ns.tolist() == [NOON_NS - 12 * 3600 * 10**9]


@pytest.mark.parametrize(
    "far",
    ["9999-12-31", "1816-03-29", "9999-12-31 23:59:59", "9999-12-31T00:00:00Z", "31.12.9999 00:00"],
)
def test_a_date_beyond_1900_to_2200_is_refused_and_never_wraps_around(tmp_path, far):
    near = {"31.12.9999 00:00": "01.01.2024 00:00"}.get(far, "2024-01-01" + far[10:])
    path = written(tmp_path, f"date,close\n{near},1\n{far},2\n")
    with pytest.raises(
        InvalidInputError, match=rf"series\.csv, column 'date', line 3: '{far}' is not between 1900 and 2200"
    ):
        read_series(path)


def test_a_far_date_of_parquet_is_refused_too():
    for column in (
        pl.Series([datetime.date(2024, 1, 1), datetime.date(9999, 12, 31)]),
        pl.Series([datetime.datetime(2024, 1, 1), datetime.datetime(9999, 12, 31)]),
        pl.Series([datetime.datetime(2024, 1, 1), datetime.datetime(9999, 12, 31)]).dt.replace_time_zone("UTC"),
    ):
        with pytest.raises(InvalidInputError, match=r"line 3: '9999-12-31.*is not between 1900 and 2200"):
            read_times(column)


def test_text_keeps_its_nanoseconds():
    assert read_times(pl.Series(["2024-01-01 12:00:00.000000001"] * 2)).times_ns.tolist() == [NOON_NS + 1] * 2


@pytest.mark.parametrize(
    "text",
    [
        "timestamp,value\n2024-01-01 12:00:00,1.5\n2024-01-01 12:05:00,2.5\n",
        "\ufefftimestamp,value\r\n2024-01-01 12:00:00,1.5\r\n2024-01-01 12:05:00,2.5\r\n",
        'Timestamp;Value\n"2024-01-01 12:00:00";"1,5"\n"2024-01-01 12:05:00";"2,5"\n',
        "time\tvalue\n1704110400\t1.5\n1704110700\t2.5\n",
        "\n\ntimestamp,value\n2024-01-01 12:00:00,1.5\n2024-01-01 12:05:00,2.5",
        "Date,Time,Value\n2024-01-01,12:00:00,1.5\n2024-01-01,12:05:00,2.5\n",
    ],
)
def test_one_series_in_many_dialects(tmp_path, text):
    series = read_series(written(tmp_path, text))
    assert series.times_ns.tolist() == [NOON_NS, NOON_NS + 300 * 10**9]
    assert series.target.tolist() == [1.5, 2.5]
    assert series.interval_ns == 300 * 10**9 and series.notes == ()


def test_bars_are_scored_by_their_close_by_default(tmp_path):
    path = written(tmp_path, "Date,Open,High,Low,Close,Volume\n2024-01-01,1,3,0.5,2,10\n2024-01-02,2,4,1.5,3,20\n")
    assert read_series(path).column == "Close"
    assert read_series(path, TableOptions(value="volume")).target.tolist() == [10, 20]
    assert list(read_series(path).values) == ["Open", "High", "Low", "Close", "Volume"]


def test_missing_values_are_nan_and_nothing_else_is(tmp_path):
    series = read_series(
        written(tmp_path, "t,time,value\n1,2024-01-01,1\n2,2024-01-02,\n3,2024-01-03,NaN\n4,2024-01-04,-\n")
    )
    np.testing.assert_array_equal(series.target, [1, np.nan, np.nan, np.nan])


def test_unsorted_and_repeated_times_are_corrected_with_a_note(tmp_path):
    series = read_series(written(tmp_path, "time,value\n2024-01-03,3\n2024-01-01,1\n2024-01-03,4\n2024-01-02,2\n"))
    assert series.target.tolist() == [1, 2, 4]
    assert "sorted" in series.notes[0] and "1 row had the same time as another" in series.notes[1]


@pytest.mark.parametrize(
    ("words", "days"), [("AAA", (1, 2, 2)), ("xyz", (1, 2, 2)), ("a a", (1, 1, 2)), ("aba", (1, 2, 3))]
)
def test_repeated_times_without_a_column_that_names_series_stay_repeated_times(tmp_path, words, days):
    rows = [f"2024-01-0{day},{word.strip()},{day}" for day, word in zip(days, words, strict=True)]
    series = read_series(written(tmp_path, "\n".join(["date,note,close", *rows])))
    assert len(series) == len(set(days))


CHINESE = "日期,开盘,最高,最低,收盘,成交量\n2024-01-01,1,3,0.5,2,10\n2024-01-02,2,4,1.5,3,20\n"


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "utf-8", "utf-8-sig", "utf-16"])
def test_chinese_bars_in_the_encodings_they_come_in(tmp_path, encoding):
    path = written(tmp_path, CHINESE.encode(encoding))
    series = read_series(path)
    assert list(series.values) == ["开盘", "最高", "最低", "收盘", "成交量"]
    assert series.column == "收盘" and series.target.tolist() == [2, 3]
    assert read_series(path, TableOptions(value="成交量")).column == "成交量"
    both = "时间,日期,收盘价\n12:00:00,2024-01-01,1\n12:05:00,2024-01-01,2\n".encode(encoding)
    assert read_series(written(tmp_path, both)).times_ns.tolist() == [NOON_NS, NOON_NS + 300 * 10**9]


@pytest.mark.parametrize("label", ["Größe", "Température °C", "Prix (€)", "Évolution", "GRÖSSE", "Año", "Käufe Stück"])
def test_western_headers_do_not_become_chinese(tmp_path, label):
    text = f"Datum;{label}\n2024-01-01;1,5\n2024-01-02;2,5\n"
    assert read_series(written(tmp_path, text.encode("cp1252"))).column == label


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (("10,003.77", "999.50"), [10003.77, 999.5]),
        (("1,234", "10,003.77"), [1234, 10003.77]),
        (("1,234,567", "-2,000"), [1234567, -2000]),
        (("$1,234.50", "-$10,003.77"), [1234.5, -10003.77]),
        (("10.003,77", "999,5"), [10003.77, 999.5]),
        (("0,123", "1,234"), [0.123, 1.234]),
        (("1.234,567", "1,234"), [1234.567, 1.234]),
    ],
)
def test_the_column_distinguishes_thousands_and_decimal_marks(tmp_path, cells, numbers):
    path = written(tmp_path, 'date,close\n2024-01-01,"{}"\n2024-01-02,"{}"\n'.format(*cells))
    assert read_series(path).target.tolist() == numbers


def test_an_ambiguous_comma_is_refused_except_in_files_with_semicolons(tmp_path):
    with pytest.raises(InvalidInputError, match=r"'close' holds '1,234' in line 3, which may be 1234 or 1\.234"):
        read_series(written(tmp_path, 'date,close\n2024-01-01,999\n2024-01-02,"1,234"\n'))
    assert read_series(written(tmp_path, "date;close\n2024-01-01;1,234\n2024-01-02;2,5\n")).target.tolist() == [
        1.234,
        2.5,
    ]
    assert read_series(written(tmp_path, "date;close\n2024-01-01;1,234\n2024-01-02;2,345\n")).target[0] == 1.234
    with pytest.raises(InvalidInputError, match=r"holds '10\.003,77' in line 3, which is not a number like '10,003"):
        read_series(written(tmp_path, 'date,close\n2024-01-01,"10,003.77"\n2024-01-02,"10.003,77"\n'))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("timestamp,value\n", "has no rows"),
        ("timestamp,value\n2024-01-01,1\n", "a single row"),
        ("timestamp\n2024-01-01\n", "single column"),
        ("a,b\n1.5,2\n2.5,3\n", "no column of times among .*'a', 'b'"),
        ("timestamp,value\n2024-01-01,1\nyesterday,2\n", "line 3: 'yesterday' is not a time"),
        ("timestamp,value\n2024-01-01,1\n,2\n2024-01-02,2\n", "line 3: 'None' is not a time; fill in the cell"),
        ("timestamp,value\n2024-01-01,1\n2024-01-02,abc\n2024-01-03,3\n", "'value' holds 'abc' in line 3"),
        ("timestamp,value\n2024-01-01,\n2024-01-02,\n", "'value' holds no number"),
        ("timestamp,word\n2024-01-01,a\n2024-01-02,b\n", "no column of numbers"),
        ("timestamp,value\n2024-01-01,1\n2024-01-01,2\n", "all rows have the same time"),
        ("timestamp,value\n2024-01-01,1\n2024-01-02,2,3\n", "line 3 has 3 cells but the header has 2"),
        ("34200.1,1,100\n34200.2,1,101\n", "no header line"),
        ("timestamp,value\n1e30,1\n1e30,2\n", "line 2: '1e30' may be seconds, days or a count, not clearly a time"),
        (b"PK\x03\x04\x00\x00\x00\x00", "is not a text file"),
    ],
)
def test_bad_files_are_refused_with_what_and_where(tmp_path, text, sentence):
    with pytest.raises(InvalidInputError, match=sentence) as raised:
        read_series(written(tmp_path, text))
    assert "series.csv" in str(raised.value)


def test_the_error_for_a_missing_column_lists_the_columns(tmp_path):
    path = written(tmp_path, "time,close,volume\n2024-01-01,1,10\n2024-01-02,2,20\n")
    with pytest.raises(InvalidInputError, match="called 'open'; its number columns are: 'close', 'volume'"):
        read_series(path, TableOptions(value="open"))
    with pytest.raises(InvalidInputError, match="does not exist"):
        read_series(tmp_path / "none.csv")


def test_a_csv_file_of_very_many_lines_is_refused_before_it_is_read(tmp_path):
    for end in (b"\n", b"\r\n", b"\r"):
        path = written(tmp_path, b"time,value" + end + (b"2024-01-01,1.5" + end) * 3_000_000)
        began = time.process_time()
        with pytest.raises(
            InvalidInputError, match=r"series\.csv has 3000001 lines, and at most 2500000 can be read; split it"
        ):
            read_series(path)
        assert time.process_time() - began < 1


def test_parquet(tmp_path):
    times = [datetime.datetime(2024, 1, 1, 12), datetime.datetime(2024, 1, 1, 13)]
    pl.DataFrame({"ts": times, "close": [1.0, None], "name": ["a", "b"]}).write_parquet(tmp_path / "a.parquet")
    series = read_series(tmp_path / "a.parquet")
    assert series.times_ns.tolist() == [NOON_NS, NOON_NS + 3600 * 10**9]
    np.testing.assert_array_equal(series.target, [1.0, np.nan])
    with pytest.raises(InvalidInputError, match=r"bad\.parquet is not a readable Parquet file"):
        read_series(written(tmp_path, b"PAR1 nonsense", "bad.parquet"))


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 10**6), min_size=2, max_size=30),
    st.lists(st.one_of(st.floats(-1e12, 1e12), st.just(float("nan"))), min_size=30, max_size=30),
)
def test_what_is_written_is_read_again(tmp_path_factory, steps, cells):
    times = NOON_NS + np.cumsum(np.asarray(steps, np.int64)) * 10**9
    values = np.asarray(cells[: len(steps)])
    values[0] = 1.25
    series = Series(
        name="a", times_ns=times, values={"value": values}, column="value", interval_ns=usual_interval_ns(times)
    )
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    write_csv(path, series)
    restored = read_series(path)
    np.testing.assert_array_equal(restored.times_ns, series.times_ns)
    np.testing.assert_array_equal(restored.target, values)


def test_times_as_text():
    assert iso_utc(NOON_NS) == "2024-01-01T12:00:00Z"
    assert iso_utc(NOON_NS + 1_500_000) == "2024-01-01T12:00:00.0015Z"
    assert iso_utc(-1) == "1969-12-31T23:59:59.999999999Z"


@pytest.mark.realdata
def test_real_files_of_five_sources(data_root):
    folder = data_root / "finance"
    rows = {
        "btc/btc-perp-20211231-20220201_1m.csv": (45031, "close"),
        "fxcm/gbpusd-m1-bid-2012.csv": (30117, "close"),
        "yfinance_repair/CNE-L-1d-bad-stock-split.csv": (10, "Adj Close"),
        "nab/data/realTraffic/TravelTime_387.csv": (2500, "value"),
    }
    for name, (number, column) in rows.items():
        series = read_series(folder / name)
        assert (len(series), series.column) == (number, column)
        assert (np.diff(series.times_ns) > 0).all()
    with pytest.raises(InvalidInputError, match="no header line"):
        read_series(folder / "lobster_aapl/message_50_0930_0945.csv")


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e999"])
def test_infinite_values_are_missing_and_counted(tmp_path, cell):
    series = read_series(written(tmp_path, f"time,value\n2024-01-01,1\n2024-01-02,{cell}\n2024-01-03,3\n"))
    np.testing.assert_array_equal(series.target, [1, np.nan, 3])
    assert series.notes == ("column 'value': 1 infinite value counts as missing",)


def test_of_rows_with_the_same_time_one_with_a_value_is_kept(tmp_path):
    series = read_series(written(tmp_path, "time,value\n2024-01-01,1\n2024-01-02,2\n2024-01-02,\n2024-01-03,3\n"))
    assert series.target.tolist() == [1, 2, 3]
