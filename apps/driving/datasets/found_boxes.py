"""Training data of the second stage: the boxes that a detector finds in labelled sweeps, right and wrong, packed once.

The score target of a box grows with its overlap with an object of its class; if they overlap at all, the box target is
the object's box. A box on an object of a class that is not trained is skipped, as is a fraction of the boxes that are
neither near an object nor likely.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apps.driving.datasets.packing import CLASS, RETURNS, Pack
from apps.driving.datasets.sweeps import class_numbers
from apps.driving.metrics.overlap import bev_iou, box_iou
from apps.driving.types import BEV_COLUMNS, CORRECTABLE_MODELS, Boxes3D, BoxInput, Floats, Frame, LidarInput
from shared.data.build_cache import get_or_build
from shared.data.order import evenly_spaced
from shared.deploy.artifact import RECIPE, Artifact, open_artifact
from shared.deploy.programs.store import weights_digest
from shared.deploy.registry import Registry, newest_partner
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar

if TYPE_CHECKING:
    from apps.driving.inference.second_stage import SecondStage
    from shared.data.dataset import Batch
    from shared.data.order import Indices, Key

WEIGHTS, DETECTOR = Path(__file__).parents[1] / "weights", "pointpillars"
VERSION = 1
"""Increase this if the code changes the boxes for the same detector and settings."""
PARTS = ("points", "counts", "boxes", "scores", "labels", "objects", "overlaps")
MAX_PACKED_POINTS = 256
"""The number of points kept per box, drawn at random; a network gets at most as many."""
BACKGROUND_IOU, BACKGROUND_SCORE, BACKGROUND_DROP_RATE = 0.05, 0.12, 0.6
"""Of the boxes whose BEV IoU is below the first and whose score is below the second, the third fraction is dropped."""
MIN_MATCH_IOU = 0.2
"""A box whose BEV IoU with an object exceeds this is trained to become the object's box."""
ZERO_SCORE_IOU, FULL_SCORE_IOU = 0.1, 0.6
"""The score target is 0 up to the first 3D IoU, and 1 from the second on."""


def detector_of(input: BoxInput) -> Artifact:
    """The artifact of the detector that provides the boxes. Raises ``InvalidInputError`` if it is not a LiDAR model, or
    if its weights are not those that the input names."""
    if input.detector is None:
        # The shipped detector that the second stage was trained with, which need not be the newest.
        known = newest_partner(DETECTOR, lambda candidate: weights_digest(candidate) == input.weights, [WEIGHTS])
        artifact = known or Registry(WEIGHTS).newest(DETECTOR)
    else:
        artifact = open_artifact(input.detector)
    if artifact.manifest.name not in CORRECTABLE_MODELS:
        raise InvalidInputError(
            f"{artifact.path} is the model {artifact.manifest.name}, but a second stage corrects the boxes of "
            f"{' or '.join(CORRECTABLE_MODELS)}; give the artifact of such a model with --input.detector"
        )
    if input.weights not in ("", weights_digest(artifact)):
        raise InvalidInputError(
            f"the second stage corrects the boxes of other weights than those in {artifact.path}; give the artifact of "
            "the detector that it was trained with"
        )
    return artifact


def fit_to_detector(input: BoxInput) -> BoxInput:
    """The input with the detector's range, classes and weights. Raises ``InvalidInputError`` if the user sets others,
    which would have no effect."""
    from apps.driving.inference.artifacts import earlier_sweeps, lidar_input

    artifact = detector_of(replace(input, weights=""))
    if sweeps := earlier_sweeps(artifact):
        raise InvalidInputError(
            f"{artifact.path} was trained on {sweeps + 1} sweeps together; a second stage gets only one, so it needs a "
            "detector that uses a single sweep"
        )
    detector_input, digest, unset = lidar_input(artifact), weights_digest(artifact), BoxInput()
    known = {setting.name: getattr(detector_input, setting.name) for setting in fields(LidarInput)}
    for name, value in known.items():
        # Values that a recipe took from another detector before were not set by the user.
        if input.weights in ("", digest) and getattr(input, name) not in (value, getattr(unset, name)):
            raise InvalidInputError(
                f"input.{name} does not apply to a second stage, which uses that of its detector ({name} {value}); "
                f"omit --input.{name.replace('_', '-')}"
            )
    detector = None if input.detector is None else input.detector.resolve()
    return replace(input, detector=detector, weights=digest, **known)


