"""What the second stage learns from: the boxes that a detector finds in labelled sweeps, right and wrong, packed once.

How far a box overlaps the object that it was meant for is what its score is to say; where the two overlap at all, the
box is to become the object's. A box on an object of a class that is not learnt teaches nothing, and is left out, as is
a share of those that are neither near an object nor likely.
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
from apps.driving.types import CORRECTABLE_MODELS, Boxes3D, BoxInput, Floats, Frame, LidarInput
from shared.data.build_cache import get_or_build
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
"""Another is given where the code makes other boxes of the same detector and settings."""
PARTS = ("points", "counts", "boxes", "scores", "labels", "objects", "overlaps")
PACKED = 256
"""Points that are kept of a box, drawn at random; a network is shown as many at most."""
NOTHING, UNLIKELY, SPARED = 0.05, 0.12, 0.6
"""Of boxes that overlap an object by less than the first, of a score below the second, this share is left out."""
MEANT = 0.2
"""A box that overlaps an object by this much from above is to become the object's."""
NO_SCORE, FULL_SCORE = 0.1, 0.6
"""Up to the first overlap in space a box is to have a score of 0, from the second on of 1."""


def detector_of(input: BoxInput) -> Artifact:
    """The artifact of the detector whose boxes are seen; refuses what looks at no sweep, and other weights than the
    input's where it names them."""
    if input.detector is None:
        # Of those that ship the one that was learnt from, which need not be the newest.
        known = newest_partner(DETECTOR, lambda one: weights_digest(one) == input.weights, [WEIGHTS])
        artifact = known or Registry(WEIGHTS).newest(DETECTOR)
    else:
        artifact = open_artifact(input.detector)
    if artifact.manifest.name not in CORRECTABLE_MODELS:
        raise InvalidInputError(
            f"{artifact.path} is the model {artifact.manifest.name}; a second stage corrects the boxes of "
            f"{' or '.join(CORRECTABLE_MODELS)}: name the artifact of one with --input.detector"
        )
    if input.weights not in ("", weights_digest(artifact)):
        raise InvalidInputError(
            f"the second stage corrects the boxes of other weights than those in {artifact.path}; name the artifact of "
            "the detector that it has learnt from"
        )
    return artifact


def fitted(input: BoxInput) -> BoxInput:
    """The input with the detector's range, classes and weights; refuses others of one's own, which mean nothing."""
    from apps.driving.inference.artifacts import earlier_sweeps, lidar_input

    artifact = detector_of(replace(input, weights=""))
    if sweeps := earlier_sweeps(artifact):
        raise InvalidInputError(
            f"{artifact.path} learnt from {sweeps + 1} sweeps together; a second stage sees one, and learns from the "
            "boxes of a detector that needs one"
        )
    seen, digest, unset = lidar_input(artifact), weights_digest(artifact), BoxInput()
    known = {one.name: getattr(seen, one.name) for one in fields(LidarInput)}
    for name, value in known.items():
        # What a recipe took of another detector before is not the user's own.
        if input.weights in ("", digest) and getattr(input, name) not in (value, getattr(unset, name)):
            raise InvalidInputError(
                f"input.{name} does not apply to a second stage, which sees what its detector does ({name} {value}); "
                f"leave --input.{name.replace('_', '-')} out"
            )
    detector = None if input.detector is None else input.detector.resolve()
    return replace(input, detector=detector, weights=digest, **known)


def require_objects(pack: Pack, input: BoxInput, merge: Mapping[str, str]) -> None:
    """Refuses labels without an object of some class of the detector: it would learn that there is none."""
    called = class_numbers(pack.names, merge, input.classes)
    counts = np.zeros(len(pack.names), np.int64)
    for index in range(len(pack)):
        counts += np.bincount(pack.table(index)[:, CLASS].astype(np.int64), minlength=len(counts))
    without = [kind.name for number, kind in enumerate(input.classes) if not counts[called == number].sum()]
    if without:
        others = [f"{name} ({count})" for name, count, no in zip(pack.names, counts, called, strict=True) if no < 0]
        raise InvalidInputError(
            f"the detector finds {', '.join(kind.name for kind in input.classes)}, and the labels have no "
            f"{' and no '.join(without)}; a second stage would learn that there is none. "
            f"--data.merge NAME {without[0]} says what is learnt as one; of other names the labels have "
            f"{', '.join(others) or 'none'}"
        )


