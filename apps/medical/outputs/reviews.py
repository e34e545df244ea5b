"""Reviewed cases in LUNA16's layout, and what a reader says of the findings checked against the scan.

``annotations.csv`` holds what was accepted or missed, ``candidates.csv`` that and what was rejected (class 0), and
``annotations_excluded.csv`` what is undecided (luna16.grand-challenge.org/Data). Positions in LPS mm.
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
_PLACE = ("seriesuid", "coordX", "coordY", "coordZ")
_COLUMNS = {
    "annotations.csv": (*_PLACE, "diameter_mm"),
    "annotations_excluded.csv": (*_PLACE, "diameter_mm"),
    "candidates.csv": (*_PLACE, "class"),
}


def export(cases: Sequence[ReviewedCase], out: Path) -> list[str]:
    """Writes the tables, and the scans into ``subset0`` to ``subset9``: whole where the store keeps them so, else those
    that the viewer has at their own resolution.

    Series of one study go into one subset, studies in turn by their first cases. Returns what is to be said.
    """
    rows: dict[str, list[Sequence[object]]] = {name: [columns] for name, columns in _COLUMNS.items()}
    subsets: dict[str, int] = {}
    whole = cut = coarse = silent = 0
    latest = {_series(case): case for case in sorted(cases, key=lambda case: case.review.reviewed_ns)}
    for case in cases:
        uid = _series(case)
        if latest[uid] is not case:
            continue
        if case.says_nothing and case.result["findings"]:
            silent += 1
            continue
        for name, row in _marks(case):
            rows[name].append((uid, *row))
        study = case.result["volume"]["identifiers"].get("StudyInstanceUID", uid)
        kept = case.input(SCAN)
        volume = _viewed(case) if kept is None else read_whole_scan(kept)
        if volume is None:
            coarse += 1
            continue
        subset = subsets.setdefault(study, len(subsets) % SUBSETS)
        _write_scan(volume, out / f"subset{subset}" / f"{uid}.mhd")
        whole, cut = whole + (kept is not None), cut + (kept is None)
    for name, table in rows.items():
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(table)
        (out / name).write_text(text.getvalue())
    return _remarks(out, whole, cut, coarse, silent, again=len(cases) - len(latest))


def _remarks(out: Path, whole: int, cut: int, coarse: int, silent: int, again: int) -> list[str]:
    remarks = []
    if again:
        remarks.append(f"Left out, further cases of the same series: {again}. The one that was reviewed last counts.")
    if silent:
        remarks.append(f"Left out, cases whose review neither judges a finding nor adds one: {silent}.")
    if coarse:
        remarks.append(
            f"Scans of which the store keeps no voxels at their own resolution: {coarse}. Their rows are written; "
            "put the scans themselves into subset0 to subset9 as SERIESUID.mhd, or name their folder with --data marks "
            "(docs/medical.md). A server with TRIVIUM_KEEP_INPUTS=true keeps the scans of its next cases whole."
        )
    if cut:
        remarks.append(f"Scans written as the viewer has them, in and around the lungs and in steps of 4 HU: {cut}.")
    if whole:
        remarks.append(f"Scans written whole, as they were analysed: {whole}.")
    if whole or cut:
        remarks.append(f"trivium evaluate medical --data luna16 --data.root {out}")
    return remarks


def _series(case: ReviewedCase) -> str:
    uid: str = case.result["volume"]["identifiers"].get("SeriesInstanceUID", case.id)
    return uid


def _marks(case: ReviewedCase) -> list[tuple[str, tuple[object, ...]]]:
    """The rows of a case without its series, by table."""
    found: list[tuple[str, tuple[object, ...]]] = []
    for finding in case.result["findings"]:
        verdict = case.review.verdicts.get(finding["rank"])
        centre, diameter = finding["centre_lps_mm"], finding["mean_diameter_mm"]
        if verdict == "accepted":
            found.append(("annotations.csv", (*centre, diameter)))
        if verdict is None:
            found.append(("annotations_excluded.csv", (*centre, diameter)))
        else:
            found.append(("candidates.csv", (*centre, int(verdict == "accepted"))))
    for one in case.review.missed:
        found.append(("annotations.csv", (*one["centre_lps_mm"], one["diameter_mm"])))
        found.append(("candidates.csv", (*one["centre_lps_mm"], 1)))
    return found


def _viewed(case: ReviewedCase) -> CTVolume | None:
    """The voxels that the store keeps for the viewer; None where it has none, or averages of several."""
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
    own = case.result["volume"]["spacing_mm"]
    return volume if np.allclose(volume.spacing_mm, own, rtol=1e-3) else None


def _write_scan(volume: CTVolume, file: Path) -> None:
    """A MetaImage, its voxels compressed beside it."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(volume.voxels_zyx)
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(volume.origin_lps_mm)
    image.SetDirection(volume.direction.ravel().tolist())
    file.parent.mkdir(exist_ok=True)
    SimpleITK.WriteImage(image, str(file), True)


def _count(result: Mapping[str, Any]) -> int:
    return len(result["findings"])


def _check(missed: Sequence[MedicalMissed], result: Mapping[str, Any]) -> None:
    """Refuses a nodule whose centre is no place in the scan."""
    volume = result["volume"]
    for one in missed:
        offset = np.array(one["centre_lps_mm"]) - volume["origin_lps_mm"]
        index_ijk = np.array(volume["direction"]).T @ offset / volume["spacing_mm"]
        if (index_ijk < -0.5).any() or (index_ijk > np.array(volume["size_ijk"]) - 0.5).any():
            at = ", ".join(f"{value:g}" for value in one["centre_lps_mm"])
            raise InvalidInputError(f"the missed nodule at {at} mm lies outside of the scan; give its centre in LPS mm")


REVIEWING = Reviewing(count=_count, check=_check, export=export)
