"""Exports reviewed cases in LUNA16's layout, and checks missed nodules of a review against the scan.

``annotations.csv`` has accepted and missed nodules, ``candidates.csv`` those and rejected findings (class 0), and
``annotations_excluded.csv`` undecided findings (luna16.grand-challenge.org/Data). Positions are in LPS mm.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.medical.outputs.slab import SLAB, slab_volume
from apps.medical.outputs.whole_scan import SCAN, read_whole_scan
from shared.errors import InvalidInputError
from shared.review import ReviewedCase, Reviewing

if TYPE_CHECKING:
    from apps.medical.schemas import MedicalMissed
    from apps.medical.types import CTVolume

SUBSETS = 10
_POSITION = ("seriesuid", "coordX", "coordY", "coordZ")
_COLUMNS = {
    "annotations.csv": (*_POSITION, "diameter_mm"),
    "annotations_excluded.csv": (*_POSITION, "diameter_mm"),
    "candidates.csv": (*_POSITION, "class"),
}


def export(cases: Sequence[ReviewedCase], out: Path) -> list[str]:
    """Writes the tables, and the scans into ``subset0`` to ``subset9``.

    A scan is written whole if the store has it; else the viewer's volume is written, if it has the scan's resolution.
    All series of a study go into one subset; studies are assigned to the subsets in turn, in the order of their first
    cases. Returns the remarks.
    """
    rows: dict[str, list[Sequence[object]]] = {name: [columns] for name, columns in _COLUMNS.items()}
    subsets: dict[str, int] = {}
    whole = cropped = without_voxels = without_verdict = 0
    latest = {_series_uid(case): case for case in sorted(cases, key=lambda case: case.review.reviewed_ns)}
    for case in cases:
        uid = _series_uid(case)
        if latest[uid] is not case:
            continue
        if case.is_empty_review and case.result["findings"]:
            without_verdict += 1
            continue
        for name, row in _marks(case):
            rows[name].append((uid, *row))
        study = case.result["volume"]["identifiers"].get("StudyInstanceUID", uid)
        kept = case.input(SCAN)
        volume = _viewer_volume(case) if kept is None else read_whole_scan(kept)
        if volume is None:
            without_voxels += 1
            continue
        subset = subsets.setdefault(study, len(subsets) % SUBSETS)
        _write_scan(volume, out / f"subset{subset}" / f"{uid}.mhd")
        whole, cropped = whole + (kept is not None), cropped + (kept is None)
    for name, table in rows.items():
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(table)
        (out / name).write_text(text.getvalue(), encoding="utf-8")
    return _remarks(out, whole, cropped, without_voxels, without_verdict, repeated=len(cases) - len(latest))


def _remarks(
    out: Path, whole: int, cropped: int, without_voxels: int, without_verdict: int, repeated: int
) -> list[str]:
    remarks = []
    if repeated:
        remarks.append(f"Left out, earlier reviewed cases of the same series: {repeated}. Only the last review counts.")
    if without_verdict:
        remarks.append(f"Left out, cases whose review neither judges nor adds a finding: {without_verdict}.")
    if without_voxels:
        remarks.append(
            f"Scans not stored at full resolution: {without_voxels}. Their rows are written; put the scans into "
            "subset0 to subset9 as SERIESUID.mhd, or use --data marks with their folder (docs/medical.md). A server "
            "with TRIVIUM_KEEP_INPUTS=true stores the scans of new cases whole."
        )
    if cropped:
        remarks.append(f"Scans written as the viewer has them, cropped to the lungs and in steps of 4 HU: {cropped}.")
    if whole:
        remarks.append(f"Scans written whole, as they were analysed: {whole}.")
    if whole or cropped:
        remarks.append(f"trivium evaluate medical --data luna16 --data.root {out}")
    return remarks


def _series_uid(case: ReviewedCase) -> str:
    uid: str = case.result["volume"]["identifiers"].get("SeriesInstanceUID", case.id)
    return uid


def _marks(case: ReviewedCase) -> list[tuple[str, tuple[object, ...]]]:
    """The rows of a case, as table name and row without the series."""
    rows: list[tuple[str, tuple[object, ...]]] = []
    for finding in case.result["findings"]:
        verdict = case.review.verdicts.get(finding["rank"])
        centre, diameter = finding["centre_lps_mm"], finding["mean_diameter_mm"]
        if verdict == "accepted":
            rows.append(("annotations.csv", (*centre, diameter)))
        if verdict is None:
            rows.append(("annotations_excluded.csv", (*centre, diameter)))
        else:
            rows.append(("candidates.csv", (*centre, int(verdict == "accepted"))))
    for nodule in case.review.missed:
        rows.append(("annotations.csv", (*nodule["centre_lps_mm"], nodule["diameter_mm"])))
        rows.append(("candidates.csv", (*nodule["centre_lps_mm"], 1)))
    return rows


def _viewer_volume(case: ReviewedCase) -> CTVolume | None:
    """The volume that the store keeps for the viewer; None if it has none, or only one of reduced resolution."""
    kept = case.file(SLAB)
    if kept is None:
        return None
    if isinstance(kept, Mapping):
        volume = slab_volume(kept["voxels.npz"])
    else:
        from apps.medical.adapters.nifti import read_nifti

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / SLAB
            file.write_bytes(kept)
            volume = read_nifti(file, {})
    spacing_mm = case.result["volume"]["spacing_mm"]
    return volume if np.allclose(volume.spacing_mm, spacing_mm, rtol=1e-3) else None


def _write_scan(volume: CTVolume, file: Path) -> None:
    """Writes a MetaImage with compressed voxels in a separate file."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(volume.voxels_zyx)
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(volume.origin_lps_mm)
    image.SetDirection(volume.direction.ravel().tolist())
    file.parent.mkdir(exist_ok=True)
    SimpleITK.WriteImage(image, str(file), True)


def _check(missed: Sequence[MedicalMissed], result: Mapping[str, Any]) -> None:
    """Raises ``InvalidInputError`` if the centre of a missed nodule lies outside the scan."""
    volume = result["volume"]
    for nodule in missed:
        offset = np.array(nodule["centre_lps_mm"]) - volume["origin_lps_mm"]
        index_ijk = np.array(volume["direction"]).T @ offset / volume["spacing_mm"]
        if (index_ijk < -0.5).any() or (index_ijk > np.array(volume["size_ijk"]) - 0.5).any():
            centre = ", ".join(f"{value:g}" for value in nodule["centre_lps_mm"])
            raise InvalidInputError(f"the missed nodule at {centre} mm is outside the scan; give its centre in LPS mm")


REVIEWING = Reviewing(count=lambda result: len(result["findings"]), check=_check, export=export)
