"""Reads a nuScenes submission (JSON) and the tables with its truth for scoring.

Layouts: the devkit's detection task (results by sample: translation and rotation in the global frame, size as width,
length, height) and the schema of the data set's tables (``v1.0-mini``, ``v1.0-trainval``). As in the devkit, distances
are from the ego pose of a sample's LiDAR key frame, and an object's velocity is computed between its neighbouring
annotations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.driving.adapters.nuscenes_tables import DETECTION_NAMES, rotation_of
from apps.driving.metrics.nuscenes_boxes import DetectionBoxes
from apps.driving.metrics.overlap import Doubles
from shared.errors import InvalidInputError

MAX_BOXES_PER_SAMPLE = 500
RACK_CATEGORY = "static_object.bicycle_rack"
_RACK_CLASSES = ("bicycle", "motorcycle")
_MAX_ELAPSED_S = 1.5
"""Maximum time between consecutive annotations from which a velocity is computed, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NuscenesFiles:
    """Truth and detections of a submission's ``samples``; ``labelled`` is the number of samples in the tables, and
    ``in_racks`` the number of boxes that were removed because they lie in bicycle racks."""

    truth: DetectionBoxes
    detections: DetectionBoxes
    samples: int
    labelled: int
    in_racks: int


def read_submission(results: Path, tables: Path) -> NuscenesFiles:
    """Reads the samples in the submission, with their truth.

    As in the devkit, bicycles and motorcycles whose centre lies in a bicycle rack are removed from both. Raises
    InvalidInputError for files that are not in the layouts, samples that are not in the tables, and samples with more
    than 500 detections.
    """
    submission = _read_json(results)
    by_sample = submission.get("results", submission) if isinstance(submission, dict) else None
    if not isinstance(by_sample, dict) or not by_sample:
        raise InvalidInputError(
            f"{results.name} is not a submission to nuScenes' detection task: it has no results by sample"
        )
    try:
        labels = _Tables(tables)
        samples = {token: number for number, token in enumerate(by_sample)}
        if unknown := [token for token in samples if token not in labels.ego_m]:
            raise InvalidInputError(f"{results.name}: the tables in {tables} have no sample {unknown[0]}")
        detections = _detections(by_sample, samples, labels.ego_m)
        truth, racks = labels.truth(samples)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InvalidInputError(
            f"{results.name} or the tables in {tables} are not in nuScenes' layout: {type(error).__name__} {error}"
        ) from error
    kept = [np.array([not _in_rack(row, racks) for row in rows], bool) for rows in (truth, detections)]
    return NuscenesFiles(
        truth=_to_boxes(truth).take(kept[0]),
        detections=_to_boxes(detections).take(kept[1]),
        samples=len(samples),
        labelled=len(labels.ego_m),
        in_racks=int(sum((~mask).sum() for mask in kept)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    sample: int
    name: str
    centre_m: Doubles
    size_wlh_m: Doubles
    rotation_wxyz: Doubles
    distance_m: float
    score: float
    velocity: Sequence[float]
    attribute: str
    points: int


class _Tables:
    """The data set's tables that the detection task needs, indexed by token."""

    def __init__(self, folder: Path) -> None:
        tables = {name: _read_table(folder, name) for name in _TABLES}
        self._time_s = {row["token"]: row["timestamp"] * 1e-6 for row in tables["sample"]}
        poses = {row["token"]: row["translation"] for row in tables["ego_pose"]}
        lidars = [row for row in tables["sample_data"] if row["is_key_frame"] and "LIDAR_TOP" in row["filename"]]
        self.ego_m = {row["sample_token"]: np.array(poses[row["ego_pose_token"]], np.float64) for row in lidars}
        categories = {row["token"]: row["name"] for row in tables["category"]}
        self._category = {row["token"]: categories[row["category_token"]] for row in tables["instance"]}
        self._attribute = {row["token"]: row["name"] for row in tables["attribute"]}
        self._annotations = {row["token"]: row for row in tables["sample_annotation"]}

    def truth(self, samples: Mapping[str, int]) -> tuple[list[_Row], list[_Row]]:
        """The objects of the detection task, sorted by sample, and the bicycle racks."""
        objects: list[_Row] = []
        racks: list[_Row] = []
        for annotation in self._annotations.values():
            sample = samples.get(annotation["sample_token"])
            category = self._category[annotation["instance_token"]]
            if sample is None or not (category in DETECTION_NAMES or category == RACK_CATEGORY):
                continue
            attributes = [self._attribute[token] for token in annotation["attribute_tokens"]]
            row = _Row(
                sample=sample,
                name=DETECTION_NAMES.get(category, category),
                centre_m=np.array(annotation["translation"], np.float64),
                size_wlh_m=np.array(annotation["size"], np.float64),
                rotation_wxyz=np.array(annotation["rotation"], np.float64),
                distance_m=_ground_distance_m(annotation["translation"], self.ego_m[annotation["sample_token"]]),
                score=0.0,
                velocity=self._velocity(annotation),
                attribute=attributes[0] if attributes else "",
                points=annotation["num_lidar_pts"] + annotation["num_radar_pts"],
            )
            (racks if category == RACK_CATEGORY else objects).append(row)
        return sorted(objects, key=lambda row: row.sample), racks

    def _velocity(self, annotation: Mapping[str, Any]) -> list[float]:
        first, last = (self._annotations.get(annotation[key], annotation) for key in ("prev", "next"))
        elapsed = self._time_s[last["sample_token"]] - self._time_s[first["sample_token"]]
        has_both = first is not annotation and last is not annotation
        if first is last or elapsed > _MAX_ELAPSED_S * (1 + has_both):
            return [np.nan, np.nan]
        velocity = (np.array(last["translation"]) - np.array(first["translation"])) / elapsed
        return [float(velocity[0]), float(velocity[1])]


_TABLES = ("sample", "sample_data", "ego_pose", "sample_annotation", "instance", "category", "attribute")


def _detections(
    by_sample: Mapping[str, Sequence[Mapping[str, Any]]], samples: Mapping[str, int], ego_m: Mapping[str, Doubles]
) -> list[_Row]:
    rows = []
    for token, boxes in by_sample.items():
        if len(boxes) > MAX_BOXES_PER_SAMPLE:
            raise InvalidInputError(
                f"sample {token} has {len(boxes)} detections; nuScenes allows at most {MAX_BOXES_PER_SAMPLE}"
            )
        for box in boxes:
            numbers = (*box["translation"], *box["size"], *box["rotation"], box["detection_score"])
            if not np.isfinite(numbers).all():
                raise InvalidInputError(f"sample {token} has a detection with a number that is not finite")
            rows.append(
                _Row(
                    sample=samples[token],
                    name=str(box["detection_name"]),
                    centre_m=np.array(box["translation"], np.float64),
                    size_wlh_m=np.array(box["size"], np.float64),
                    rotation_wxyz=np.array(box["rotation"], np.float64),
                    distance_m=_ground_distance_m(box["translation"], ego_m[token]),
                    score=float(box["detection_score"]),
                    velocity=[float(value) for value in box.get("velocity") or (np.nan, np.nan)][:2],
                    attribute=str(box.get("attribute_name") or ""),
                    points=-1,
                )
            )
    return rows


def _to_boxes(rows: Sequence[_Row]) -> DetectionBoxes:
    quaternion = np.array([row.rotation_wxyz for row in rows], np.float64).reshape(-1, 4)
    return DetectionBoxes(
        sample_N=np.array([row.sample for row in rows], np.int64),
        names_N=np.array([row.name for row in rows], np.str_),
        centre_m_N2=np.array([row.centre_m[:2] for row in rows], np.float64).reshape(-1, 2),
        size_m_N3=np.array([row.size_wlh_m[[1, 0, 2]] for row in rows], np.float64).reshape(-1, 3),
        yaw_N=np.arctan2(rotation_of(quaternion)[:, 1, 0], rotation_of(quaternion)[:, 0, 0]),
        distance_m_N=np.array([row.distance_m for row in rows], np.float64),
        scores_N=np.array([row.score for row in rows], np.float64),
        velocity_N2=np.array([row.velocity for row in rows], np.float64).reshape(-1, 2),
        attributes_N=np.array([row.attribute for row in rows], np.str_),
        point_counts_N=np.array([row.points for row in rows], np.int64),
    )


def _in_rack(row: _Row, racks: Sequence[_Row]) -> bool:
    """Whether the row is a bicycle or motorcycle whose centre lies in a rack of its sample."""
    if row.name not in _RACK_CLASSES:
        return False
    for rack in racks:
        if rack.sample == row.sample:
            offset = rotation_of(rack.rotation_wxyz[None])[0].T @ (row.centre_m - rack.centre_m)
            if (np.abs(offset) <= rack.size_wlh_m[[1, 0, 2]] / 2).all():
                return True
    return False


def _ground_distance_m(translation: Sequence[float], ego_m: Doubles) -> float:
    return float(np.hypot(translation[0] - ego_m[0], translation[1] - ego_m[1]))


def _read_table(folder: Path, name: str) -> list[dict[str, Any]]:
    rows = _read_json(folder / f"{name}.json")
    if not isinstance(rows, list):
        raise InvalidInputError(f"{folder}/{name}.json is not a nuScenes table")
    return rows


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read as JSON ({error})") from None