def require_objects(pack: Pack, input: BoxInput, merge: Mapping[str, str]) -> None:
    """Raises ``InvalidInputError`` if the labels lack a class of the detector, which would then never be found."""
    class_of_name = class_numbers(pack.names, merge, input.classes)
    counts = np.zeros(len(pack.names), np.int64)
    for index in range(len(pack)):
        counts += np.bincount(pack.table(index)[:, CLASS].astype(np.int64), minlength=len(counts))
    missing = [kind.name for number, kind in enumerate(input.classes) if not counts[class_of_name == number].sum()]
    if missing:
        others = [f"{name} ({n})" for name, n, no in zip(pack.names, counts, class_of_name, strict=True) if no < 0]
        raise InvalidInputError(
            f"the detector finds {', '.join(kind.name for kind in input.classes)}, but the labels have no "
            f"{' and no '.join(missing)}; a second stage would learn that there are none. "
            f"Use --data.merge NAME {missing[0]} to train another class as {missing[0]}; the labels also have "
            f"{', '.join(others) or 'no other class'}"
        )


class FoundBoxes:
    """Batches of ``points`` (B, K, 3), ``size`` (B, 3) and ``known`` (B, ...), the inputs of a ``BoxNetwork``.

    ``score_target`` (B,) is the score target of each box; ``positive`` (B,) is 1 if it overlaps an object;
    ``box_target`` (B, 7) and ``flipped`` (B,) encode the correction to that object's box. With a key, boxes are
    jittered, mirrored and flipped, and lose points.
    """

    def __init__(self, pack: Pack, input: BoxInput, merge: Mapping[str, str]) -> None:
        self.input = input
        settings = detector_of(input).manifest.files.get(RECIPE, {}).get("sha256", "")
        key_parts = [VERSION, pack.folder.name, input.weights, settings, sorted(merge.items()), input.around_m]
        key_parts += [input.below_m, input.above_m, [kind.name for kind in input.classes]]
        key_parts += [MAX_PACKED_POINTS, BACKGROUND_IOU, BACKGROUND_SCORE, BACKGROUND_DROP_RATE]
        name = f"boxes-{hashlib.sha256(json.dumps(key_parts).encode()).hexdigest()[:16]}"
        folder = get_or_build(name, lambda build_folder: _build(pack, input, merge, build_folder))
        arrays = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in PARTS)
        self.points, self.counts, self.boxes, self.scores, self.labels, self.objects, self.overlaps = arrays

    def __len__(self) -> int:
        return len(self.counts)

    def summary(self) -> str:
        """The number of boxes, and how many of them are on an object."""
        return f"{len(self)} found by the detector, {self._count_matches()} on an object"

    def require_matches(self) -> None:
        """Raises ``InvalidInputError`` if no box is on an object, because then there is nothing to correct."""
        if not self._count_matches():
            raise InvalidInputError(
                f"the detector {detector_of(self.input).path} finds no box on an object of its class in the training "
                f"frames ({len(self)} boxes elsewhere); check it with trivium evaluate driving --artifact, train it on "
                "such frames first, or give another one with --input.detector"
            )

    def _count_matches(self) -> int:
        return int((self.overlaps[:, 0] > MIN_MATCH_IOU).sum())

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        import torch

        from apps.driving.inference.box_codes import box_features, encode_boxes

        rows = np.asarray(indices)
        points, counts, boxes = self.points[rows].astype(np.float32), self.counts[rows], self.boxes[rows].copy()
        scores, objects = np.array(self.scores[rows]), self.objects[rows].copy()
        number = np.minimum(counts, MAX_PACKED_POINTS)
        first = np.zeros(len(rows), np.int64)
        if key is not None:
            draws = [key.generator(int(index)) for index in rows]
            uniform = np.stack([draw.random(4, np.float32) for draw in draws])
            normal = np.stack([draw.standard_normal(8, np.float32) for draw in draws])
            kept_fraction = 0.4 + 0.6 * uniform[:, 0]
            number = np.maximum(np.ceil(kept_fraction * number), 1).astype(np.int64)
            counts = kept_fraction * counts
            first = (uniform[:, 1] * MAX_PACKED_POINTS).astype(np.int64)
            points, boxes, objects = _augment(points, boxes, objects, uniform[:, 2:4], normal)
            scores = np.clip(scores, 1e-4, 1 - 1e-4)
            scores = 1 / (1 + (1 - scores) / scores * np.exp(0.3 * normal[:, 7]))
        chosen = (first[:, None] + np.arange(self.input.points)) % number[:, None]
        points = np.take_along_axis(points, chosen[..., None], axis=1)
        box_target, flipped = encode_boxes(boxes, objects)
        bev, space = self.overlaps[rows].T
        return {
            "points": torch.from_numpy(points),
            "size": torch.from_numpy(boxes[:, 3:6].copy()),
            "known": torch.from_numpy(box_features(boxes, scores, self.labels[rows], counts, len(self.input.classes))),
            "score_target": torch.from_numpy(
                np.clip((space - ZERO_SCORE_IOU) / (FULL_SCORE_IOU - ZERO_SCORE_IOU), 0, 1)
            ),
            "positive": torch.from_numpy(((bev > MIN_MATCH_IOU) & (space > 0)).astype(np.float32)),
            "box_target": torch.from_numpy(box_target),
            "flipped": torch.from_numpy(flipped.astype(np.float32)),
        }


