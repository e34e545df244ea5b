"""Average precision as the KITTI object benchmark computes it, on the CPU.

Protocol: the benchmark's development kit (evaluate_object.cpp), with 40 recall positions since 2019 (Simonelli et al.
2019). A detection counts where it overlaps an object of its class by more than 0.7 (car) or 0.5 (pedestrian, cyclist),
in the image, in the bird's-eye view, or in space. Objects harder than the difficulty, vans (for cars) and sitting
people (for pedestrians) are neither hit nor missed. Detections in DontCare regions are no false positives; as in the
kit, that is so for the overlap in the image alone, since DontCare has no box in space.

Up to 41 score thresholds are chosen, each the score at which recall comes nearest to a multiple of 1/40; the precision
at the first one is dropped. So a perfect detector gets 100 only on 41 objects or more; on n < 41 it gets (n - 1) / 40.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.driving.metrics.kitti_matching import Candidates, Counts, count_at, hit_scores
from apps.driving.metrics.kitti_objects import IGNORED_REGION, Integers, KittiObjects, pairs_within_frames
from apps.driving.metrics.overlap import Doubles, paired_bev_iou, paired_box_iou, paired_image_iou
from apps.driving.types import Boxes3D, Frame

OVERLAPS: Mapping[str, float] = {"car": 0.7, "pedestrian": 0.5, "cyclist": 0.5}
NEUTRAL: Mapping[str, Sequence[str]] = {"car": ("van",), "pedestrian": ("person_sitting", "person")}
"""Neighbouring classes; the tracking benchmark calls a sitting person ``Person``."""
MEASURES = ("2d", "bev", "3d")
RECALLS = 41


@dataclass(frozen=True, slots=True)
class Difficulty:
    """What an object may at most be hidden and cut off by, and how high (pixels) it must at least be in the image."""

    height_px: float
    occlusion: int
    truncation: float


DIFFICULTIES = {
    "easy": Difficulty(40, 0, 0.15),
    "moderate": Difficulty(25, 1, 0.30),
    "hard": Difficulty(25, 2, 0.50),
}


def evaluate(truth: Sequence[Frame], predictions: Sequence[Boxes3D]) -> dict[str, float]:
    """AP R40 in percent by ``class/measure/difficulty``, as in ``car/3d/moderate``; ``aos`` is a measure too.

    Also ``class/objects/difficulty``, how many objects there were; where there was none, its other keys are absent.
    Predictions need scores; their 2D boxes are projected where they bring none. Raises ValueError for frames without
    truth, and for predictions that do not belong to them.
    """
    if len(truth) != len(predictions):
        raise ValueError(f"{len(truth)} frames, but predictions for {len(predictions)}")
    return average_precision(KittiObjects.of_truth(truth), KittiObjects.of_detections(truth, predictions))


def average_precision(
    truth: KittiObjects,
    found: KittiObjects,
    *,
    overlaps: Mapping[str, float] = OVERLAPS,
    measures: Sequence[str] = MEASURES,
) -> dict[str, float]:
    """As ``evaluate``, of objects in columns; ``overlaps`` are the classes, with the overlap that each asks for.

    ``aos`` comes with ``2d``; it is absent where a detection of the class has no observation angle.
    """
    boxes, regions = _chosen(truth, ~truth.named(IGNORED_REGION)), _chosen(truth, truth.named(IGNORED_REGION))
    rows, columns = pairs_within_frames(boxes, found)
    shared = {measure: _overlap(measure, boxes, found, rows, columns) for measure in measures}
    region_rows, region_columns = pairs_within_frames(regions, found)
    covered = paired_image_iou(found.box_2d_N4[region_columns], regions.box_2d_N4[region_rows], of_first=True)
    result: dict[str, float] = {}
    for name, least in overlaps.items():
        in_region = np.zeros(len(found), bool)
        in_region[region_columns[covered > least]] = True
        oriented = not np.isnan(found.alpha_N[found.named(name)]).any()
        for level, difficulty in DIFFICULTIES.items():
            state_T, state_D = _states(boxes, found, name, difficulty)
            objects = int((state_T == 0).sum())
            result[f"{name}/objects/{level}"] = float(objects)
            if not objects:
                continue
            for measure in measures:
                enough = (shared[measure] > least) & (state_T[rows] != -1) & (state_D[columns] != -1)
                candidates = Candidates(
                    rows=rows[enough],
                    columns=columns[enough],
                    overlap=shared[measure][enough],
                    similarity=_similarity(boxes, found, rows[enough], columns[enough]),
                    state_T=state_T,
                    state_D=state_D,
                    scores_D=found.scores_N,
                    in_region_D=in_region if measure == "2d" else np.zeros(len(found), bool),
                    frame_T=boxes.frame_N,
                )
                thresholds = _thresholds(hit_scores(candidates), objects)
                counts = count_at(candidates, thresholds)
                result[f"{name}/{measure}/{level}"] = _r40(counts.true_positives, counts)
                if measure == "2d" and oriented:
                    result[f"{name}/aos/{level}"] = _r40(counts.similarity, counts)
    return result


def _chosen(objects: KittiObjects, mask: NDArray[np.bool_]) -> KittiObjects:
    return KittiObjects(
        frame_N=objects.frame_N[mask],
        names_N=objects.names_N[mask],
        truncation_N=objects.truncation_N[mask],
        occlusion_N=objects.occlusion_N[mask],
        alpha_N=objects.alpha_N[mask],
        box_2d_N4=objects.box_2d_N4[mask],
        upright_N7=objects.upright_N7[mask],
        scores_N=objects.scores_N[mask],
    )


def _overlap(measure: str, boxes: KittiObjects, found: KittiObjects, rows: Integers, columns: Integers) -> Doubles:
    """(K,) intersection over union of each pair."""
    if measure == "2d":
        return paired_image_iou(boxes.box_2d_N4[rows], found.box_2d_N4[columns])
    here, there = boxes.upright_N7[rows], found.upright_N7[columns]
    if measure == "bev":
        plane = [0, 1, 3, 4, 6]
        return paired_bev_iou(here[:, plane], there[:, plane])
    return paired_box_iou(here, there)


def _similarity(boxes: KittiObjects, found: KittiObjects, rows: Integers, columns: Integers) -> Doubles:
    """(K,) orientation similarity of each pair, in [0, 1]; 0 where an angle is unknown."""
    turn = boxes.alpha_N[rows] - found.alpha_N[columns]
    return np.nan_to_num((1 + np.cos(turn)) / 2)


def _states(boxes: KittiObjects, found: KittiObjects, name: str, difficulty: Difficulty) -> tuple[Integers, Integers]:
    """0 counts, 1 is neutral, -1 plays no part: for the objects (T,) and for the detections (D,)."""
    height = boxes.box_2d_N4[:, 3] - boxes.box_2d_N4[:, 1]
    hard = (
        ~(height > difficulty.height_px)
        | (boxes.occlusion_N > difficulty.occlusion)
        | (boxes.truncation_N > difficulty.truncation)
    )
    named, neutral = boxes.named(name), boxes.named(*NEUTRAL.get(name, ()))
    state_T = np.where(named & ~hard, 0, np.where(neutral | named, 1, -1))
    tall = np.abs(found.box_2d_N4[:, 3] - found.box_2d_N4[:, 1]) >= difficulty.height_px
    state_D = np.where(~tall, 1, np.where(found.named(name), 0, -1))
    return state_T.astype(np.int64), state_D.astype(np.int64)


def _thresholds(scores: Doubles, objects: int) -> Doubles:
    """The scores at which recall comes nearest to 0, 1/40, 2/40 and so on."""
    chosen: list[float] = []
    recall = 0.0
    ordered = np.sort(scores)[::-1].tolist()
    for index, score in enumerate(ordered):
        last = index == len(ordered) - 1
        at, after = (index + 1) / objects, (index + 1 if last else index + 2) / objects
        if after - recall < recall - at and not last:
            continue
        chosen.append(score)
        recall += 1 / (RECALLS - 1)
    return np.array(chosen[:RECALLS], np.float64)


def _r40(right: Doubles, counts: Counts) -> float:
    """The mean of ``right`` over what was claimed, at 40 recall positions, each the best at that recall or above."""
    curve = np.zeros(RECALLS)
    curve[: len(right)] = right / np.maximum(counts.true_positives + counts.false_positives, 1)
    best = np.maximum.accumulate(curve[::-1])[::-1]
    return float(best[1:].sum() / (RECALLS - 1) * 100)
