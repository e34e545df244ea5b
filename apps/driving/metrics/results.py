"""Scores files of results beside labels, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from apps.driving.metrics.kitti_ap import DIFFICULTIES, MEASURES, OVERLAPS, average_precision
from apps.driving.metrics.kitti_files import KittiFiles, read_folders
from apps.driving.metrics.nuscenes_detection import ERRORS, RANGES_M, THRESHOLDS_M, evaluate
from apps.driving.metrics.nuscenes_files import NuscenesFiles, read_submission
from shared.app import Table
from shared.errors import InvalidInputError

_TITLES = {"2d": "2D", "aos": "AOS", "bev": "BEV", "3d": "3D"}


def score_files(files: Mapping[str, Path]) -> Table:
    """KITTI's table of the folders named results and labels; ``frames`` may name a list of what is scored.

    Where results is a JSON file, it is nuScenes' table of that submission, and labels is the folder of the tables.
    """
    if not {"results", "labels"} <= files.keys() <= {"results", "labels", "frames"}:
        raise InvalidInputError(
            "results are scored from --results DIR --labels DIR and, where not all frames are scored, --frames FILE "
            "(KITTI), or from --results JSON --labels DIR of nuScenes' tables; "
            f"given: {', '.join(sorted(files)) or 'none'}"
        )
    if files["results"].suffix.lower() == ".json":
        return nuscenes_table(read_submission(files["results"], files["labels"]))
    return kitti_table(read_folders(files["labels"], files["results"], files.get("frames")))


def nuscenes_table(files: NuscenesFiles) -> Table:
    """AP and errors of every class of the detection task, their means, and the number of objects that they rest on."""
    scores = evaluate(files.truth, files.found)
    errors = [error for error in ERRORS if f"m{error}" in scores]
    rows = []
    for name in RANGES_M:
        columns = [f"{name}/ap", *(f"{name}/ap/{threshold:g}" for threshold in THRESHOLDS_M)]
        columns += [f"{name}/{error}" for error in errors]
        counts = [f"{scores[f'{name}/{what}']:.0f}" for what in ("objects", "detections")]
        rows.append([name, *counts, *(f"{scores[key]:.3f}" if key in scores else "-" for key in columns)])
    means = [f"{scores['map']:.3f}", *[""] * len(THRESHOLDS_M), *(f"{scores[f'm{error}']:.3f}" for error in errors)]
    rows.append(["mean", "", "", *means])
    score = "nds" if "nds" in scores else "nds_known"
    absent = [name for name in RANGES_M if not scores[f"{name}/objects"]]
    notes = [
        f"NDS {scores['nds']:.4f}."
        if score == "nds"
        else f"No NDS: velocities or attributes are absent. Of mAP and the errors that there are {scores[score]:.4f}.",
        f"{files.samples} of {files.labelled} samples of the tables are in the submission and scored; "
        f"{files.in_racks} boxes in bicycle racks are left out.",
    ]
    if absent:
        notes.append(
            f"No objects of {', '.join(absent)}: as in the devkit their AP is 0 in the mean; "
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
    """AP R40 in percent of every class and measure by difficulty, and the number of objects that it rests on.

    Without any 2D box among the results, 2D and AOS are left out and no detection is too low in the image; without any
    box in space, BEV and 3D are.
    """
    found, box = files.found, files.found.box_2d_N4
    flat = not (box[:, 2:] > box[:, :2]).all(axis=1).any()
    solid = (found.upright_N7[:, 3:6] > 0).all(axis=1).any()
    if len(found) and flat and not solid:
        raise InvalidInputError("no result has a box in the image or in space; is it KITTI's layout?")
    measures = [name for name in MEASURES if not (flat if name == "2d" else not solid)] if len(found) else MEASURES
    if flat:
        found = replace(found, box_2d_N4=np.tile([0.0, 0.0, 0.0, 1e4], (len(found), 1)))
    scores = average_precision(files.truth, found, measures=measures)
    shown = [name for name in _TITLES if name in measures or (name == "aos" and "2d" in measures)]
    rows = []
    for name, least in OVERLAPS.items():
        rows.append([name, "objects", *(f"{scores[f'{name}/objects/{level}']:.0f}" for level in DIFFICULTIES)])
        for measure in shown:
            values = (scores.get(f"{name}/{measure}/{level}") for level in DIFFICULTIES)
            rows.append([name, f"{_TITLES[measure]} {least}", *("-" if v is None else f"{v:.2f}" for v in values)])
    notes = [
        f"AP R40 in percent; {files.scored} of {files.labelled} labelled {files.unit}s are scored, "
        f"{len(found)} detections."
    ]
    if files.without_results:
        notes.append(f"{files.without_results} of these have no result file and count as empty.")
    elif files.scored < files.labelled:
        notes.append(f"{files.unit.capitalize()}s without a result file are left out; --frames FILE makes them count.")
    if flat and len(found):
        notes.append("The results have no 2D boxes: none is left out for being low in the image.")
    if not solid and len(found):
        notes.append("The results have no boxes in space: BEV and 3D are left out.")
    if files.unit == "sequence":
        notes.append("Tracking labels give truncation as a level; all above 0 is harder than 'hard'.")
    return Table(title="KITTI", columns=("class", "measure", *DIFFICULTIES), rows=rows, notes=notes)
