"""LUNA16's annotation files: nodules, excluded findings and the list of scans (CSV)."""

from __future__ import annotations

import csv
from pathlib import Path

from apps.medical.metrics.froc import Mark, Truth
from shared.errors import InvalidInputError

_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ")


def read_truths(annotations: Path, excluded: Path | None = None) -> list[Truth]:
    """The nodules, and the findings that count neither way; positions in LPS mm."""
    truths = [_truth(row, excluded=False) for row in _rows(annotations, "diameter_mm")]
    if excluded is not None:
        truths += [_truth(row, excluded=True) for row in _rows(excluded, "diameter_mm")]
    return truths


def read_marks(file: Path) -> list[Mark]:
    """A system's marks, in the layout of a LUNA16 submission."""
    rows = _rows(file, "probability")
    return [Mark(row["seriesuid"], _position(row), float(row["probability"])) for row in rows]


def read_scans(file: Path) -> list[str]:
    """Series instance UIDs, one a line."""
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _rows(file: Path, value: str) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as content:
        reader = csv.DictReader(content)
        missing = {*_COLUMNS, value} - set(reader.fieldnames or ())
        if missing:
            raise InvalidInputError(
                f"{file.name} lacks the columns {', '.join(sorted(missing))}; expected LUNA16's layout"
            )
        return list(reader)


def _truth(row: dict[str, str], *, excluded: bool) -> Truth:
    return Truth(row["seriesuid"], _position(row), float(row["diameter_mm"]), excluded)


def _position(row: dict[str, str]) -> tuple[float, float, float]:
    return float(row["coordX"]), float(row["coordY"]), float(row["coordZ"])
