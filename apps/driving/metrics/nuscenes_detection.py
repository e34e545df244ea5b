"""Average precision by centre distance, true-positive errors and NDS, as nuScenes defines them.

Protocol: Caesar et al., nuScenes, CVPR 2020, section 3.1, and the devkit's detection evaluation (configuration
detection_cvpr_2019). In order of falling score, each detection matches the nearest object of its class that is not
matched yet, if their centres are less than 0.5, 1, 2 or 4 m apart on the ground. AP is the area under the
precision-recall curve at 100 recalls, counted above a recall and a precision of 0.1. The errors of the matches at 2 m
are averaged over the reached recalls above 0.1; the error is 1 if there are none. Objects without a LiDAR or radar
return, and boxes beyond the range of their class, are ignored. The benchmark also ignores bicycles inside bike racks;
the caller must remove these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from apps.driving.metrics.nuscenes_boxes import DetectionBoxes, Integers
from apps.driving.metrics.overlap import Doubles

RANGES_M: Mapping[str, float] = {
    "car": 50, "truck": 50, "bus": 50, "trailer": 50, "construction_vehicle": 50, "pedestrian": 40, "motorcycle": 40,
    "bicycle": 40, "traffic_cone": 30, "barrier": 30,
}  # fmt: skip
"""The classes, and the maximum distance from the vehicle at which each is evaluated."""
THRESHOLDS_M = (0.5, 1.0, 2.0, 4.0)
ERROR_THRESHOLD_M = 2.0
MIN_RECALL = MIN_PRECISION = 0.1
ERRORS = ("ate", "ase", "aoe", "ave", "aae")
"""Errors of translation (m), scale (1 - IoU), orientation (rad), velocity (m/s) and attribute (1 - accuracy)."""
UNDEFINED: Mapping[str, Sequence[str]] = {"traffic_cone": ("aoe", "ave", "aae"), "barrier": ("ave", "aae")}
"""The errors that are not defined for a class."""
_RECALL_GRID = np.linspace(0, 1, 101)
_FIRST_RECALL_INDEX = round(100 * MIN_RECALL) + 1
_MEAN_AP_WEIGHT = 5


def evaluate(
    truth: DetectionBoxes,
    detections: DetectionBoxes,
    *,
    ranges_m: Mapping[str, float] = RANGES_M,
    thresholds_m: Sequence[float] = THRESHOLDS_M,
) -> dict[str, float]:
    """Per class ``car/objects``, ``car/ap/0.5``, ``car/ap``, ``car/ate``; over all classes ``map``, ``mate``, ``nds``.

    As in the devkit, a class of ``ranges_m`` without objects has an AP of 0 and errors of 1; ``map_present`` is the
    mean over the classes with objects. If no object or no detection has a velocity, the velocity error is absent, and
    likewise for attributes. Then ``nds`` is absent too, and ``nds_known`` weights the available errors in the same way.
    """
    truth = truth.take((truth.point_counts_N != 0) & _in_range(truth, ranges_m))
    detections = detections.take(_in_range(detections, ranges_m))
    available = [error for error in ERRORS if _is_available(error, truth, detections)]
    result: dict[str, float] = {}
    for name in ranges_m:
        class_objects, class_detections = truth.take(truth.names_N == name), detections.take(detections.names_N == name)
        result[f"{name}/objects"] = float(len(class_objects))
        result[f"{name}/detections"] = float(len(class_detections))
        for threshold in thresholds_m:
            order, matches = _match(class_objects, class_detections, threshold)
            result[f"{name}/ap/{threshold:g}"] = _average_precision(matches, len(class_objects))
        result[f"{name}/ap"] = float(np.mean([result[f"{name}/ap/{threshold:g}"] for threshold in thresholds_m]))
        order, matches = _match(class_objects, class_detections, ERROR_THRESHOLD_M)
        for error in available:
            if error not in UNDEFINED.get(name, ()):
                values = _errors(
                    error, class_objects, class_detections, order, matches, np.pi if name == "barrier" else 2 * np.pi
                )
                result[f"{name}/{error}"] = _mean_error(
                    values, class_detections.scores_N[order], matches, len(class_objects)
                )
    result["map"] = float(np.mean([result[f"{name}/ap"] for name in ranges_m]))
    present = [result[f"{name}/ap"] for name in ranges_m if result[f"{name}/objects"]]
    result["map_present"] = float(np.mean(present)) if present else 0.0
    for error in available:
        result[f"m{error}"] = float(np.mean([v for key, v in result.items() if key.endswith(f"/{error}")]))
    scores = [max(1 - result[f"m{error}"], 0.0) for error in available]
    weighted = (_MEAN_AP_WEIGHT * result["map"] + sum(scores)) / (_MEAN_AP_WEIGHT + len(scores))
    result["nds" if len(available) == len(ERRORS) else "nds_known"] = weighted
    return result


def _in_range(boxes: DetectionBoxes, ranges_m: Mapping[str, float]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    limits = np.array([ranges_m.get(name, -1.0) for name in boxes.names_N.tolist()], np.float64)
    is_near: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = boxes.distance_m_N < limits
    return is_near


def _is_available(error: str, truth: DetectionBoxes, detections: DetectionBoxes) -> bool:
    if error == "ave":
        return all(bool(np.isfinite(boxes.velocity_N2).all(axis=1).any()) for boxes in (truth, detections))
    if error == "aae":
        return all(bool((boxes.attributes_N != "").any()) for boxes in (truth, detections))
    return True


def _match(objects: DetectionBoxes, detections: DetectionBoxes, threshold_m: float) -> tuple[Integers, Integers]:
    """The detections' indices (D,) by falling score, and the index of the object that each matches (D,), -1 for none.

    Of equal scores the last detection comes first, as in the devkit.
    """
    order = np.lexsort((-np.arange(len(detections)), -detections.scores_N))
    matches = np.full(len(detections), -1, np.int64)
    begin = np.searchsorted(objects.sample_N, detections.sample_N)
    count = np.searchsorted(objects.sample_N, detections.sample_N, side="right") - begin
    candidate_detections = np.repeat(np.arange(len(detections)), count)
    nth = np.arange(len(candidate_detections)) - np.repeat(np.cumsum(count) - count, count)
    candidate_objects = begin[candidate_detections] + nth
    distance = _length(objects.centre_m_N2[candidate_objects] - detections.centre_m_N2[candidate_detections])
    is_near = distance < threshold_m
    candidate_detections, candidate_objects, distance = (
        candidate_detections[is_near],
        candidate_objects[is_near],
        distance[is_near],
    )
    rank = np.empty(len(detections), np.int64)
    rank[order] = np.arange(len(detections))
    # By falling score, and for each detection by rising distance: it takes the first object that is free.
    processing_order = np.lexsort((candidate_objects, distance, rank[candidate_detections]))
    free = [True] * len(objects)
    last_matched = -1
    for detection, target in zip(
        candidate_detections[processing_order].tolist(), candidate_objects[processing_order].tolist(), strict=True
    ):
        if detection != last_matched and free[target]:
            free[target] = False
            matches[detection] = target
            last_matched = detection
    return order, matches[order]


def _average_precision(matches_D: Integers, objects: int) -> float:
    if not (matches_D >= 0).any():
        return 0.0
    true_positives = np.cumsum(matches_D >= 0)
    precision = np.interp(
        _RECALL_GRID, true_positives / objects, true_positives / np.arange(1, len(matches_D) + 1), right=0
    )
    above = np.maximum(precision[_FIRST_RECALL_INDEX:] - MIN_PRECISION, 0)
    return float(above.mean() / (1 - MIN_PRECISION))


def _errors(
    error: str,
    objects: DetectionBoxes,
    detections: DetectionBoxes,
    order_D: Integers,
    matches_D: Integers,
    period: float,
) -> Doubles:
    """(M,) errors of the matches by falling score; NaN if the object has no velocity or attribute."""
    detection_indices, object_indices = order_D[matches_D >= 0], matches_D[matches_D >= 0]
    if error == "ate":
        return _length(objects.centre_m_N2[object_indices] - detections.centre_m_N2[detection_indices])
    if error == "ase":
        object_sizes, detection_sizes = objects.size_m_N3[object_indices], detections.size_m_N3[detection_indices]
        common = np.prod(np.minimum(object_sizes, detection_sizes), axis=1)
        overlap: Doubles = common / (np.prod(object_sizes, axis=1) + np.prod(detection_sizes, axis=1) - common)
        return 1 - overlap
    if error == "aoe":
        rotation = objects.yaw_N[object_indices] - detections.yaw_N[detection_indices]
        return np.abs((rotation + period / 2) % period - period / 2)
    if error == "ave":
        return _length(objects.velocity_N2[object_indices] - detections.velocity_N2[detection_indices])
    differs = (objects.attributes_N[object_indices] != detections.attributes_N[detection_indices]).astype(np.float64)
    return np.where(objects.attributes_N[object_indices] == "", np.nan, differs)


def _mean_error(errors_M: Doubles, scores_D: Doubles, matches_D: Integers, objects: int) -> float:
    """The running mean of the errors by falling score, averaged over the reached recalls above 0.1."""
    if not len(errors_M):
        return 1.0
    is_match = matches_D >= 0
    scores = np.interp(_RECALL_GRID, np.cumsum(is_match) / objects, scores_D, right=0)
    last_reached = int(np.nonzero(scores)[0].max(initial=0))
    if last_reached < _FIRST_RECALL_INDEX:
        return 1.0
    is_known = ~np.isnan(errors_M)
    count = np.cumsum(is_known)
    running_mean = np.divide(np.nancumsum(errors_M), count, out=np.zeros(len(errors_M)), where=count > 0)
    if not is_known.any():
        running_mean = np.ones(len(errors_M))
    at_recall = np.interp(scores[::-1], scores_D[is_match][::-1], running_mean[::-1])[::-1]
    return float(at_recall[_FIRST_RECALL_INDEX : last_reached + 1].mean())


def _length(vectors_N2: Doubles) -> Doubles:
    length: Doubles = np.hypot(vectors_N2[:, 0], vectors_N2[:, 1])
    return length
