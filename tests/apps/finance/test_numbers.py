"""Numbers as people and spreadsheets write them: thousands, decimal marks, missing values, and a typo among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from apps.finance.adapters.numbers import read_column
from apps.finance.adapters.options import DEFAULT_OPTIONS, TableOptions
from apps.finance.types import Series
from shared.errors import InvalidInputError
from tests.apps.finance.reading import read_series


def read(
    folder: Path, cells: list[str], options: TableOptions = DEFAULT_OPTIONS, mark: str = ";", head: str = "date;close"
) -> Series:
    """A file with ``cells`` of one or more columns below ``head``, separated by ``mark``."""
    rows = [head, *(f"2024-01-{day:02d};{cell}" for day, cell in enumerate(cells, start=1))]
    (folder / "a.csv").write_text("\n".join(row.replace(";", mark) for row in rows) + "\n", encoding="utf-8")
    return read_series(folder / "a.csv", options)


@pytest.mark.parametrize(
    ("cells", "mark"),
    [
        (["12 345,67", "999,5", "1 234 567"], ";"),
        (["12\u00a0345,67", "999,5", "1\u00a0234\u00a0567"], ";"),
        (["12\u202f345,67 €", "999,5", "1\u202f234\u202f567"], "\t"),
        (["12'345.67", "999.5", "1'234'567"], ","),
        (["12’345.67", "999.5", "1’234’567"], ";"),
    ],
)
def test_spaces_and_apostrophes_may_separate_thousands(tmp_path, cells, mark):
    assert read(tmp_path, cells, mark=mark).target.tolist() == [12345.67, 999.5, 1234567]


@pytest.mark.parametrize("word", ["#N/A N/A", "#N/A", "#N/A Field Not Applicable", "#n/a n/a"])
def test_bloombergs_words_for_no_value_are_missing(tmp_path, word):
    np.testing.assert_array_equal(read(tmp_path, ["1.5", word, "2.5"], head="Date;PX_LAST").target, [1.5, np.nan, 2.5])


@pytest.mark.parametrize("cells", [["1.234;0,5", "2.345;1,25", "3.456;2"], ["1.234;1.234.567", "2.345;5", "3.456;8"]])
@pytest.mark.parametrize("mark", ["\t", "|", ";"])
def test_points_separate_thousands_if_another_column_has_decimal_commas(tmp_path, mark, cells):
    with pytest.raises(InvalidInputError, match=r"'1\.234' in line 2, which may be 1234 or 1\.234.*option decimal"):
        read(tmp_path, cells, mark=mark, head="date;close;x")
    assert read(tmp_path, cells, TableOptions(decimal=","), mark, "date;close;x").target[0] == 1234


@pytest.mark.parametrize(
    ("cells", "mark", "expected"),
    [
        (["12.002,51;98.953", "9.999,99;950", "10.000,5;4.500"], ";", [98953, 950, 4500]),
        (["12,002.51;98,953", "9,999.99;950", "10,000.5;4,500"], ";", [98953, 950, 4500]),
        (["12,002.51\t98,953", "9,999.99\t950", "10,000.5\t4,500"], "\t", [98953, 950, 4500]),
    ],
)
def test_a_column_with_both_marks_says_how_the_other_columns_separate_thousands(tmp_path, cells, mark, expected):
    """A broker's prices and volumes: 98,953 in a file with semicolons was read as a number with a decimal comma."""
    series = read(tmp_path, cells, mark=mark, head=mark.join(("date", "close", "volume")))
    assert series.target[0] == 12002.51 and series.values["volume"].tolist() == expected


def test_columns_with_different_marks_leave_a_third_one_ambiguous(tmp_path):
    cells = ["12.002,51;98,953.5;1.234", "9.999,99;950;1.235", "10.000,5;4,500.5;1.236"]
    with pytest.raises(InvalidInputError, match=r"'1\.234' in line 2, which may be 1234 or 1\.234.*option decimal"):
        read(tmp_path, cells, TableOptions(value="x"), ";", "date;close;volume;x")


