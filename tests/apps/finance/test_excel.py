"""Workbooks in the style of banks: titles, merged cells, days as numbers, decimal commas in text, several sheets."""

from __future__ import annotations

import sys
import zipfile
from importlib.util import find_spec

import pytest

from apps.finance.adapters import excel, read_contents
from apps.finance.adapters.options import table_options
from apps.finance.types import iso_utc
from shared.errors import InvalidInputError
from tests.apps.finance.reading import read_series
from tests.apps.finance.workbooks import Day, write_workbook

FIRST = 45_292  # 2024-01-01
ROWS = [[Day(FIRST + row), 100 + row / 3] for row in range(40)]


def test_without_fastexcel_a_workbook_is_refused_with_what_to_install(tmp_path, monkeypatch):
    write_workbook(tmp_path / "a.xlsx", {"A": [["Date", "Close"], *ROWS]})
    monkeypatch.setitem(sys.modules, "fastexcel", None)
    with pytest.raises(
        InvalidInputError, match=r"a.xlsx: workbooks need the package fastexcel; install trivium\[excel\]"
    ):
        read_contents(tmp_path / "a.xlsx")


needs_fastexcel = pytest.mark.skipif(find_spec("fastexcel") is None, reason="trivium[excel] is not installed")


@needs_fastexcel
def test_the_first_sheet_with_a_table_is_read_below_its_titles_and_above_its_total(tmp_path):
    table = [["Market risk", None], [None, None], ["as of 31 Dec 2023", None], ["Date", "Close"], *ROWS, ["Total", 9.5]]
    write_workbook(tmp_path / "a.xlsx", {"Cover": [["Risk & Co."]], "P&L": table})
    contents = read_contents(tmp_path / "a.xlsx")
    (series,) = contents.series
    assert series.target.tolist() == [value for _, value in ROWS], "numbers are as they are kept"
    assert iso_utc(int(series.times_ns[-1])) == "2024-02-09T00:00:00Z"
    assert "sheet 'P&L' was read, the first of 2 with a table" in contents.notes
    assert any("'Total' is not a time" in note for note in contents.notes)


@needs_fastexcel
@pytest.mark.parametrize("column", ["Datum", "Date"])
def test_days_as_numbers_are_excels_and_amounts_may_be_text_with_decimal_commas(tmp_path, column):
    rows = [[float(FIRST + row), f"1.{row:03d},50"] for row in range(40)]
    write_workbook(tmp_path / "a.xlsx", {"A": [[column, "Kurs"], *rows]})
    series = read_series(tmp_path / "a.xlsx")
    assert (series.target[7], iso_utc(int(series.times_ns[7]))) == (1007.5, "2024-01-08T00:00:00Z")


@needs_fastexcel
def test_a_number_of_days_in_another_unit_stays_what_the_user_says(tmp_path):
    write_workbook(tmp_path / "a.xlsx", {"A": [["Date", "Close"], *[[20_000.0 + n, 1.0 + n] for n in range(40)]]})
    (series,) = read_contents(tmp_path / "a.xlsx", table_options({"unit": "days"})).series
    assert iso_utc(int(series.times_ns[0])) == "2024-10-04T00:00:00Z"


@needs_fastexcel
def test_merged_security_names_name_columns_or_series_side_by_side(tmp_path):
    merged = [[None, "SPX Index", None, "NDX Index", None], ["Dates", *["PX_LAST", "PX_VOLUME"] * 2]]
    merged += [[Day(FIRST + n), 1.0 + n, 5.0, 2.0 + n, "#N/A N/A" if n % 2 else 6.0] for n in range(40)]
    write_workbook(tmp_path / "a.xlsx", {"A": merged})
    values = read_series(tmp_path / "a.xlsx").values
    assert list(values) == ["SPX Index PX_LAST", "SPX Index PX_VOLUME", "NDX Index PX_LAST", "NDX Index PX_VOLUME"]
    beside = [["SPX Index", None, "NDX Index", None], ["Date", "PX_LAST"] * 2]
    beside += [[Day(FIRST + n), 1.0 + n, *([Day(FIRST + 2 * n), 2.0 + n] if n < 30 else [])] for n in range(40)]
    write_workbook(tmp_path / "b.xlsx", {"A": beside})
    first_series, second_series = read_contents(tmp_path / "b.xlsx").series
    assert (first_series.name, len(first_series), second_series.name, len(second_series)) == (
        "SPX Index",
        40,
        "NDX Index",
        30,
    )
    assert iso_utc(int(second_series.times_ns[-1])) == "2024-02-28T00:00:00Z"


