"""Two answers on CTs of one patient beside each other: the content of ``comparison.json``, and its table.

Nothing is predicted: what is compared are ``result.json`` and ``slab.nii.gz`` of both.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from apps.medical.adapters.nifti import read_nifti
from apps.medical.inference.follow_up import Followed, Gone, Sized, follow
from apps.medical.inference.registration import align
from apps.medical.inference.same_vessels import vessel_correlation
from apps.medical.outputs.slab import SLAB
from apps.medical.schemas import MedicalChange, MedicalComparison, MedicalGone, MedicalResult, MedicalVolume
from apps.medical.types import CTVolume
from shared.app import Table
from shared.errors import InvalidInputError

SOURCES = ("result.json", SLAB)
"""Of each answer, in this order."""

POOR_FIT, OTHER_VESSELS = 0.9, 0.7
"""Below these the images around the lungs, and the vessels in them, are unlike.

Of one scan warped by hand, cut short or resampled both were 0.96 and more, in slices of 6 mm with noise of 60 HU the
second 0.81 and more. With an effusion drawn into it, or a lung filled, they were 0.82 to 0.99 and 0.94 and more: the
vessels alone tell patients apart where there are enough of them. Of two phantoms they were 0.91 to 0.96 and 0.23 to
0.58, of a phantom and a real scan 0.75 to 0.85 and 0.22 to 0.42, of a real scan and its mirror image 0.90 and 0.32.
"""

UNLIKE_SLICES = 1.5
"""Sizes are compared with care where the slices of one scan are so many times as thick."""

MAX_DAYS = 36_525.0


def compare_folders(folder: Path, earlier: Path, days: float | None) -> tuple[MedicalComparison, Table]:
    """The answer of ``trivium predict`` in ``folder`` beside that on an earlier scan in ``earlier``, and its table."""
    compared = compare(_read(folder), _read(earlier), days=days)
    return compared, comparison_table(compared)


def _read(folder: Path) -> tuple[bytes, bytes]:
    try:
        result, slab = ((folder / name).read_bytes() for name in SOURCES)
    except OSError as error:
        raise InvalidInputError(
            f"{folder} has no {' or no '.join(SOURCES)} ({error.strerror}); name a folder that "
            "`trivium predict medical --out` wrote"
        ) from error
    return result, slab


def compare(now: tuple[bytes, bytes], before: tuple[bytes, bytes], *, days: float | None = None) -> MedicalComparison:
    """What became of the findings. ``now`` and ``before`` are ``SOURCES``; ``days`` lie between the two scans.

    Raises ``InvalidInputError`` where one of them was not searched.
    """
    if days is not None and not 0 < days <= MAX_DAYS:
        raise InvalidInputError(f"the days between the scans are {days:g}; expected more than 0, and a century at most")
    result, earlier = (_result(one[0]) for one in (now, before))
    box, earlier_box = _lung_box(result, "later"), _lung_box(earlier, "earlier")
    slab, earlier_slab = (_volume(one[1]) for one in (now, before))
    alignment = align(slab, box, earlier_slab, earlier_box)
    vessels = vessel_correlation(slab, box, earlier_slab, alignment)
    followed, gone = follow(_sized(result), _sized(earlier), alignment)
    told = [one for one in followed if one.finding.is_above or (one.earlier is not None and one.earlier.is_above)]
    missing = [one for one in gone if one.earlier.is_above]
    return {
        "days": days,
        "correlation": round(alignment.correlation, 3),
        "vessel_correlation": None if vessels is None else round(vessels, 3),
        "findings": [_change(one, earlier["volume"], days) for one in told],
        "gone": [_gone(one, result["volume"]) for one in missing],
        "weaker": len(followed) - len(told),
        "weaker_gone": len(gone) - len(missing),
        "remarks": _remarks(result, earlier, alignment.correlation, vessels),
    }


def comparison_file(sources: Mapping[str, bytes]) -> bytes:
    """``comparison.json`` from ``now/`` and ``before/`` with ``SOURCES`` each, and ``days`` as text or empty."""
    now, before = ((sources[f"{one}/{SOURCES[0]}"], sources[f"{one}/{SOURCES[1]}"]) for one in ("now", "before"))
    days = float(sources["days"]) if sources["days"] else None
    return json.dumps(compare(now, before, days=days), allow_nan=False).encode()


def comparison_table(content: Mapping[str, Any]) -> Table:
    """The comparison as a person reads it: now, before, and the change."""
    rows = [_row(one) for one in content["findings"]]
    rows += [
        ["-", "-", str(one["rank"]), f"{one['mean_diameter_mm']:.1f}", "-", "-", _where_gone(one)]
        for one in content["gone"]
    ]
    columns = ("rank", "diameter (mm)", "rank before", "diameter before (mm)", "change (mm)", "doubling (days)", "")
    notes = list(content["remarks"])
    if content["weaker"] or content["weaker_gone"]:
        notes.append(
            f"Left out, below the operating score in both: {content['weaker']} marks, and {content['weaker_gone']} of "
            "the earlier scan alone."
        )
    return Table(title="Findings beside the earlier scan", columns=columns, rows=rows, notes=notes)


def _where_gone(one: Mapping[str, Any]) -> str:
    return "gone" if one["place_slice"] is not None else "not imaged now"


def _row(one: Mapping[str, Any]) -> list[str]:
    earlier = one["earlier"]
    if earlier is None:
        what = one["change"] if one["change"] == "new" else "not imaged before"
        return [str(one["rank"]), f"{one['mean_diameter_mm']:.1f}", "-", "-", "-", "-", what]
    doubling = "-" if one["doubling_days"] is None else f"{one['doubling_days']:.0f}"
    sizes = [f"{earlier['mean_diameter_mm']:.1f}", f"{one['diameter_change_mm']:+.1f}"]
    return [str(one["rank"]), f"{one['mean_diameter_mm']:.1f}", str(earlier["rank"]), *sizes, doubling, one["change"]]


def _result(content: bytes) -> MedicalResult:
    try:
        result: MedicalResult = TypeAdapter(MedicalResult).validate_json(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the whole"
        raise InvalidInputError(
            f"a result.json is not one of the medical application's ({where}: {fault['msg']}); predict on the scan "
            "again"
        ) from error
    return result


def _lung_box(result: MedicalResult, which: str) -> list[float]:
    if result["lungs"] is None:
        raise InvalidInputError(f"no lung was found in the {which} scan: there is nothing to compare")
    return result["lungs"]["box_lps_mm"]


def _volume(content: bytes) -> CTVolume:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / SLAB
        file.write_bytes(content)
        return read_nifti(file, {})


def _sized(result: MedicalResult) -> list[Sized]:
    return [
        Sized(
            rank=one["rank"],
            centre_lps_mm=_point(one["centre_lps_mm"]),
            mean_diameter_mm=one["mean_diameter_mm"],
            volume_mm3=one["volume_mm3"],
            is_above=one["above_operating_score"],
        )
        for one in result["findings"]
    ]


def _point(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = values
    return x, y, z


def _change(one: Followed, earlier_volume: MedicalVolume, days: float | None) -> MedicalChange:
    ratio, doubling = one.volume_ratio, None if days is None else one.doubling_days(days)
    place_slice = _slice(one.place_lps_mm, earlier_volume)
    return {
        "rank": one.finding.rank,
        # What the earlier scan does not reach can have been there.
        "change": "not imaged" if one.earlier is None and place_slice is None else one.change,
        "mean_diameter_mm": one.finding.mean_diameter_mm,
        "earlier": None
        if one.earlier is None
        else {"rank": one.earlier.rank, "mean_diameter_mm": one.earlier.mean_diameter_mm},
        "diameter_change_mm": None
        if one.earlier is None
        else round(one.finding.mean_diameter_mm - one.earlier.mean_diameter_mm, 1),
        "volume_change_percent": None if ratio is None else round(100 * (ratio - 1)),
        "doubling_days": None if doubling is None else round(doubling),
        "place_lps_mm": [round(value, 2) for value in one.place_lps_mm],
        "place_slice": place_slice,
        "distance_mm": None if one.distance_mm is None else round(one.distance_mm, 1),
    }


def _gone(one: Gone, volume: MedicalVolume) -> MedicalGone:
    return {
        "rank": one.earlier.rank,
        "mean_diameter_mm": one.earlier.mean_diameter_mm,
        "place_lps_mm": [round(value, 2) for value in one.place_lps_mm],
        "place_slice": _slice(one.place_lps_mm, volume),
    }


def _slice(place_lps_mm: tuple[float, float, float], volume: MedicalVolume) -> int | None:
    """The slice of a place in a scan, from 1; None where it lies beyond its ends or its sides."""
    offset = np.subtract(place_lps_mm, volume["origin_lps_mm"])
    index = np.rint(offset @ np.array(volume["direction"]) / volume["spacing_mm"])
    inside = bool(((index >= 0) & (index < volume["size_ijk"])).all())
    return int(index[2]) + 1 if inside else None


def _remarks(result: MedicalResult, earlier: MedicalResult, correlation: float, vessels: float | None) -> list[str]:
    said = []
    series = [one["volume"]["identifiers"].get("SeriesInstanceUID") for one in (result, earlier)]
    if series[0] is not None and series[0] == series[1]:
        said.append("Both answers are on the same series.")
    is_poor = correlation < POOR_FIT
    if is_poor if vessels is None else vessels < OTHER_VESSELS:
        unlike = (
            f"The vessels in the lungs of the two scans are unlike (correlation {vessels:.2f})"
            if vessels is not None
            else f"The two scans fit each other poorly (correlation {correlation:.2f})"
        )
        said.append(f"{unlike}: are they of one patient? Places in the earlier one are uncertain.")
    elif is_poor:
        said.append(
            f"The two scans fit each other poorly (correlation {correlation:.2f}), as with an effusion in one of them "
            "or a lung removed; the vessels are alike. Places in the earlier one are uncertain."
        )
    thick = [one["volume"]["spacing_mm"][2] for one in (result, earlier)]
    if max(thick) > UNLIKE_SLICES * min(thick):
        said.append(
            f"Slices are {thick[0]:g} mm apart, {thick[1]:g} mm in the earlier scan: a change of size may be "
            "one of the slices alone."
        )
    models = [one.get("versions") for one in (result, earlier)]
    if models[0] != models[1]:
        said.append("Other versions of the models answered on the earlier scan: analyse it again to compare.")
    return said
