"""Compares the results on two CTs of one patient: the content of ``comparison.json``, and its table.

No model runs: the inputs are ``result.json`` and ``slab.nii.gz`` of both scans.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from apps.medical.adapters.nifti import read_nifti
from apps.medical.inference.follow_up import MatchedFinding, MeasuredFinding, UnmatchedFinding, match_findings
from apps.medical.inference.registration import align
from apps.medical.inference.same_vessels import vessel_correlation
from apps.medical.outputs.slab import SLAB
from apps.medical.schemas import MedicalChange, MedicalComparison, MedicalGone, MedicalResult, MedicalVolume
from apps.medical.types import CTVolume, triple
from shared.app import Table
from shared.errors import InvalidInputError

SOURCES = ("result.json", SLAB)
"""The files that are compared, in this order."""

MIN_CORRELATION, MIN_VESSEL_CORRELATION = 0.9, 0.7
"""Below these the images around the lungs, or the vessels in them, count as different.

For artificially warped, cropped or resampled copies of one scan, both correlations were at least 0.96; with 6 mm slices
and noise of 60 HU the vessel correlation was at least 0.81. With an effusion or a filled lung drawn in they were 0.82
to 0.99 and at least 0.94, so the vessels alone distinguish patients, if there are enough of them. For two phantoms they
were 0.91 to 0.96 and 0.23 to 0.58, for a phantom and a real scan 0.75 to 0.85 and 0.22 to 0.42, and for a real scan and
its mirror image 0.90 and 0.32.
"""

MAX_SLICE_SPACING_RATIO = 1.5
"""Above this ratio of the two slice spacings a remark says that a change of size is uncertain."""

MAX_DAYS = 36_525.0


def compare_folders(folder: Path, earlier: Path, days: float | None) -> tuple[MedicalComparison, Table]:
    """Compares two output folders of ``trivium predict``: ``folder`` of the later scan, ``earlier`` of the earlier one.

    Returns the content of ``comparison.json`` and its table. Raises ``InvalidInputError``.
    """
    comparison = compare(_read(folder), _read(earlier), days=days)
    return comparison, comparison_table(comparison)


def _read(folder: Path) -> tuple[bytes, bytes]:
    try:
        result, slab = ((folder / name).read_bytes() for name in SOURCES)
    except OSError as error:
        raise InvalidInputError(
            f"{folder} lacks {' or '.join(SOURCES)} ({error.strerror}); give a folder that "
            "`trivium predict medical --out` wrote"
        ) from error
    return result, slab


def compare(now: tuple[bytes, bytes], before: tuple[bytes, bytes], *, days: float | None = None) -> MedicalComparison:
    """The changes of the findings between two scans, ``days`` apart. ``now`` and ``before`` hold their ``SOURCES``.

    Raises ``InvalidInputError`` if no lung was found in one of the scans, or ``days`` is not in (0, 36,525].
    """
    if days is not None and not 0 < days <= MAX_DAYS:
        raise InvalidInputError(f"the days between the scans are {days:g}; expected more than 0, at most a century")
    result, earlier = (_result(sources[0]) for sources in (now, before))
    box, earlier_box = _lung_box(result, "later"), _lung_box(earlier, "earlier")
    slab, earlier_slab = (_volume(sources[1]) for sources in (now, before))
    alignment = align(slab, box, earlier_slab, earlier_box)
    vessels = vessel_correlation(slab, box, earlier_slab, alignment)
    followed, gone = match_findings(_sized(result), _sized(earlier), alignment)
    listed = [
        pair for pair in followed if pair.finding.is_above or (pair.earlier is not None and pair.earlier.is_above)
    ]
    listed_gone = [finding for finding in gone if finding.earlier.is_above]
    return {
        "days": days,
        "correlation": round(alignment.correlation, 3),
        "vessel_correlation": None if vessels is None else round(vessels, 3),
        "findings": [_change(pair, earlier["volume"], days) for pair in listed],
        "gone": [_gone(finding, result["volume"]) for finding in listed_gone],
        "weaker": len(followed) - len(listed),
        "weaker_gone": len(gone) - len(listed_gone),
        "remarks": _remarks(result, earlier, alignment.correlation, vessels),
    }


def comparison_file(sources: Mapping[str, bytes]) -> bytes:
    """``comparison.json`` from sources named ``now/...`` and ``before/...``, and ``days`` as text or empty."""
    now, before = ((sources[f"{scan}/{SOURCES[0]}"], sources[f"{scan}/{SOURCES[1]}"]) for scan in ("now", "before"))
    days = float(sources["days"]) if sources["days"] else None
    return json.dumps(compare(now, before, days=days), allow_nan=False).encode()


def comparison_table(content: Mapping[str, Any]) -> Table:
    """The comparison as a table with a row for each finding of either scan."""
    rows = [_row(change) for change in content["findings"]]
    rows += [
        ["-", "-", str(finding["rank"]), f"{finding['mean_diameter_mm']:.1f}", "-", "-", _gone_text(finding)]
        for finding in content["gone"]
    ]
    columns = ("rank", "diameter (mm)", "rank before", "diameter before (mm)", "change (mm)", "doubling (days)", "")
    notes = list(content["remarks"])
    if content["weaker"] or content["weaker_gone"]:
        notes.append(
            f"Left out, below the operating score in both scans: {content['weaker']} marks, and "
            f"{content['weaker_gone']} of the earlier scan only."
        )
    return Table(title="Findings compared with the earlier scan", columns=columns, rows=rows, notes=notes)


def _gone_text(finding: Mapping[str, Any]) -> str:
    return "gone" if finding["place_slice"] is not None else "not imaged now"


def _row(change: Mapping[str, Any]) -> list[str]:
    earlier = change["earlier"]
    now = [str(change["rank"]), f"{change['mean_diameter_mm']:.1f}"]
    if earlier is None:
        text = change["change"] if change["change"] == "new" else "not imaged before"
        return [*now, "-", "-", "-", "-", text]
    doubling = "-" if change["doubling_days"] is None else f"{change['doubling_days']:.0f}"
    sizes = [f"{earlier['mean_diameter_mm']:.1f}", f"{change['diameter_change_mm']:+.1f}"]
    return [*now, str(earlier["rank"]), *sizes, doubling, change["change"]]


def _result(content: bytes) -> MedicalResult:
    try:
        result: MedicalResult = TypeAdapter(MedicalResult).validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        location = ".".join(map(str, problem["loc"])) or "the whole file"
        raise InvalidInputError(
            f"a result.json is not from the medical application ({location}: {problem['msg']}); analyse the scan again"
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


def _sized(result: MedicalResult) -> list[MeasuredFinding]:
    return [
        MeasuredFinding(
            rank=finding["rank"],
            centre_lps_mm=triple(finding["centre_lps_mm"]),
            mean_diameter_mm=finding["mean_diameter_mm"],
            volume_mm3=finding["volume_mm3"],
            is_above=finding["above_operating_score"],
        )
        for finding in result["findings"]
    ]


def _change(pair: MatchedFinding, earlier_volume: MedicalVolume, days: float | None) -> MedicalChange:
    ratio, doubling = pair.volume_ratio, None if days is None else pair.doubling_days(days)
    place_slice = _slice(pair.place_lps_mm, earlier_volume)
    return {
        "rank": pair.finding.rank,
        # A finding at a position that the earlier scan does not cover may have existed then.
        "change": "not imaged" if pair.earlier is None and place_slice is None else pair.change,
        "mean_diameter_mm": pair.finding.mean_diameter_mm,
        "earlier": None
        if pair.earlier is None
        else {"rank": pair.earlier.rank, "mean_diameter_mm": pair.earlier.mean_diameter_mm},
        "diameter_change_mm": None
        if pair.earlier is None
        else round(pair.finding.mean_diameter_mm - pair.earlier.mean_diameter_mm, 1),
        "volume_change_percent": None if ratio is None else round(100 * (ratio - 1)),
        "doubling_days": None if doubling is None else round(doubling),
        "place_lps_mm": [round(value, 2) for value in pair.place_lps_mm],
        "place_slice": place_slice,
        "distance_mm": None if pair.distance_mm is None else round(pair.distance_mm, 1),
    }


def _gone(finding: UnmatchedFinding, volume: MedicalVolume) -> MedicalGone:
    return {
        "rank": finding.earlier.rank,
        "mean_diameter_mm": finding.earlier.mean_diameter_mm,
        "place_lps_mm": [round(value, 2) for value in finding.place_lps_mm],
        "place_slice": _slice(finding.place_lps_mm, volume),
    }


def _slice(position_lps_mm: tuple[float, float, float], volume: MedicalVolume) -> int | None:
    """The slice of a position in a scan, from 1; None if it lies outside the scan."""
    offset = np.subtract(position_lps_mm, volume["origin_lps_mm"])
    index = np.rint(offset @ np.array(volume["direction"]) / volume["spacing_mm"])
    is_inside = bool(((index >= 0) & (index < volume["size_ijk"])).all())
    return int(index[2]) + 1 if is_inside else None


def _remarks(result: MedicalResult, earlier: MedicalResult, correlation: float, vessels: float | None) -> list[str]:
    remarks = []
    series = [scan["volume"]["identifiers"].get("SeriesInstanceUID") for scan in (result, earlier)]
    if series[0] is not None and series[0] == series[1]:
        remarks.append("Both results are of the same series.")
    is_poor_fit = correlation < MIN_CORRELATION
    if is_poor_fit if vessels is None else vessels < MIN_VESSEL_CORRELATION:
        difference = (
            f"The lung vessels of the two scans differ (correlation {vessels:.2f})"
            if vessels is not None
            else f"The two scans do not align well (correlation {correlation:.2f})"
        )
        remarks.append(f"{difference}: are they of the same patient? Positions in the earlier scan are uncertain.")
    elif is_poor_fit:
        remarks.append(
            f"The two scans do not align well (correlation {correlation:.2f}), for example because of an effusion or a "
            "removed lung; the lung vessels match. Positions in the earlier scan are uncertain."
        )
    slice_mm = [scan["volume"]["spacing_mm"][2] for scan in (result, earlier)]
    if max(slice_mm) > MAX_SLICE_SPACING_RATIO * min(slice_mm):
        remarks.append(
            f"Slices are {slice_mm[0]:g} mm apart, but {slice_mm[1]:g} mm in the earlier scan: a change of size may be "
            "due to the slices alone."
        )
    models = [scan.get("versions") for scan in (result, earlier)]
    if models[0] != models[1]:
        remarks.append("The earlier scan was analysed by other model versions: analyse it again to compare.")
    return remarks
