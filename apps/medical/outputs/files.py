"""Small files of a case that are written at once: findings as CSV, and as 3D Slicer markups."""

from __future__ import annotations

import csv
import io
import json

from apps.medical.outputs.result import slice_label, slice_number
from apps.medical.types import CTVolume, Findings
from shared.text_cell import text_cell


def output_files(volume: CTVolume, findings: Findings) -> dict[str, bytes]:
    """The content of each file by its name."""
    return {
        "findings.csv": findings_csv(volume, findings),
        "findings.mrk.json": slicer_markups(volume, findings),
    }


def findings_csv(volume: CTVolume, findings: Findings) -> bytes:
    """The findings as a LUNA16 submission (seriesuid, coordinates in LPS mm, probability) with a diameter column."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seriesuid", "coordX", "coordY", "coordZ", "probability", "diameter_mm"])
    series = text_cell(volume.identifiers.get("SeriesInstanceUID", volume.name))
    for nodule in findings.nodules:
        x, y, z = (f"{value:.3f}" for value in nodule.centre_lps_mm)
        writer.writerow([series, x, y, z, f"{nodule.score:.6f}", f"{nodule.mean_diameter_mm:.2f}"])
    return text.getvalue().encode()


def slicer_markups(volume: CTVolume, findings: Findings) -> bytes:
    """The findings as a 3D Slicer point list (markups schema 1.0.3, LPS)."""
    points = [
        {
            "id": str(rank),
            "label": f"{rank}: {nodule.mean_diameter_mm:.1f} mm",
            "description": f"score {nodule.score:.3f}, {slice_label(volume, slice_number(volume, nodule) - 1)}",
            "position": [round(value, 3) for value in nodule.centre_lps_mm],
            "positionStatus": "defined",
        }
        for rank, nodule in enumerate(findings.nodules, start=1)
    ]
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    document = {
        "@schema": schema + "markups-schema-v1.0.3.json#",
        "markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}],
    }
    return (json.dumps(document, indent=1) + "\n").encode()
