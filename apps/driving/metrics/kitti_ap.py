"""Average precision as the KITTI object benchmark computes it, on the CPU.

Protocol: the benchmark's development kit (evaluate_object.cpp), with 40 recall positions since 2019 (Simonelli et al.
2019). A detection matches an object of its class if their IoU in the image (2D), in the bird's-eye view (BEV) or in 3D
is above 0.7 (car) or 0.5 (pedestrian, cyclist). Objects harder than the difficulty, vans (for cars) and sitting people
(for pedestrians) are ignored: they are neither true positives nor misses. Detections in DontCare regions are not false
positives; as in the kit, this holds only for 2D, since DontCare regions have no 3D box.

Up to 41 score thresholds are chosen, each the score at which recall is nearest to a multiple of 1/40; the precision at
the first one is dropped. A perfect detector therefore gets 100 only on 41 objects or more; on n < 41 objects it gets
100 (n - 1) / 40.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from apps.driving.metrics.kitti_matching import Candidates, Counts, counts_at, matched_scores
from apps.driving.metrics.kitti_objects import IGNORED_REGION, Integers, KittiObjects, pairs_within_frames
from apps.driving.metrics.overlap import Doubles, paired_bev_iou, paired_box_iou, paired_image_iou
from apps.driving.types import BEV_COLUMNS, Boxes3D, Frame

MIN_OVERLAPS: Mapping[str, float] = {"car": 0.7, "pedestrian": 0.5, "cyclist": 0.5}
NEIGHBOURING_CLASSES: Mapping[str, Sequence[str]] = {"car": ("van",), "pedestrian": ("person_sitting", "person")}
"""Objects of these classes are ignored for the class; the tracking benchmark calls a sitting person ``Person``."""
MEASURES = ("2d", "bev", "3d")
TITLES = {"2d": "2D", "aos": "AOS", "bev": "BEV", "3d": "3D"}
MAX_THRESHOLDS = 41


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The minimum height of an object in the image (pixels), and its maximum occlusion level and truncation."""

    height_px: float
    occlusion: int
    truncation: float


DIFFICULTIES = {
    "easy": Difficulty(40, 0, 0.15),
    "moderate": Difficulty(25, 1, 0.30),
    "hard": Difficulty(25, 2, 0.50),
}


def evaluate(truth: Sequence[Frame], predictions: Sequence[Boxes3D]) -> dict[str, float]:
    """AP R40 in percent by ``class/measure/difficulty``, such as ``car/3d/moderate``; ``aos`` is a measure too.

    ``class/objects/difficulty`` is the number of objects; if it is 0, the other keys of this class and difficulty are
    absent. Predictions need scores; if they have no 2D boxes, these are projected. Raises ValueError for frames without
    truth, and if the numbers of frames and predictions differ.
    """
    if len(truth) != len(predictions):
        raise ValueError(f"{len(truth)} frames, but predictions for {len(predictions)}")
    return average_precision(KittiObjects.of_truth(truth), KittiObjects.of_detections(truth, predictions))


def average_precision(
    truth: KittiObjects,
    detections: KittiObjects,
    *,
    overlaps: Mapping[str, float] = MIN_OVERLAPS,
    measures: Sequence[str] = MEASURES,
) -> dict[str, float]:
    """As ``evaluate``, for objects in columns; ``overlaps`` maps each class to evaluate to the IoU that a match must
    exceed.

    ``aos`` is computed with ``2d``; it is absent if a detection of the class has no observation angle.
    """
    objects, regions = truth.take(~truth.named(IGNORED_REGION)), truth.take(truth.named(IGNORED_REGION))
    rows, columns = pairs_within_frames(objects, detections)
    overlap_by_measure = {measure: _overlap(measure, objects, detections, rows, columns) for measure in measures}
    region_rows, region_columns = pairs_within_frames(regions, detections)
    region_overlap = paired_image_iou(
        detections.box_2d_N4[region_columns], regions.box_2d_N4[region_rows], of_first=True
    )
    result: dict[str, float] = {}
    for name, min_overlap in overlaps.items():
        in_region = np.zeros(len(detections), bool)
        in_region[region_columns[region_overlap > min_overlap]] = True
        oriented = not np.isnan(detections.alpha_N[detections.named(name)]).any()
        for level, difficulty in DIFFICULTIES.items():
            state_T, state_D = _states(objects, detections, name, difficulty)
            object_count = int((state_T == 0).sum())
            result[f"{name}/objects/{level}"] = float(object_count)
            if not object_count:
                continue
            for measure in measures:
                chosen = (overlap_by_measure[measure] > min_overlap) & (state_T[rows] != -1) & (state_D[columns] != -1)
                candidates = Candidates(
                    rows=rows[chosen],
                    columns=columns[chosen],
                    overlap=overlap_by_measure[measure][chosen],
                    similarity=_similarity(objects, detections, rows[chosen], columns[chosen]),
                    state_T=state_T,
                    state_D=state_D,
                    scores_D=detections.scores_N,
                    in_region_D=in_region if measure == "2d" else np.zeros(len(detections), bool),
                    frame_T=objects.frame_N,
                )
                thresholds = _thresholds(matched_scores(candidates), object_count)
                counts = counts_at(candidates, thresholds)
                result[f"{name}/{measure}/{level}"] = _mean_over_recalls(counts.true_positives, counts)
                if measure == "2d" and oriented:
                    result[f"{name}/aos/{level}"] = _mean_over_recalls(counts.similarity, counts)
    return result


