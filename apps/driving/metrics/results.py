"""Scores result files against labels, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from apps.driving.metrics.kitti_ap import DIFFICULTIES, MEASURES, MIN_OVERLAPS, TITLES, average_precision
from apps.driving.metrics.kitti_files import KittiFiles, read_folders
from apps.driving.metrics.nuscenes_detection import ERRORS, RANGES_M, THRESHOLDS_M, evaluate
from apps.driving.metrics.nuscenes_files import NuscenesFiles, read_submission
from shared.app import Table
from shared.errors import InvalidInputError


def score_files(files: Mapping[str, Path]) -> Table:
    """Scores the folders ``results`` and ``labels`` by KITTI's protocol, on the frames listed in the file ``frames`` if
    given.

    If ``results`` is a JSON file, scores it as a nuScenes submission, with ``labels`` as the folder of the tables.
    """
    if not {"results", "labels"} <= files.keys() <= {"results", "labels", "frames"}:
        raise InvalidInputError(
            "to score results, give --results DIR --labels DIR and, to score only some frames, --frames FILE (KITTI), "
            "or --results JSON --labels DIR with nuScenes' tables; "
            f"given: {', '.join(sorted(files)) or 'none'}"
        )
    if files["results"].suffix.lower() == ".json":
        return nuscenes_table(read_submission(files["results"], files["labels"]))
    return kitti_table(read_folders(files["labels"], files["results"], files.get("frames")))


def nuscenes_table(files: NuscenesFiles) -> Table:
    """AP and errors of every class of the detection task, their means, and the numbers of objects and detections."""
    scores = evaluate(files.truth, files.detections)
    errors = [error for error in ERRORS if f"m{error}" in scores]
    rows = []
    for name in RANGES_M:
        columns = [f"{name}/ap", *(f"{name}/ap/{threshold:g}" for threshold in THRESHOLDS_M)]
        columns += [f"{name}/{error}" for error in errors]
        counts = [f"{scores[f'{name}/{count}']:.0f}" for count in ("objects", "detections")]
        rows.append([name, *counts, *(f"{scores[key]:.3f}" if key in scores else "-" for key in columns)])
    means = [f"{scores['map']:.3f}", *[""] * len(THRESHOLDS_M), *(f"{scores[f'm{error}']:.3f}" for error in errors)]
    rows.append(["mean", "", "", *means])
    nds_key = "nds" if "nds" in scores else "nds_known"
    absent = [name for name in RANGES_M if not scores[f"{name}/objects"]]
    notes = [
        f"NDS {scores['nds']:.4f}."
        if nds_key == "nds"
        else f"No NDS: velocities or attributes are absent. From mAP and the available errors: {scores[nds_key]:.4f}.",
        f"{files.samples} of {files.labelled} samples of the tables are in the submission and scored; "
        f"{files.in_racks} boxes in bicycle racks are left out.",
    ]
    if absent:
        notes.append(
            f"No objects of {', '.join(absent)}: as in the devkit they enter the mean AP as 0; "
            f"over the classes with objects it is {scores['map_present']:.3f}."
        )
    return Table(
        title="nuScenes detection",
        columns=(
            "class", "objects", "detections", "AP", *(f"AP {threshold:g} m" for threshold in THRESHOLDS_M),
            *(error.upper() for error in errors),
        ),
        rows=rows,
        notes=notes,
    )  # fmt: skip


def kitti_table(files: KittiFiles) -> Table:
    """AP R40 in percent of every class and measure by difficulty, and the numbers of objects.

    If no result has a 2D box, 2D and AOS are left out, and no detection counts as too small in the image; if none has a
    3D box, BEV and 3D are left out.
    """
    detections, box_2d = files.detections, files.detections.box_2d_N4
    has_no_2d = not (box_2d[:, 2:] > box_2d[:, :2]).all(axis=1).any()
    has_3d = (detections.upright_N7[:, 3:6] > 0).all(axis=1).any()
    if len(detections) and has_no_2d and not has_3d:
        raise InvalidInputError("no result has a 2D or a 3D box; are the files in KITTI's layout?")
    measures = (
        [name for name in MEASURES if not (has_no_2d if name == "2d" else not has_3d)] if len(detections) else MEASURES
    )
    if has_no_2d:
        detections = replace(detections, box_2d_N4=np.tile([0.0, 0.0, 0.0, 1e4], (len(detections), 1)))
    scores = average_precision(files.truth, detections, measures=measures)
    shown_measures = [name for name in TITLES if name in measures or (name == "aos" and "2d" in measures)]
    rows = []
    for name, min_overlap in MIN_OVERLAPS.items():
        rows.append([name, "objects", *(f"{scores[f'{name}/objects/{level}']:.0f}" for level in DIFFICULTIES)])
        for measure in shown_measures:
            values = (scores.get(f"{name}/{measure}/{level}") for level in DIFFICULTIES)
            rows.append([name, f"{TITLES[measure]} {min_overlap}", *("-" if v is None else f"{v:.2f}" for v in values)])
    notes = [
        f"AP R40 in percent; {files.scored} of {files.labelled} labelled {files.unit}s are scored, "
        f"{len(detections)} detections."
    ]
    if files.without_results:
        notes.append(f"{files.without_results} of them have no result file and count as empty.")
    elif files.scored < files.labelled:
        notes.append(
            f"{files.unit.capitalize()}s without a result file are left out; to count them, list them with --frames."
        )
    if has_no_2d and len(detections):
        notes.append("The results have no 2D boxes: no detection is ignored for being too small in the image.")
    if not has_3d and len(detections):
        notes.append("The results have no 3D boxes: BEV and 3D are left out.")
    if files.unit == "sequence":
        notes.append("Tracking labels give truncation as a level: all above 0 are harder than 'hard', and ignored.")
    return Table(title="KITTI", columns=("class", "measure", *DIFFICULTIES), rows=rows, notes=notes)
