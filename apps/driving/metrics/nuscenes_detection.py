"""Average precision by the distance of centres, errors of true positives and NDS, as nuScenes defines them.

Protocol: Caesar et al., nuScenes, CVPR 2020, section 3.1, and the devkit's detection evaluation (configuration
detection_cvpr_2019). A detection hits the nearest object of its class that no better-scored one took, where their
centres are less than 0.5, 1, 2 or 4 m apart on the ground. AP is the area under precision over recall at 100 recalls,
above a recall and a precision of 0.1. At 2 m the errors of what was hit are averaged over the recalls above 0.1 that
are reached; 1 where none is. Objects without a LiDAR or radar return, and boxes beyond the range of their class, play
no part. Bicycles inside bike racks, which the benchmark leaves out, are for the caller to leave out.
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
"""The classes, and how far from the vehicle each is judged."""
THRESHOLDS_M = (0.5, 1.0, 2.0, 4.0)
ERROR_THRESHOLD_M = 2.0
MIN_RECALL = MIN_PRECISION = 0.1
ERRORS = ("ate", "ase", "aoe", "ave", "aae")
"""Of translation (m), scale (1 - IoU), orientation (rad), velocity (m/s) and attribute (1 - accuracy)."""
UNDEFINED: Mapping[str, Sequence[str]] = {"traffic_cone": ("aoe", "ave", "aae"), "barrier": ("ave", "aae")}
"""Errors that a class does not have."""
_RECALLS = np.linspace(0, 1, 101)
_FIRST = round(100 * MIN_RECALL) + 1
_MEAN_AP_WEIGHT = 5


def evaluate(
    truth: DetectionBoxes,
    found: DetectionBoxes,
    *,
    ranges_m: Mapping[str, float] = RANGES_M,
    thresholds_m: Sequence[float] = THRESHOLDS_M,
) -> dict[str, float]:
    """By class ``car/objects``, ``car/ap/0.5``, ``car/ap``, ``car/ate``; over the classes ``map``, ``mate``, ``nds``.

    As in the devkit a class of ``ranges_m`` without objects has an AP of 0 and errors of 1; ``map_present`` is the mean
    over the classes with objects. Where no object or no detection has a velocity, its error is absent, likewise the
    attribute; then ``nds`` is absent too, and ``nds_known`` weights the errors that there are in the same way.
    """
    truth = truth.take((truth.point_counts_N != 0) & _in_range(truth, ranges_m))
    found = found.take(_in_range(found, ranges_m))
    known = [error for error in ERRORS if _known(error, truth, found)]
    result: dict[str, float] = {}
    for name in ranges_m:
        objects, detections = truth.take(truth.names_N == name), found.take(found.names_N == name)
        result[f"{name}/objects"] = float(len(objects))
        result[f"{name}/detections"] = float(len(detections))
        for threshold in thresholds_m:
            order, hit = _match(objects, detections, threshold)
            result[f"{name}/ap/{threshold:g}"] = _average_precision(hit, len(objects))
        result[f"{name}/ap"] = float(np.mean([result[f"{name}/ap/{threshold:g}"] for threshold in thresholds_m]))
        order, hit = _match(objects, detections, ERROR_THRESHOLD_M)
        for error in known:
            if error not in UNDEFINED.get(name, ()):
                values = _errors(error, objects, detections, order, hit, np.pi if name == "barrier" else 2 * np.pi)
                result[f"{name}/{error}"] = _mean_error(values, detections.scores_N[order], hit, len(objects))
    result["map"] = float(np.mean([result[f"{name}/ap"] for name in ranges_m]))
    present = [result[f"{name}/ap"] for name in ranges_m if result[f"{name}/objects"]]
    result["map_present"] = float(np.mean(present)) if present else 0.0
    for error in known:
        result[f"m{error}"] = float(np.mean([v for key, v in result.items() if key.endswith(f"/{error}")]))
    scores = [max(1 - result[f"m{error}"], 0.0) for error in known]
    weighted = (_MEAN_AP_WEIGHT * result["map"] + sum(scores)) / (_MEAN_AP_WEIGHT + len(scores))
    result["nds" if len(known) == len(ERRORS) else "nds_known"] = weighted
    return result


def _in_range(boxes: DetectionBoxes, ranges_m: Mapping[str, float]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    limits = np.array([ranges_m.get(name, -1.0) for name in boxes.names_N.tolist()], np.float64)
    near: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = boxes.distance_m_N < limits
    return near


def _known(error: str, truth: DetectionBoxes, found: DetectionBoxes) -> bool:
    if error == "ave":
        return all(bool(np.isfinite(boxes.velocity_N2).all(axis=1).any()) for boxes in (truth, found))
    if error == "aae":
        return all(bool((boxes.attributes_N != "").any()) for boxes in (truth, found))
    return True


def _match(objects: DetectionBoxes, detections: DetectionBoxes, threshold_m: float) -> tuple[Integers, Integers]:
    """The detections from the highest score down (D,), and the object that each hits (D,), -1 for none.

    Of equal scores the last one comes first, as in the devkit.
    """
    order = np.lexsort((-np.arange(len(detections)), -detections.scores_N))
    hit = np.full(len(detections), -1, np.int64)
    begin = np.searchsorted(objects.sample_N, detections.sample_N)
    count = np.searchsorted(objects.sample_N, detections.sample_N, side="right") - begin
    detection = np.repeat(np.arange(len(detections)), count)
    nth = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    object_ = begin[detection] + nth
    apart = _length(objects.centre_m_N2[object_] - detections.centre_m_N2[detection])
    near = apart < threshold_m
    detection, object_, apart = detection[near], object_[near], apart[near]
    rank = np.empty(len(detections), np.int64)
    rank[order] = np.arange(len(detections))
    # By falling score, and for a detection the nearest object first: it takes the first that is free.
    sequence = np.lexsort((object_, apart, rank[detection]))
    free = [True] * len(objects)
    done = -1
    for number, target in zip(detection[sequence].tolist(), object_[sequence].tolist(), strict=True):
        if number != done and free[target]:
            free[target] = False
            hit[number] = target
            done = number
    return order, hit[order]


def _average_precision(hit_D: Integers, objects: int) -> float:
    if not (hit_D >= 0).any():
        return 0.0
    right = np.cumsum(hit_D >= 0)
    precision = np.interp(_RECALLS, right / objects, right / np.arange(1, len(hit_D) + 1), right=0)
    above = np.maximum(precision[_FIRST:] - MIN_PRECISION, 0)
    return float(above.mean() / (1 - MIN_PRECISION))


def _errors(
    error: str, objects: DetectionBoxes, detections: DetectionBoxes, order_D: Integers, hit_D: Integers, period: float
) -> Doubles:
    """(H,) errors of the hits, from the highest score down; NaN where the object has no velocity or attribute."""
    there, here = order_D[hit_D >= 0], hit_D[hit_D >= 0]
    if error == "ate":
        return _length(objects.centre_m_N2[here] - detections.centre_m_N2[there])
    if error == "ase":
        mine, theirs = objects.size_m_N3[here], detections.size_m_N3[there]
        common = np.prod(np.minimum(mine, theirs), axis=1)
        overlap: Doubles = common / (np.prod(mine, axis=1) + np.prod(theirs, axis=1) - common)
        return 1 - overlap
    if error == "aoe":
        turn = objects.yaw_N[here] - detections.yaw_N[there]
        return np.abs((turn + period / 2) % period - period / 2)
    if error == "ave":
        return _length(objects.velocity_N2[here] - detections.velocity_N2[there])
    unlike = (objects.attributes_N[here] != detections.attributes_N[there]).astype(np.float64)
    return np.where(objects.attributes_N[here] == "", np.nan, unlike)


def _mean_error(values_H: Doubles, scores_D: Doubles, hit_D: Integers, objects: int) -> float:
    """The running mean of the errors over falling scores, averaged over the recalls above 0.1 that are reached."""
    if not len(values_H):
        return 1.0
    hits = hit_D >= 0
    scores = np.interp(_RECALLS, np.cumsum(hits) / objects, scores_D, right=0)
    reached = int(np.nonzero(scores)[0].max(initial=0))
    if reached < _FIRST:
        return 1.0
    known = ~np.isnan(values_H)
    count = np.cumsum(known)
    running = np.divide(np.nancumsum(values_H), count, out=np.zeros(len(values_H)), where=count > 0)
    if not known.any():
        running = np.ones(len(values_H))
    at_recall = np.interp(scores[::-1], scores_D[hits][::-1], running[::-1])[::-1]
    return float(at_recall[_FIRST : reached + 1].mean())


def _length(vectors_N2: Doubles) -> Doubles:
    length: Doubles = np.hypot(vectors_N2[:, 0], vectors_N2[:, 1])
    return length
