"""What was found in a CT, and the content of ``result.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.medical.types import MAX_THIN_SLICE_MM, NODULE, CTVolume, Findings, Nodule
from shared.app import Table

if TYPE_CHECKING:
    from apps.medical.schemas import MedicalImage, MedicalResult

NO_LUNGS = "No aerated lung was found in this scan, and so no nodule was looked for. Is it a CT of the chest?"
LITTLE_ML = 500.0
"""Adults have several litres of lung; less than this is a small part of it, or lung without air."""

PARTLY = "The image ends within the lungs: nodules beyond its edge cannot be found."


def result(volume: CTVolume, findings: Findings) -> MedicalResult:
    """The findings in JSON types. Lengths are in mm in the DICOM patient frame (LPS); slices count from 1."""
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
    said = list(volume.remarks)
    if findings.lung_box_lps_mm is None:
        return [*said, NO_LUNGS]
    if findings.unlisted:
        more = "1 more finding reaches" if findings.unlisted == 1 else f"{findings.unlisted} more findings reach"
        said.append(f"{more} the operating score than are listed; raise the option most to see all.")
    if findings.lung_millilitres is not None and findings.lung_millilitres < LITTLE_ML:
        said.append(
            f"Only {findings.lung_millilitres:.0f} ml of aerated lung were found: most of the lungs is not in this "
            "scan, or holds no air, and was not searched."
        )
    if findings.lungs_cut:
        said.append(PARTLY)
    across = max(volume.spacing_mm[:2])
    thick = volume.spacing_mm[2]
    if thick > MAX_THIN_SLICE_MM:
        said.append(f"Slices are {thick:g} mm apart: nodules smaller than that may be missed, and sizes are uncertain.")
    if across > 1.5:
        said.append(f"Pixels are {across:.2g} mm wide: nodules of a few pixels may be missed, and sizes are uncertain.")
    return said


def result_table(content: Mapping[str, Any]) -> Table:
    """The findings of a ``result.json`` as a person wants them: where, how large, how sure.

    The column ``image`` is there for DICOM alone: the InstanceNumber by which a PACS counts.
    """
    found = content["findings"]
    numbered = any(finding["instance_number"] is not None for finding in found)
    labelled = any(finding["label"] != NODULE for finding in found)
    columns = ["rank", "slice", *(["image"] if numbered else []), "x, y, z (LPS mm)", "diameter (mm)", "score"]
    columns += [*(["class"] if labelled else []), ""]
    rows = []
    for finding in found:
        image = [_text(finding["instance_number"])] if numbered else []
        centre = ", ".join(f"{value:.1f}" for value in finding["centre_lps_mm"])
        figures = [centre, f"{finding['mean_diameter_mm']:.1f}", f"{finding['score']:.3f}"]
        said = "" if finding["above_operating_score"] else "weak"
        label = [finding["label"]] if labelled else []
        rows.append([_text(finding["rank"]), _text(finding["slice"]), *image, *figures, *label, said])
    return Table(title=f"Lung nodules: {len(rows)}", columns=columns, rows=rows)


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def slice_number(volume: CTVolume, nodule: Nodule) -> int:
    """The slice nearest to the centre, from 1."""
    k = int(np.rint(volume.to_index_ijk(nodule.centre_lps_mm)[2]))
    return min(max(k, 0), volume.size_ijk[2] - 1) + 1


def volume_mm3(volume: CTVolume, nodule: Nodule) -> float | None:
    """The volume of the nodule's voxels, each counted whole; None where nothing could be measured."""
    if nodule.piece is None:
        return None
    return round(nodule.piece.voxels * float(np.prod(volume.spacing_mm)), 1)


def instance_numbers(volume: CTVolume) -> list[int] | None:
    """DICOM's InstanceNumber of every slice; None where they do not tell the slices apart, or there are none."""
    numbers = [image.instance_number for image in volume.images]
    told = [number for number in numbers if number is not None]
    return told if volume.images and len(set(told)) == len(numbers) else None


def slice_label(volume: CTVolume, k: int) -> str:
    """The slice ``k`` (from 0) as a person looks it up: "image 83 of 120", by InstanceNumber where there is one."""
    count, numbers = volume.size_ijk[2], instance_numbers(volume)
    if numbers is None:
        return f"slice {k + 1} of {count}"
    return f"image {numbers[k]} of {count}" if set(numbers) == set(range(1, count + 1)) else f"image {numbers[k]}"


def instance_number(volume: CTVolume, k: int) -> int | None:
    """The InstanceNumber of the slice ``k`` (from 0); None where they do not tell the slices apart."""
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
    """A ``result.json`` in a list of cases: how many findings there are, and of what scan."""
    if content["lungs"] is None:
        return "not searched: no lung was found"
    count = sum(finding["above_operating_score"] for finding in content["findings"])
    columns, rows, slices = content["volume"]["size_ijk"]
    dicom = content["volume"].get("source") == "DICOM"
    scan = f"{slices} DICOM images" if dicom else f"{columns} × {rows} × {slices} voxels"
    return f"{count} {'finding' if count == 1 else 'findings'}, {scan}"