_CENTRE_SIGMA_M = np.array([0.12, 0.08, 0.06], np.float32)
_YAW_SIGMA, _SIZE_SIGMA = 0.04, 0.04
_FLIP_RATE = 0.1
"""Standard deviations of a box's centre in metres, of its yaw and of the logarithms of its sides; how often it is
flipped by 180 degrees."""


def _augment(
    points: Floats, boxes: Floats, objects: Floats, uniform: Floats, normal: Floats
) -> tuple[Floats, Floats, Floats]:
    """Jitters boxes (B, 7), transforms their points (B, K, 3) accordingly, and mirrors half of the scenes in y.

    Uses two numbers in 0..1 and seven normally distributed numbers per box.
    """
    mirrored = np.where(uniform[:, 0] < 0.5, np.float32(-1), np.float32(1))
    points[..., 1] *= mirrored[:, None]
    for array in (boxes, objects):
        array[:, 1] *= mirrored
        array[:, 6] *= mirrored
    move, turn = normal[:, :3] * _CENTRE_SIGMA_M, normal[:, 3] * np.float32(_YAW_SIGMA)
    turn = turn + np.where(uniform[:, 1] < _FLIP_RATE, np.float32(np.pi), np.float32(0))
    cosine, sine = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    boxes[:, 0] += cosine * move[:, 0] - sine * move[:, 1]
    boxes[:, 1] += sine * move[:, 0] + cosine * move[:, 1]
    boxes[:, 2] += move[:, 2]
    boxes[:, 3:6] *= np.exp(normal[:, 4:7] * np.float32(_SIZE_SIGMA))
    boxes[:, 6] += turn
    x, y, z = (points - move[:, None]).transpose(2, 0, 1)
    cosine, sine = np.cos(turn)[:, None], np.sin(turn)[:, None]
    return np.stack([cosine * x + sine * y, cosine * y - sine * x, z], axis=2), boxes, objects


class SweepDetections(NamedTuple):
    """A sweep (N, 4), the boxes found in it, and its objects: boxes (M, 7), class numbers (M,) or -1 if not trained,
    and returns (M,) or -1 if unknown."""

    number: int
    points: Floats
    boxes: Boxes3D
    objects: Floats
    numbers: NDArray[np.int64]
    returns: Floats


