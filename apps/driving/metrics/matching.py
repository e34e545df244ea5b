"""Precision and recall at a stated score threshold: few frames support this, where an average precision is noise.

A detection is a true positive where it overlaps an object of its class enough in the bird's-eye view, or lies near
enough to its centre (as nuScenes matches; Caesar et al. 2020). Detections take part from the highest score down, each
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters.projection import image_boxes
from apps.driving.metrics.overlap import Doubles, bev_iou, image_iou
from apps.driving.types import Boxes3D, Frame

Criterion = Literal["iou", "centre", "relative"]
NEUTRAL = {"car": ("van", "truck"), "pedestrian": ("person_sitting",), "cyclist": ()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """Of one frame and class, by their indices: ``true_positives`` (K, 2) are pairs of an object and a detection,
    ``false_negatives`` objects, ``false_positives`` detections."""

    true_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]
    false_positives: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Numbers of matches. Precision is 1 where there are no detections, recall where there are no objects."""

    true_positives: int
    false_negatives: int
    false_positives: int

    @property
    def detections(self) -> int:
        return self.true_positives + self.false_positives

    @property
    def objects(self) -> int:
        return self.true_positives + self.false_negatives

    @property
    def precision(self) -> float:
        return self.true_positives / self.detections if self.detections else 1.0

    @property
    def recall(self) -> float:
        return self.true_positives / self.objects if self.objects else 1.0


def match(
    frame: Frame,
    predicted: Boxes3D,
    name: str,
    *,
    criterion: Criterion = "iou",
    threshold: float = 0.5,
    fewest_points: int = 0,
    neutral: Mapping[str, Sequence[str]] = NEUTRAL,
) -> Matches:
    """Matches detections of class ``name`` with the truth of a frame.

    ``threshold`` is the least overlap in the bird's-eye view, or the greatest distance of centres: in metres
    ("centre"), or as a share of the object's distance from the LiDAR ("relative"). Objects of neutral classes, objects
    with fewer returns than ``fewest_points``, and DontCare regions (by half of the detection's area in the image) are
    ignored: a detection there is no false positive, and they are no false negatives.
    """
    truth = frame.truth
    if truth is None:
        raise ValueError(f"frame {frame.name} has no truth")
    others = neutral.get(name, ())
    sparse = np.zeros(len(truth), bool) if truth.point_counts is None else truth.point_counts < fewest_points
    wanted = np.array([other == name for other in truth.names], bool) & ~sparse
    ignored = np.array([other == name or other in others for other in truth.names], bool) & ~wanted
    candidates = np.nonzero([other == name for other in predicted.names])[0]
    if predicted.scores is not None:
        candidates = candidates[np.argsort(-predicted.scores[candidates], kind="stable")]
    closeness = _closeness(truth, predicted, criterion)
    limit = threshold if criterion == "iou" else -threshold
    in_ignored_region = _in_ignored_regions(frame, predicted)
    free = wanted.copy()
    pairs, unmatched = [], []
    for candidate in candidates:
        near = np.where(free, closeness[:, candidate], -np.inf)
        if len(near) and near.max() >= limit:
            best = int(near.argmax())
            free[best] = False
            pairs.append((best, int(candidate)))
        elif not in_ignored_region[candidate] and not (closeness[ignored, candidate] >= limit).any():
            unmatched.append(int(candidate))
    return Matches(
        true_positives=np.array(pairs, np.int64).reshape(-1, 2),
        false_negatives=np.nonzero(free)[0],
        false_positives=np.array(unmatched, np.int64),
    )


def count(
    frames: Sequence[Frame],
    predictions: Sequence[Boxes3D],
    name: str,
    *,
    criterion: Criterion = "iou",
    threshold: float = 0.5,
    fewest_points: int = 0,
    score: float = 0.0,
) -> Counts:
    """The matches of class ``name`` in all frames, by detections from ``score`` up."""
    true_positives = false_negatives = false_positives = 0
    for frame, predicted in zip(frames, predictions, strict=True):
        if predicted.scores is not None:
            predicted = predicted.take(predicted.scores >= score)
        result = match(frame, predicted, name, criterion=criterion, threshold=threshold, fewest_points=fewest_points)
        true_positives += len(result.true_positives)
        false_negatives += len(result.false_negatives)
        false_positives += len(result.false_positives)
    return Counts(true_positives=true_positives, false_negatives=false_negatives, false_positives=false_positives)


def _closeness(truth: Boxes3D, predicted: Boxes3D, criterion: Criterion) -> Doubles:
    here, there = truth.array.astype(np.float64), predicted.array.astype(np.float64)
    if criterion == "iou":
        plane = [0, 1, 3, 4, 6]
        return bev_iou(here[:, plane], there[:, plane])
    apart: Doubles = np.linalg.norm(here[:, None, :2] - there[None, :, :2], axis=-1)
    if criterion == "relative":
        apart = apart / np.maximum(np.linalg.norm(here[:, :2], axis=1), 1e-6)[:, None]
    return -apart


def _in_ignored_regions(frame: Frame, predicted: Boxes3D) -> NDArray[np.bool_]:
    inside = np.zeros(len(predicted), bool)
    for name, regions in frame.ignore_boxes_2d.items():
        camera = frame.cameras.get(name)
        if camera is None or not len(regions):
            continue
        size = (camera.image_HWC.shape[0], camera.image_HWC.shape[1])
        shown, _ = image_boxes(predicted, camera.intrinsics, camera.lidar_to_camera, size)
        overlap = image_iou(shown.astype(np.float64), regions.astype(np.float64), of_first=True)
        inside |= (overlap > 0.5).any(axis=1)
    return inside
