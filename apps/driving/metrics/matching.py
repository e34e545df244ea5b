"""True and false positives among the detections shown, for so few frames that an average precision would be noise.

A detection is a true positive if its BEV IoU with an object of its class is high enough, or if its centre is near
enough to the object's (as nuScenes matches; Caesar et al. 2020). Detections are matched in order of falling score, each
with at most one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters.projection import image_boxes
from apps.driving.metrics.overlap import Doubles, bev_iou, image_iou
from apps.driving.types import BEV_COLUMNS, Boxes3D, Frame

Criterion = Literal["iou", "centre"]
_IGNORED_CLASSES = {"car": ("van", "truck"), "pedestrian": ("person_sitting",), "cyclist": ()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """The matches of one class in a frame, as indices: ``true_positives`` (K, 2) are pairs of an object and a
    detection, ``false_negatives`` objects, ``false_positives`` detections."""

    true_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]
    false_positives: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Numbers of matches."""

    true_positives: int
    false_negatives: int
    false_positives: int

    @property
    def detections(self) -> int:
        return self.true_positives + self.false_positives

    @property
    def objects(self) -> int:
        return self.true_positives + self.false_negatives


def match(
    frame: Frame,
    predicted: Boxes3D,
    name: str,
    *,
    criterion: Criterion = "iou",
    threshold: float = 0.5,
    fewest_points: int = 0,
) -> Matches:
    """Matches detections of class ``name`` with the truth of a frame.

    ``threshold`` is the minimum BEV IoU ("iou"), or the maximum distance of the centres in metres ("centre"). Objects
    of similar classes, objects with fewer returns than ``fewest_points``, and DontCare regions (which hold over half of
    the detection's area in the image) are ignored: a detection there is not a false positive, and they are not false
    negatives.
    """
    truth = frame.truth
    if truth is None:
        raise ValueError(f"frame {frame.name} has no truth")
    ignored_names = _IGNORED_CLASSES.get(name, ())
    has_few_points = np.zeros(len(truth), bool) if truth.point_counts is None else truth.point_counts < fewest_points
    is_wanted = np.array([object_name == name for object_name in truth.names], bool) & ~has_few_points
    is_ignored = (
        np.array([object_name == name or object_name in ignored_names for object_name in truth.names], bool)
        & ~is_wanted
    )
    candidates = np.nonzero([object_name == name for object_name in predicted.names])[0]
    if predicted.scores is not None:
        candidates = candidates[np.argsort(-predicted.scores[candidates], kind="stable")]
    closeness = _closeness(truth, predicted, criterion)
    limit = threshold if criterion == "iou" else -threshold
    in_ignored_region = _in_ignored_regions(frame, predicted)
    is_free = is_wanted.copy()
    pairs, unmatched = [], []
    for candidate in candidates:
        free_closeness = np.where(is_free, closeness[:, candidate], -np.inf)
        if len(free_closeness) and free_closeness.max() >= limit:
            best = int(free_closeness.argmax())
            is_free[best] = False
            pairs.append((best, int(candidate)))
        elif not in_ignored_region[candidate] and not (closeness[is_ignored, candidate] >= limit).any():
            unmatched.append(int(candidate))
    return Matches(
        true_positives=np.array(pairs, np.int64).reshape(-1, 2),
        false_negatives=np.nonzero(is_free)[0],
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
) -> Counts:
    """The numbers of matches of class ``name`` in all frames."""
    true_positives = false_negatives = false_positives = 0
    for frame, predicted in zip(frames, predictions, strict=True):
        result = match(frame, predicted, name, criterion=criterion, threshold=threshold, fewest_points=fewest_points)
        true_positives += len(result.true_positives)
        false_negatives += len(result.false_negatives)
        false_positives += len(result.false_positives)
    return Counts(true_positives=true_positives, false_negatives=false_negatives, false_positives=false_positives)


def _closeness(truth: Boxes3D, predicted: Boxes3D, criterion: Criterion) -> Doubles:
    truth_boxes, predicted_boxes = truth.array.astype(np.float64), predicted.array.astype(np.float64)
    if criterion == "iou":
        return bev_iou(truth_boxes[:, BEV_COLUMNS], predicted_boxes[:, BEV_COLUMNS])
    distance: Doubles = np.linalg.norm(truth_boxes[:, None, :2] - predicted_boxes[None, :, :2], axis=-1)
    return -distance


def _in_ignored_regions(frame: Frame, predicted: Boxes3D) -> NDArray[np.bool_]:
    inside = np.zeros(len(predicted), bool)
    for name, regions in frame.ignore_boxes_2d.items():
        camera = frame.cameras.get(name)
        if camera is None or not len(regions):
            continue
        size = (camera.image_HWC.shape[0], camera.image_HWC.shape[1])
        box_2d, _ = image_boxes(predicted, camera.intrinsics, camera.lidar_to_camera, size)
        overlap = image_iou(box_2d.astype(np.float64), regions.astype(np.float64), of_first=True)
        inside |= (overlap > 0.5).any(axis=1)
    return inside