@needs_fastexcel
@pytest.mark.parametrize(
    ("sheets", "sentence"),
    [
        ({"A": [["Hello"]]}, "a.xlsx, sheet 'A', has a single column"),
        ({"A": [["Date", "Note"], *[[Day(FIRST + n), "x"] for n in range(40)]]}, "no column of numbers to score"),
        ({"A": [["Date", "Close"], [Day(FIRST), 1.0], ["soon", 2.0], [Day(FIRST + 2), 3.0]]}, "line 3: 'soon' is not"),
    ],
)
def test_a_workbook_without_a_series_is_refused_by_its_name(tmp_path, sheets, sentence):
    write_workbook(tmp_path / "a.xlsx", sheets)
    with pytest.raises(InvalidInputError, match=sentence):
        read_contents(tmp_path / "a.xlsx")


@needs_fastexcel
def test_invalid_and_oversized_workbooks_are_refused(tmp_path):
    (tmp_path / "a.xlsx").write_text("Date,Close\n")
    with pytest.raises(InvalidInputError, match=r"a\.xlsx cannot be read as a zip"):
        read_contents(tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as archive:
        archive.writestr("letter.txt", "Dear all")
    with pytest.raises(InvalidInputError, match=r"b\.xlsx is not a readable workbook"):
        read_contents(tmp_path / "b.xlsx")
    write_workbook(tmp_path / "c.xlsx", {"A": [["Date", "Close"], *ROWS]})
    with zipfile.ZipFile(tmp_path / "c.xlsx") as old, zipfile.ZipFile(tmp_path / "d.xlsx", "w") as far:
        for name in old.namelist():
            last = b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'
            far.writestr(name, old.read(name).replace(b"</sheetData>", last))
    with pytest.raises(InvalidInputError, match="a sheet of 17179869184 cells, including empty ones"):
        read_contents(tmp_path / "d.xlsx")


@needs_fastexcel
@pytest.mark.parametrize(
    ("last", "folder"),
    [
        ('<row r="100"><c r="z100"><v>1</v></c></row>', "worksheets"),
        ('<row r="100">' + "<c><v>1</v></c>" * 26 + "</row>", "worksheets"),
        ('<row><c r="Z000000100"><v>1</v></c></row>', "worksheets"),
        ('<row r="100"><c r="Z100"><v>1</v></c></row>', "elsewhere"),
    ],
)
def test_a_sheet_of_too_many_cells_is_refused_however_it_states_them(tmp_path, monkeypatch, last, folder):
    """Cells may have lower-case references or none, numbers may begin with zeros, and sheets may be in any folder."""
    monkeypatch.setattr(excel, "_MAX_CELLS", 2000)
    write_workbook(tmp_path / "a.xlsx", {"A": [["Date", "Close"], *ROWS]})
    with zipfile.ZipFile(tmp_path / "a.xlsx") as old, zipfile.ZipFile(tmp_path / "b.xlsx", "w") as new:
        for name in old.namelist():
            content = old.read(name).replace(b"</sheetData>", last.encode() + b"</sheetData>")
            new.writestr(*(text.replace("worksheets/", f"{folder}/") for text in (name, content.decode())))
    with pytest.raises(InvalidInputError, match="a sheet of 2600 cells, including empty ones"):
        read_contents(tmp_path / "b.xlsx")