def _overlap(
    measure: str, objects: KittiObjects, detections: KittiObjects, rows: Integers, columns: Integers
) -> Doubles:
    """(K,) IoU of each pair, in the image, in the bird's-eye view or in 3D."""
    if measure == "2d":
        return paired_image_iou(objects.box_2d_N4[rows], detections.box_2d_N4[columns])
    first, second = objects.upright_N7[rows], detections.upright_N7[columns]
    if measure == "bev":
        return paired_bev_iou(first[:, BEV_COLUMNS], second[:, BEV_COLUMNS])
    return paired_box_iou(first, second)


def _similarity(objects: KittiObjects, detections: KittiObjects, rows: Integers, columns: Integers) -> Doubles:
    """(K,) orientation similarity of each pair, in [0, 1]; 0 if an angle is unknown."""
    angle_difference = objects.alpha_N[rows] - detections.alpha_N[columns]
    return np.nan_to_num((1 + np.cos(angle_difference)) / 2)


def _states(
    objects: KittiObjects, detections: KittiObjects, name: str, difficulty: Difficulty
) -> tuple[Integers, Integers]:
    """The states of the objects (T,) and of the detections (D,): 0 evaluated, 1 ignored, -1 never matched."""
    height = objects.box_2d_N4[:, 3] - objects.box_2d_N4[:, 1]
    hard = (
        ~(height > difficulty.height_px)
        | (objects.occlusion_N > difficulty.occlusion)
        | (objects.truncation_N > difficulty.truncation)
    )
    is_of_class, is_neighbouring = objects.named(name), objects.named(*NEIGHBOURING_CLASSES.get(name, ()))
    state_T = np.where(is_of_class & ~hard, 0, np.where(is_neighbouring | is_of_class, 1, -1))
    tall = np.abs(detections.box_2d_N4[:, 3] - detections.box_2d_N4[:, 1]) >= difficulty.height_px
    state_D = np.where(~tall, 1, np.where(detections.named(name), 0, -1))
    return state_T.astype(np.int64), state_D.astype(np.int64)


def _thresholds(scores: Doubles, objects: int) -> Doubles:
    """The scores at which recall is nearest to 0, 1/40, 2/40 and so on; at most ``MAX_THRESHOLDS``."""
    chosen: list[float] = []
    recall = 0.0
    sorted_scores = np.sort(scores)[::-1].tolist()
    for index, score in enumerate(sorted_scores):
        last = index == len(sorted_scores) - 1
        recall_here, next_recall = (index + 1) / objects, (index + 1 if last else index + 2) / objects
        if next_recall - recall < recall - recall_here and not last:
            continue
        chosen.append(score)
        recall += 1 / (MAX_THRESHOLDS - 1)
    return np.array(chosen[:MAX_THRESHOLDS], np.float64)


def _mean_over_recalls(numerator: Doubles, counts: Counts) -> float:
    """The mean over 40 recall positions of ``numerator`` divided by the number of detections, in percent.

    At each position the maximum at this recall or above is taken.
    """
    curve = np.zeros(MAX_THRESHOLDS)
    curve[: len(numerator)] = numerator / np.maximum(counts.true_positives + counts.false_positives, 1)
    best = np.maximum.accumulate(curve[::-1])[::-1]
    return float(best[1:].sum() / (MAX_THRESHOLDS - 1) * 100)
