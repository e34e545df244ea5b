"""Average precision as the KITTI object benchmark computes it, on the CPU.

Protocol: the benchmark's development kit (evaluate_object.cpp), with 40 recall positions since 2019 (Simonelli et al.
2019). A detection counts where it overlaps an object of its class by more than 0.7 (car) or 0.5 (pedestrian, cyclist),
in the image, in the bird's-eye view, or in space. Objects harder than the difficulty, vans (for cars) and sitting
people (for pedestrians) are neither hit nor missed. Detections in DontCare regions are no false alarms; as in the kit,
that is so for the overlap in the image alone, since DontCare has no box in space.

Up to 41 score thresholds are chosen, each the score at which recall comes nearest to a multiple of 1/40; the precision
at the first one is dropped. So a perfect detector gets 100 only on 41 objects or more; on n < 41 it gets (n - 1) / 40.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters.kitti import to_rectified
from apps.driving.adapters.projection import image_boxes
from apps.driving.metrics.overlap import Doubles, bev_iou, box_iou, image_iou
from apps.driving.types import Boxes3D, Camera, Frame

OVERLAPS = {"car": 0.7, "pedestrian": 0.5, "cyclist": 0.5}
NEUTRAL = {"car": "van", "pedestrian": "person_sitting"}
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
    scenes = [_scene(frame, boxes) for frame, boxes in zip(truth, predictions, strict=True)]
    result: dict[str, float] = {}
    for name, least in OVERLAPS.items():
        for level, difficulty in DIFFICULTIES.items():
            states = [_states(scene, name, difficulty) for scene in scenes]
            objects = sum(int((state.truth == 0).sum()) for state in states)
            result[f"{name}/objects/{level}"] = float(objects)
            if not objects:
                continue
            for measure in MEASURES:
                precision, similarity = _curves(scenes, states, measure, least, objects)
                result[f"{name}/{measure}/{level}"] = _r40(precision)
                if measure == "2d":
                    result[f"{name}/aos/{level}"] = _r40(similarity)
    return result


@dataclass(frozen=True, slots=True)
class _Scene:
    truth: Boxes3D
    found: Boxes3D
    scores: Doubles
    truth_2d: Doubles
    found_2d: Doubles
    ignored_2d: Doubles
    overlap: dict[str, Doubles]
    turn: Doubles


@dataclass(frozen=True, slots=True)
class _States:
    """0 counts, 1 is neutral, -1 plays no part: for the truth (T,) and for the detections (D,) of a frame."""

    truth: NDArray[np.int64]
    found: NDArray[np.int64]


def _scene(frame: Frame, found: Boxes3D) -> _Scene:
    truth = frame.truth
    if truth is None or truth.box_2d is None or truth.occlusion is None or truth.truncation is None:
        raise ValueError(f"frame {frame.name} has no truth with 2D boxes, occlusion and truncation")
    if found.scores is None and len(found):
        raise ValueError(f"the predictions for frame {frame.name} have no scores")
    camera = next(iter(frame.cameras.values()), None)
    if found.box_2d is not None:
        found_2d = found.box_2d
    elif camera is not None:
        found_2d, _ = image_boxes(
            found, camera.intrinsics, camera.lidar_to_camera, (camera.image_HWC.shape[0], camera.image_HWC.shape[1])
        )
    else:
        raise ValueError(f"frame {frame.name} has no camera and its predictions have no 2D boxes")
    truth_2d = truth.box_2d.astype(np.float64)
    ignored = next(iter(frame.ignore_boxes_2d.values()), np.zeros((0, 4), np.float32)).astype(np.float64)
    here, there = _upright(truth, camera), _upright(found, camera)
    plane = [0, 1, 3, 4, 6]
    return _Scene(
        truth=truth,
        found=found,
        scores=np.zeros(0) if found.scores is None else found.scores.astype(np.float64),
        truth_2d=truth_2d,
        found_2d=found_2d.astype(np.float64),
        ignored_2d=ignored,
        overlap={
            "2d": image_iou(truth_2d, found_2d.astype(np.float64)),
            "bev": bev_iou(here[:, plane], there[:, plane]),
            "3d": box_iou(here, there),
        },
        turn=_observation(here)[:, None] - _observation(there)[None],
    )


def _upright(boxes: Boxes3D, camera: Camera | None) -> Doubles:
    """(N, 7) boxes in the frame in which KITTI measures overlap, the rectified camera: x, z, -y, l, w, h, -rotation."""
    if camera is None:
        return boxes.array.astype(np.float64)
    location, rotation = to_rectified(boxes, camera)
    size = boxes.size_m.astype(np.float64)
    height = size[:, 2] / 2 - location[:, 1]
    return np.column_stack([location[:, 0], location[:, 2], height, size, -rotation])


def _observation(upright_N7: Doubles) -> Doubles:
    """The angle at which an object is seen, up to sign and a constant: its yaw less the bearing of its centre."""
    bearing = np.arctan2(upright_N7[:, 1], upright_N7[:, 0])
    angle: Doubles = upright_N7[:, 6] - bearing
    return angle


def _states(scene: _Scene, name: str, difficulty: Difficulty) -> _States:
    truth = scene.truth
    assert truth.occlusion is not None and truth.truncation is not None
    height = scene.truth_2d[:, 3] - scene.truth_2d[:, 1]
    hard = (
        ~(height > difficulty.height_px)
        | (truth.occlusion > difficulty.occlusion)
        | (truth.truncation > difficulty.truncation)
    )
    named = np.array([other == name for other in truth.names], bool)
    neutral = np.array([other == NEUTRAL.get(name) for other in truth.names], bool)
    of_truth = np.where(named & ~hard, 0, np.where(neutral | named, 1, -1))
    tall = scene.found_2d[:, 3] - scene.found_2d[:, 1] >= difficulty.height_px
    of_found = np.where(~tall, 1, np.where(np.array([other == name for other in scene.found.names], bool), 0, -1))
    return _States(of_truth.astype(np.int64), of_found.astype(np.int64))


def _curves(
    scenes: Sequence[_Scene], states: Sequence[_States], measure: str, least: float, objects: int
) -> tuple[Doubles, Doubles]:
    """Precision and orientation similarity (41,) at the chosen thresholds, each the best at that recall or above."""
    hits = [_hit_scores(scene, state, measure, least) for scene, state in zip(scenes, states, strict=True)]
    thresholds = _thresholds(np.concatenate([np.zeros(0), *hits]), objects)
    right, wrong, alike = np.zeros(len(thresholds)), np.zeros(len(thresholds)), np.zeros(len(thresholds))
    for scene, state in zip(scenes, states, strict=True):
        tp, fp, similarity = _count(scene, state, measure, least, thresholds)
        right, wrong, alike = right + tp, wrong + fp, alike + similarity
    curves = np.zeros((2, RECALLS))
    claimed = np.maximum(right + wrong, 1)
    curves[:, : len(thresholds)] = right / claimed, alike / claimed
    best = np.maximum.accumulate(curves[:, ::-1], axis=1)[:, ::-1]
    return best[0], best[1]


def _hit_scores(scene: _Scene, state: _States, measure: str, least: float) -> Doubles:
    """Scores of the detections that hit an object which counts, each object taking the highest score that is left."""
    overlap = scene.overlap[measure]
    free = state.found != -1
    scores = []
    for index in np.nonzero(state.truth != -1)[0]:
        candidates = np.nonzero(free & (overlap[index] > least))[0]
        if not len(candidates):
            continue
        taken = candidates[np.argmax(scene.scores[candidates])]
        free[taken] = False
        if state.truth[index] == 0 and state.found[taken] == 0:
            scores.append(scene.scores[taken])
    return np.array(scores, np.float64)


def _thresholds(scores: Doubles, objects: int) -> Doubles:
    """The scores at which recall comes nearest to 0, 1/40, 2/40 and so on."""
    chosen: list[float] = []
    recall = 0.0
    ordered = np.sort(scores)[::-1]
    for index, score in enumerate(ordered):
        last = index == len(ordered) - 1
        at, after = (index + 1) / objects, (index + 1 if last else index + 2) / objects
        if after - recall < recall - at and not last:
            continue
        chosen.append(float(score))
        recall += 1 / (RECALLS - 1)
    return np.array(chosen[:RECALLS], np.float64)


def _count(
    scene: _Scene, state: _States, measure: str, least: float, thresholds: Doubles
) -> tuple[Doubles, Doubles, Doubles]:
    """True and false positives and orientation similarity (T,) at every threshold.

    An object takes the detection of the largest overlap; one too small in the image only where there is no other.
    """
    overlap = scene.overlap[measure]
    above = scene.scores[None] >= thresholds[:, None]
    free = above & (state.found != -1)[None]
    counts = np.arange(len(thresholds))
    right, alike = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    for index in np.nonzero(state.truth != -1)[0]:
        candidates = free & (overlap[index] > least)[None]
        proper = candidates & (state.found == 0)[None]
        best = np.where(proper, overlap[index][None], -1.0)
        met: NDArray[np.bool_] = np.any(candidates, axis=1)
        if not met.any():
            continue
        genuine = proper.any(axis=1)
        taken = np.where(genuine, best.argmax(axis=1), candidates.argmax(axis=1))
        free[counts[met], taken[met]] = False
        if state.truth[index] == 0:
            right += genuine
            alike += genuine * (1 + np.cos(scene.turn[index, taken])) / 2
    alone: NDArray[np.bool_] = free & (state.found == 0)[None]
    if measure == "2d" and len(scene.ignored_2d) and alone.size:
        covered = image_iou(scene.found_2d, scene.ignored_2d, of_first=True) > least
        alone &= ~np.any(covered, axis=1)[None, :]
    return right, alone.sum(axis=1).astype(np.float64), alike


def _r40(curve: Doubles) -> float:
    return float(curve[1:].sum() / (RECALLS - 1) * 100)