def test_points_separate_thousands_in_tab_separated_files_with_german_dates(tmp_path):
    (tmp_path / "a.csv").write_text("Datum\tKurs\n01.01.2024\t1.234\n02.01.2024\t1.235\n")
    with pytest.raises(InvalidInputError, match=r"'1\.234' in line 2, which may be 1234 or 1\.234.*option decimal"):
        read_series(tmp_path / "a.csv")
    assert read(tmp_path, ["1.234", "1.235"], mark="\t").target[0] == 1.234
    assert read(tmp_path, ["1.234,56", "1.234"], mark="\t").target.tolist() == [1234.56, 1234]


@pytest.mark.parametrize(
    ("usual", "typo"), [("1,23{}.50", "1234,50"), ("1,23{}.50", "1.234.50"), ("12{}.5", "12,5"), ("1 23{},5", "12.5")]
)
@pytest.mark.parametrize("line", [2, 5])
def test_the_error_names_the_cell_that_differs_from_the_others(tmp_path, usual, typo, line):
    cells = [usual.format(day) for day in range(8)]
    cells[line - 2] = typo
    valid = f"{usual.format(int(line == 2))!r} in line {2 + int(line == 2)}"
    with pytest.raises(InvalidInputError) as raised:
        read(tmp_path, [f'"{cell}"' for cell in cells], mark=",")
    found = f"a.csv: column 'close' holds {typo!r} in line {line}, which is not a number like {valid}; correct the file"
    assert str(raised.value).startswith(found)


@pytest.mark.parametrize("last", ["Volume", "Delta"])
def test_a_typo_in_the_intended_column_is_refused_instead_of_scoring_another(tmp_path, last):
    cells = [f"{'1O5' if day == 4 else 100 + day}.5;{day}" for day in range(8)]
    with pytest.raises(InvalidInputError, match=r"'Exposure' holds '1O5\.5' in line 6.*another column with the option"):
        read(tmp_path, cells, mark=",", head=f"date;Exposure;{last}")
    series = read(tmp_path, cells, TableOptions(value=last), ",", f"date;Exposure;{last}")
    assert series.column == last and any("'Exposure' was left out: it holds '1O5.5'" in note for note in series.notes)


@pytest.mark.parametrize("later", ["{:02d}.02.2024", "{:02d}.02.2024 00:00", "2024/02/{:02d}"])
def test_a_second_column_of_dates_is_no_column_of_numbers(tmp_path, later):
    cells = [f"{later.format(day)};{100 + day}" for day in range(1, 9)]
    series = read(tmp_path, cells, head="Datum von;Datum bis;Preis")
    assert list(series.values) == ["Preis"]
    assert not any("Datum bis" in note for note in series.notes)


@pytest.mark.parametrize(
    ("cells", "european"),
    [
        (("1,234.50", "(1,234.50)", "($0.25)"), False),
        (("1.234,50", "(1.234,50)", "(0,25)"), True),
        (("(1234.50)", "(1234.50)", "(0.25)"), False),
    ],
)
def test_amounts_in_brackets_are_negative(cells, european):
    numbers, fault = read_column(pl.Series("pnl", cells), np.arange(2, 5), None, european)
    assert fault == "" and numbers is not None
    assert numbers[1:].tolist() == [-1234.5, -0.25]


def test_a_wide_table_of_plain_numbers_takes_few_operations_of_the_thread_pool(tmp_path, monkeypatch):
    """polars computes most operations on a column in a thread pool: 7,500 of them took 80 s on a busy machine."""
    columns, calls = 300, []
    rows = ["time," + ",".join(f"c{column}" for column in range(columns))]
    rows += [f"2024-01-{day:02d}," + ",".join(f"{day}.{column}" for column in range(columns)) for day in range(1, 20)]
    (tmp_path / "wide.csv").write_text("\n".join(rows))
    select = pl.DataFrame.select_seq  # by which polars computes an operation on a column
    monkeypatch.setattr(pl.DataFrame, "select_seq", lambda *given, **named: calls.append(1) or select(*given, **named))
    series = read_series(tmp_path / "wide.csv")
    assert len(series.values) == columns and series.values["c7"].tolist()[:2] == [1.7, 2.7]
    assert len(calls) < columns
