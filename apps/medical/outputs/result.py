"""The content of ``result.json``, its remarks and its table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.medical.types import MAX_THIN_SLICE_MM, NODULE, CTVolume, Findings, Nodule
from shared.app import Table

if TYPE_CHECKING:
    from apps.medical.schemas import MedicalImage, MedicalResult

NO_LUNGS = "No aerated lung was found in this scan, so it was not searched for nodules. Is it a CT of the chest?"
MIN_LUNG_ML = 500.0
"""Adults have several litres of lung. Less than this is only a part of the lungs, or lung without air."""

LUNGS_CUT = "The image ends within the lungs: nodules beyond its edge cannot be found."


def result(volume: CTVolume, findings: Findings) -> MedicalResult:
    """The findings as JSON types. Lengths are in mm, positions in LPS (DICOM patient frame); slices count from 1."""
    return {
        "findings": [
            {
                "rank": rank,
                "centre_lps_mm": _rounded(nodule.centre_lps_mm, 2),
                "mean_diameter_mm": round(nodule.mean_diameter_mm, 1),
                "axes_mm": None if nodule.axes_mm is None else _rounded(nodule.axes_mm, 1),
                "volume_mm3": volume_mm3(volume, nodule),
                "score": round(nodule.score, 4),
                "box_lps_mm": _rounded(nodule.box_lps_mm, 2),
                "index_ijk": _rounded(volume.to_index_ijk(nodule.centre_lps_mm).tolist(), 2),
                "slice": slice_number(volume, nodule),
                "instance_number": instance_number(volume, slice_number(volume, nodule) - 1),
                "image": _image(volume, slice_number(volume, nodule) - 1),
                "label": nodule.label,
                "above_operating_score": nodule.score >= findings.operating_score,
            }
            for rank, nodule in enumerate(findings.nodules, start=1)
        ],
        "operating_score": findings.operating_score,
        "volume": {
            "size_ijk": list(volume.size_ijk),
            "spacing_mm": _rounded(volume.spacing_mm, 6),
            "origin_lps_mm": _rounded(volume.origin_lps_mm, 4),
            "direction": [_rounded(row, 6) for row in volume.direction.tolist()],
            "identifiers": dict(volume.identifiers),
            "source": "DICOM" if volume.images else "file",
            "instance_numbers": instance_numbers(volume),
        },
        "lungs": None
        if findings.lung_box_lps_mm is None
        else {
            "box_lps_mm": _rounded(findings.lung_box_lps_mm, 2),
            "aerated_ml": round(findings.lung_millilitres or 0.0),
        },
        "remarks": remarks(volume, findings),
    }


def remarks(volume: CTVolume, findings: Findings) -> list[str]:
    """Sentences that a reader must see before the findings."""
    sentences = list(volume.remarks)
    if findings.lung_box_lps_mm is None:
        return [*sentences, NO_LUNGS]
    if findings.unlisted:
        count = "1 more finding reaches" if findings.unlisted == 1 else f"{findings.unlisted} more findings reach"
        sentences.append(f"{count} the operating score than are listed; raise the option most to see all.")
    if findings.lung_millilitres is not None and findings.lung_millilitres < MIN_LUNG_ML:
        sentences.append(
            f"Only {findings.lung_millilitres:.0f} ml of aerated lung were found: most of the lungs is outside this "
            "scan or has no air, and was not searched."
        )
    if findings.lungs_cut:
        sentences.append(LUNGS_CUT)
    pixel_mm = max(volume.spacing_mm[:2])
    slice_mm = volume.spacing_mm[2]
    if slice_mm > MAX_THIN_SLICE_MM:
        sentences.append(
            f"Slices are {slice_mm:g} mm apart: nodules smaller than that may be missed, and sizes are uncertain."
        )
    if pixel_mm > 1.5:
        sentences.append(
            f"Pixels are {pixel_mm:.2g} mm wide: nodules of a few pixels may be missed, and sizes are uncertain."
        )
    return sentences


def result_table(content: Mapping[str, Any]) -> Table:
    """The findings of a ``result.json`` as a table: position, diameter and score.

    The column ``image``, InstanceNumber as a PACS displays it, exists for DICOM only.
    """
    found = content["findings"]
    has_numbers = any(finding["instance_number"] is not None for finding in found)
    has_classes = any(finding["label"] != NODULE for finding in found)
    columns = ["rank", "slice", *(["image"] if has_numbers else []), "x, y, z (LPS mm)", "diameter (mm)", "score"]
    columns += [*(["class"] if has_classes else []), ""]
    rows = []
    for finding in found:
        image = [_text(finding["instance_number"])] if has_numbers else []
        centre = ", ".join(f"{value:.1f}" for value in finding["centre_lps_mm"])
        figures = [centre, f"{finding['mean_diameter_mm']:.1f}", f"{finding['score']:.3f}"]
        strength = "" if finding["above_operating_score"] else "weak"
        label = [finding["label"]] if has_classes else []
        rows.append([_text(finding["rank"]), _text(finding["slice"]), *image, *figures, *label, strength])
    return Table(title=f"Lung nodules: {len(rows)}", columns=columns, rows=rows)


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def slice_number(volume: CTVolume, nodule: Nodule) -> int:
    """The number of the slice nearest to the nodule's centre, from 1."""
    k = int(np.rint(volume.to_index_ijk(nodule.centre_lps_mm)[2]))
    return min(max(k, 0), volume.size_ijk[2] - 1) + 1