class FoundBoxes:
    """Batches of ``points`` (B, K, 3), ``size`` (B, 3) and ``known`` (B, ...), as a ``BoxNetwork`` takes them.

    ``score_target`` (B,) is the score that a box is to have, ``positive`` (B,) 1 where it overlaps an object,
    ``box_target`` (B, 7) and ``flipped`` (B,) what takes it there. With a key boxes are moved a little, mirrored and
    turned about, and lose points.
    """

    def __init__(self, pack: Pack, input: BoxInput, merge: Mapping[str, str]) -> None:
        self.input = input
        settings = detector_of(input).manifest.files.get(RECIPE, {}).get("sha256", "")
        stated = [VERSION, pack.folder.name, input.weights, settings, sorted(merge.items()), input.around_m]
        stated += [input.below_m, input.above_m, [kind.name for kind in input.classes]]
        stated += [PACKED, NOTHING, UNLIKELY, SPARED]
        name = f"boxes-{hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:16]}"
        folder = get_or_build(name, lambda aside: _make(pack, input, merge, aside))
        arrays = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in PARTS)
        self.points, self.counts, self.boxes, self.scores, self.labels, self.objects, self.overlaps = arrays

    def __len__(self) -> int:
        return len(self.counts)

    def described(self) -> str:
        """How many boxes there are, and how many are of an object."""
        return f"{len(self)} found by the detector, {self._right()} on an object"

    def require_matches(self) -> None:
        """Refuses boxes of which none is on an object: there is nothing to correct."""
        if not self._right():
            raise InvalidInputError(
                f"the detector {detector_of(self.input).path} finds no box on an object of its class in the frames to "
                f"learn from ({len(self)} elsewhere); see what it finds with trivium evaluate driving --artifact, "
                "train it on such frames first, or name another with --input.detector"
            )

    def _right(self) -> int:
        return int((self.overlaps[:, 0] > MEANT).sum())

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        import torch

        from apps.driving.inference.box_codes import box_features, encode_boxes

        at = np.asarray(indices)
        points, counts, boxes = self.points[at].astype(np.float32), self.counts[at], self.boxes[at].copy()
        scores, objects = np.array(self.scores[at]), self.objects[at].copy()
        number = np.minimum(counts, PACKED)
        first = np.zeros(len(at), np.int64)
        if key is not None:
            draws = [key.generator(int(index)) for index in at]
            even = np.stack([draw.random(4, np.float32) for draw in draws])
            normal = np.stack([draw.standard_normal(8, np.float32) for draw in draws])
            share = 0.4 + 0.6 * even[:, 0]
            number = np.maximum(np.ceil(share * number), 1).astype(np.int64)
            counts = share * counts
            first = (even[:, 1] * PACKED).astype(np.int64)
            points, boxes, objects = _varied(points, boxes, objects, even[:, 2:4], normal)
            scores = np.clip(scores, 1e-4, 1 - 1e-4)
            scores = 1 / (1 + (1 - scores) / scores * np.exp(0.3 * normal[:, 7]))
        chosen = (first[:, None] + np.arange(self.input.points)) % number[:, None]
        points = np.take_along_axis(points, chosen[..., None], axis=1)
        box_target, flipped = encode_boxes(boxes, objects)
        above, space = self.overlaps[at].T
        return {
            "points": torch.from_numpy(points),
            "size": torch.from_numpy(boxes[:, 3:6].copy()),
            "known": torch.from_numpy(box_features(boxes, scores, self.labels[at], counts, len(self.input.classes))),
            "score_target": torch.from_numpy(np.clip((space - NO_SCORE) / (FULL_SCORE - NO_SCORE), 0, 1)),
            "positive": torch.from_numpy(((above > MEANT) & (space > 0)).astype(np.float32)),
            "box_target": torch.from_numpy(box_target),
            "flipped": torch.from_numpy(flipped.astype(np.float32)),
        }


_MOVED = np.array([0.12, 0.08, 0.06], np.float32)
_TURNED, _GROWN = 0.04, 0.04
_ABOUT = 0.1
"""Deviations of a box's centre in metres, of its yaw, of the logarithms of its sides; how often it is turned about."""


def _varied(
    points: Floats, boxes: Floats, objects: Floats, even: Floats, normal: Floats
) -> tuple[Floats, Floats, Floats]:
    """Boxes (B, 7) moved, their points (B, K, 3) seen from there; half of the scenes mirrored left and right.

    Uses two numbers in 0..1 of each box and seven of the normal distribution.
    """
    mirrored = np.where(even[:, 0] < 0.5, np.float32(-1), np.float32(1))
    points[..., 1] *= mirrored[:, None]
    for places in (boxes, objects):
        places[:, 1] *= mirrored
        places[:, 6] *= mirrored
    move, turn = normal[:, :3] * _MOVED, normal[:, 3] * np.float32(_TURNED)
    turn = turn + np.where(even[:, 1] < _ABOUT, np.float32(np.pi), np.float32(0))
    cosine, sine = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    boxes[:, 0] += cosine * move[:, 0] - sine * move[:, 1]
    boxes[:, 1] += sine * move[:, 0] + cosine * move[:, 1]
    boxes[:, 2] += move[:, 2]
    boxes[:, 3:6] *= np.exp(normal[:, 4:7] * np.float32(_GROWN))
    boxes[:, 6] += turn
    x, y, z = (points - move[:, None]).transpose(2, 0, 1)
    cosine, sine = np.cos(turn)[:, None], np.sin(turn)[:, None]
    return np.stack([cosine * x + sine * y, cosine * y - sine * x, z], axis=2), boxes, objects


