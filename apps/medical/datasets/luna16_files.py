"""LUNA16's annotation files: nodules, excluded findings, a system's marks and the list of scans (CSV).

Layout: luna16.grand-challenge.org/Data and /Evaluation. Separated by commas, tabs or semicolons; identifiers may be
quoted or padded (DICOM PS3.5, section 9.1, pads a UID to even length); names of columns are compared without case.
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
"""LUNA16's name of a column, and what others call it, in lower case."""


def read_truths(annotations: Path, excluded: Path | None = None) -> list[Truth]:
    """The nodules, and the findings that count neither way; positions in LPS mm, diameters in mm."""
    truths = [Truth(uid, at, size, False) for uid, at, size in _rows(annotations, "diameter_mm")]
    if excluded is not None:
        truths += [Truth(uid, at, size, True) for uid, at, size in _rows(excluded, "diameter_mm")]
    return truths


def read_marks(file: Path) -> list[Mark]:
    """A system's marks, in the layout of a LUNA16 submission; positions in LPS mm."""
    return [Mark(uid, at, score) for uid, at, score in _rows(file, "probability")]


def read_scans(file: Path) -> list[str]:
    """Series instance UIDs: the first column, one a line, with or without a heading; refuses one that comes twice."""
    uids = [uid for cells in read_cells(file) if cells and (uid := cells[0])]
    if uids and uids[0].lower() in _COLUMNS["seriesuid"]:
        uids = uids[1:]
    if not uids:
        raise InvalidInputError(f"{file.name} lists no series; give one series instance UID a line")
    seen: set[str] = set()
    for uid in uids:
        if uid in seen:
            raise InvalidInputError(f"{file.name} lists the series {uid} twice; it would count as two scans")
        seen.add(uid)
    return uids


def _rows(file: Path, value: str) -> Iterator[tuple[str, tuple[float, float, float], float]]:
    """Series, position and ``value`` of every row; refuses what is not a finite number, with the row."""
    wanted = ("seriesuid", "coordX", "coordY", "coordZ", value)
    lines = read_cells(file)
    heading = [cell.lower() for cell in next(lines, [])]
    places = {
        name: next((heading.index(known) for known in _COLUMNS[name] if known in heading), None) for name in wanted
    }
    if missing := [name for name, place in places.items() if place is None]:
        raise InvalidInputError(f"{file.name} lacks the columns {', '.join(missing)}; expected LUNA16's layout")
    order = [place for place in places.values() if place is not None]
    for number, cells in enumerate(lines, start=2):
        if not any(cells):
            continue
        try:
            x, y, z, last = (float(cells[place]) for place in order[1:])
            if not math.isfinite(x + y + z + last):
                raise ValueError
            yield cells[order[0]], (x, y, z), last
        except (ValueError, IndexError):
            raise InvalidInputError(
                f"{file.name}, row {number}: {', '.join(wanted[1:])} are not four finite numbers: {' | '.join(cells)}"
            ) from None
