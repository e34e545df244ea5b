"""Reads LUNA16's CSV files: nodules, excluded findings, the marks of a system, and the list of scans.

Layout: luna16.grand-challenge.org/Data and /Evaluation. Cells are separated by commas, tabs or semicolons. Identifiers
may be quoted or padded (DICOM PS3.5, section 9.1, pads a UID to even length). Column names are compared without case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from apps.medical.datasets.delimited import read_cells
from apps.medical.metrics.froc import Mark, Truth
from shared.errors import InvalidInputError

_COLUMNS: Mapping[str, Sequence[str]] = {
    "seriesuid": ("seriesuid", "series_uid", "seriesinstanceuid", "series_instance_uid"),
    "coordX": ("coordx", "x", "x_mm"),
    "coordY": ("coordy", "y", "y_mm"),
    "coordZ": ("coordz", "z", "z_mm"),
    "diameter_mm": ("diameter_mm", "diameter"),
    "probability": ("probability", "prob", "score", "confidence"),
}
"""LUNA16's column names, each with its accepted spellings in lower case."""


def read_truths(annotations: Path, excluded: Path | None = None) -> list[Truth]:
    """The nodules and the excluded findings, which count neither way; positions in LPS mm, diameters in mm."""
    truths = [Truth(uid, centre, diameter, False) for uid, centre, diameter in _rows(annotations, "diameter_mm")]
    if excluded is not None:
        truths += [Truth(uid, centre, diameter, True) for uid, centre, diameter in _rows(excluded, "diameter_mm")]
    return truths


def read_marks(file: Path) -> list[Mark]:
    """The marks of a system in the layout of a LUNA16 submission; positions in LPS mm."""
    return [Mark(uid, centre, score) for uid, centre, score in _rows(file, "probability")]


def read_scans(file: Path) -> list[str]:
    """The series instance UIDs in the first column, one per line, with or without a header.

    Raises InvalidInputError if there are none or one is repeated.
    """
    uids = [uid for cells in read_cells(file) if cells and (uid := cells[0])]
    if uids and uids[0].lower() in _COLUMNS["seriesuid"]:
        uids = uids[1:]
    if not uids:
        raise InvalidInputError(f"{file.name} lists no series; provide one series instance UID per line")
    seen: set[str] = set()
    for uid in uids:
        if uid in seen:
            raise InvalidInputError(f"{file.name} lists the series {uid} twice; it would count as two scans")
        seen.add(uid)
    return uids


def _rows(file: Path, value: str) -> Iterator[tuple[str, tuple[float, float, float], float]]:
    """Yields series, position and the column ``value`` of every row.

    Raises InvalidInputError if a column is missing, or, with the row, if a value is not a finite number.
    """
    columns = ("seriesuid", "coordX", "coordY", "coordZ", value)
    lines = read_cells(file)
    header = [cell.lower() for cell in next(lines, [])]
    positions = {
        name: next((header.index(spelling) for spelling in _COLUMNS[name] if spelling in header), None)
        for name in columns
    }
    if missing := [name for name, position in positions.items() if position is None]:
        raise InvalidInputError(f"{file.name} lacks the columns {', '.join(missing)}; expected LUNA16's layout")
    order = [position for position in positions.values() if position is not None]
    for number, cells in enumerate(lines, start=2):
        if not any(cells):
            continue
        try:
            x, y, z, number_in_column = (float(cells[position]) for position in order[1:])
            if not math.isfinite(x + y + z + number_in_column):
                raise ValueError
            yield cells[order[0]], (x, y, z), number_in_column
        except (ValueError, IndexError):
            raise InvalidInputError(
                f"{file.name}, row {number}: {', '.join(columns[1:])} are not four finite numbers: {' | '.join(cells)}"
            ) from None