def detect_in_pack(
    pack: Pack,
    input: BoxInput,
    merge: Mapping[str, str],
    second_stage: SecondStage | None = None,
    most: int | None = None,
) -> Iterator[SweepDetections]:
    """The boxes that the detector, with or without a second stage, finds in the sweeps of a pack, or in ``most`` evenly
    chosen ones."""
    from apps.driving.inference.artifacts import open_detector
    from apps.driving.inference.detect import LidarDetector

    detector = open_detector(detector_of(input), "cpu")
    assert isinstance(detector, LidarDetector)
    detector = replace(detector, second_stage=second_stage)
    numbers = class_numbers(pack.names, merge, input.classes)
    chosen = evenly_spaced(len(pack), most)
    for index in progress_bar(chosen, len(chosen), "detecting in sweeps"):
        points, table = pack.points(index), pack.table(index)
        found = detector.detect(Frame(name=str(index), points_lidar_m=points, cameras={}))
        yield SweepDetections(
            index, points, found, table[:, :7], numbers[table[:, CLASS].astype(np.int64)], table[:, RETURNS]
        )


def _build(pack: Pack, input: BoxInput, merge: Mapping[str, str], folder: Path) -> None:
    from apps.driving.inference.second_stage import points_around

    names = [kind.name for kind in input.classes]
    rows: list[tuple[NDArray[np.generic], ...]] = []
    for index, sweep, found, labelled, numbers, _ in detect_in_pack(pack, input, merge):
        draw = np.random.default_rng(index)
        assert found.scores is not None
        labels = np.array([names.index(name) for name in found.names], np.int64)
        objects, overlaps, usable = match_objects(found.array, labels, labelled, numbers)
        background = (overlaps[:, 0] < BACKGROUND_IOU) & (found.scores < BACKGROUND_SCORE)
        about = points_around(found.array, sweep, input)
        counts = np.array([len(points) for points in about], np.int64)
        kept = np.flatnonzero(
            usable & (counts > 0) & ~(background & (draw.random(len(background)) < BACKGROUND_DROP_RATE))
        )
        points = np.zeros((len(kept), MAX_PACKED_POINTS, 3), np.float16)
        for row, number in enumerate(kept):
            drawn = about[number][draw.permutation(counts[number])[:MAX_PACKED_POINTS]]
            points[row, : len(drawn)] = drawn
        rows.append(
            (points, counts[kept], found.array[kept], found.scores[kept], labels[kept], objects[kept], overlaps[kept])
        )
    for name, parts in zip(PARTS, zip(*rows, strict=True), strict=True):
        np.save(folder / f"{name}.npy", np.concatenate(parts))


def match_objects(
    boxes_N7: Floats, labels_N: NDArray[np.int64], objects_M7: Floats, numbers_M: NDArray[np.int64]
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """For each box: the object (N, 7) of its class with the highest BEV IoU, or the box itself if there is none; BEV
    and 3D IoU (N, 2) with it; and (N,) False if the box is on an object of a class that is not trained (number -1)."""
    targets, overlaps, usable = boxes_N7.copy(), np.zeros((len(boxes_N7), 2), np.float32), np.ones(len(boxes_N7), bool)
    if not len(boxes_N7) or not len(objects_M7):
        return targets, overlaps, usable
    boxes, objects = boxes_N7.astype(np.float64), objects_M7.astype(np.float64)
    bev, space = bev_iou(boxes[:, BEV_COLUMNS], objects[:, BEV_COLUMNS]), box_iou(boxes, objects)
    same_class = np.where(labels_N[:, None] == numbers_M, bev, 0)
    best = same_class.argmax(axis=1)
    rows = np.arange(len(boxes))
    overlaps = np.stack([same_class[rows, best], np.where(same_class[rows, best] > 0, space[rows, best], 0)], 1).astype(
        np.float32
    )
    matched = overlaps[:, 0] > 0
    targets[matched] = objects_M7[best[matched]]
    untrained = np.where(numbers_M < 0, bev, 0).max(axis=1)
    return targets, overlaps, (untrained < BACKGROUND_IOU) | (overlaps[:, 0] > BACKGROUND_IOU)