def volume_mm3(volume: CTVolume, nodule: Nodule) -> float | None:
    """The volume of the nodule's mask, each voxel counted whole; None if the nodule could not be measured."""
    if nodule.piece is None:
        return None
    return round(nodule.piece.voxels * float(np.prod(volume.spacing_mm)), 1)


def instance_numbers(volume: CTVolume) -> list[int] | None:
    """The DICOM InstanceNumber of each slice; None without DICOM, or if a number is missing or not unique."""
    stated = [image.instance_number for image in volume.images]
    numbers = [number for number in stated if number is not None]
    return numbers if volume.images and len(set(numbers)) == len(stated) else None


def slice_label(volume: CTVolume, k: int) -> str:
    """The slice ``k`` (from 0) as a viewer displays it: "image 83 of 120", by InstanceNumber if there is one."""
    count, numbers = volume.size_ijk[2], instance_numbers(volume)
    if numbers is None:
        return f"slice {k + 1} of {count}"
    return f"image {numbers[k]} of {count}" if set(numbers) == set(range(1, count + 1)) else f"image {numbers[k]}"


def instance_number(volume: CTVolume, k: int) -> int | None:
    """The InstanceNumber of the slice ``k`` (from 0); None if the numbers are missing or not unique."""
    numbers = instance_numbers(volume)
    return None if numbers is None else numbers[k]


def _image(volume: CTVolume, k: int) -> MedicalImage | None:
    if not volume.images:
        return None
    image = volume.images[k]
    return {
        "label": slice_label(volume, k),
        "instance_number": instance_number(volume, k),
        "sop_instance_uid": image.sop_instance_uid,
        "position_lps_mm": _rounded(image.position_lps_mm, 3),
    }


def _rounded(values: object, digits: int) -> list[float]:
    return [round(float(value), digits) for value in np.asarray(values, np.float64)]


def case_label(content: Mapping[str, Any]) -> str:
    """The label of a case in a list: the number of findings and the size of the scan, from its ``result.json``."""
    if content["lungs"] is None:
        return "not searched: no lung was found"
    count = sum(finding["above_operating_score"] for finding in content["findings"])
    columns, rows, slices = content["volume"]["size_ijk"]
    is_dicom = content["volume"].get("source") == "DICOM"
    scan = f"{slices} DICOM images" if is_dicom else f"{columns} × {rows} × {slices} voxels"
    return f"{count} {'finding' if count == 1 else 'findings'}, {scan}"