class Found(NamedTuple):
    """A sweep (N, 4), what was found in it, and its objects: boxes (M, 7), numbers of their classes (M,), -1 where one
    is not learnt, and returns (M,), -1 where they are not known."""

    number: int
    points: Floats
    boxes: Boxes3D
    objects: Floats
    numbers: NDArray[np.int64]
    returns: Floats


def found_in_pack(
    pack: Pack,
    input: BoxInput,
    merge: Mapping[str, str],
    second_stage: SecondStage | None = None,
    most: int | None = None,
) -> Iterator[Found]:
    """What the detector, with a second stage or alone, finds in a pack's sweeps, ``most`` of them evenly chosen."""
    from apps.driving.inference.artifacts import open_detector
    from apps.driving.inference.detect import LidarDetector

    detector = open_detector(detector_of(input), "cpu")
    assert isinstance(detector, LidarDetector)
    detector = replace(detector, second_stage=second_stage)
    numbers = class_numbers(pack.names, merge, input.classes)
    count = len(pack) if most is None else min(most, len(pack))
    chosen = np.unique(np.linspace(0, len(pack) - 1, count).round().astype(int)).tolist()
    for index in progress_bar(chosen, len(chosen), "detecting in sweeps"):
        points, table = pack.points(index), pack.table(index)
        found = detector.detect(Frame(name=str(index), points_lidar_m=points, cameras={}))
        yield Found(index, points, found, table[:, :7], numbers[table[:, CLASS].astype(np.int64)], table[:, RETURNS])


def _make(pack: Pack, input: BoxInput, merge: Mapping[str, str], folder: Path) -> None:
    from apps.driving.inference.second_stage import points_about

    names = [kind.name for kind in input.classes]
    rows: list[tuple[NDArray[np.generic], ...]] = []
    for index, sweep, found, standing, numbers, _ in found_in_pack(pack, input, merge):
        draw = np.random.default_rng(index)
        assert found.scores is not None
        labels = np.array([names.index(name) for name in found.names], np.int64)
        objects, overlaps, told = matched(found.array, labels, standing, numbers)
        idle = (overlaps[:, 0] < NOTHING) & (found.scores < UNLIKELY)
        about = points_about(found.array, sweep, input)
        counts = np.array([len(points) for points in about], np.int64)
        kept = np.flatnonzero(told & (counts > 0) & ~(idle & (draw.random(len(idle)) < SPARED)))
        points = np.zeros((len(kept), PACKED, 3), np.float16)
        for row, number in enumerate(kept):
            drawn = about[number][draw.permutation(counts[number])[:PACKED]]
            points[row, : len(drawn)] = drawn
        rows.append(
            (points, counts[kept], found.array[kept], found.scores[kept], labels[kept], objects[kept], overlaps[kept])
        )
    for name, parts in zip(PARTS, zip(*rows, strict=True), strict=True):
        np.save(folder / f"{name}.npy", np.concatenate(parts))


def matched(
    boxes_N7: Floats, labels_N: NDArray[np.int64], objects_M7: Floats, numbers_M: NDArray[np.int64]
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """For each box the object (N, 7) of its class that it overlaps most from above, itself where there is none; both
    overlaps (N, 2), from above and in space; and (N,) False on an object of a class that is not learnt (-1)."""
    wanted, overlaps, told = boxes_N7.copy(), np.zeros((len(boxes_N7), 2), np.float32), np.ones(len(boxes_N7), bool)
    if not len(boxes_N7) or not len(objects_M7):
        return wanted, overlaps, told
    boxes, objects = boxes_N7.astype(np.float64), objects_M7.astype(np.float64)
    plane = [0, 1, 3, 4, 6]
    above, space = bev_iou(boxes[:, plane], objects[:, plane]), box_iou(boxes, objects)
    own = np.where(labels_N[:, None] == numbers_M, above, 0)
    best = own.argmax(axis=1)
    rows = np.arange(len(boxes))
    overlaps = np.stack([own[rows, best], np.where(own[rows, best] > 0, space[rows, best], 0)], 1).astype(np.float32)
    met = overlaps[:, 0] > 0
    wanted[met] = objects_M7[best[met]]
    foreign = np.where(numbers_M < 0, above, 0).max(axis=1)
    return wanted, overlaps, (foreign < NOTHING) | (overlaps[:, 0] > NOTHING)
