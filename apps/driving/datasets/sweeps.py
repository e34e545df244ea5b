"""Packed sweeps as batches for LiDAR networks: which objects are learnt, and how a sweep is varied."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from apps.driving.datasets.packing import CLASS, RETURNS, Pack
from apps.driving.datasets.pasting import ObjectBank
from apps.driving.datasets.sampling import SweepSampling
from apps.driving.types import Floats, LidarInput, ObjectClass, within
from shared.data.dataset import Batch
from shared.data.order import Indices, Key


def class_numbers(
    names: tuple[str, ...], merge: Mapping[str, str], classes: tuple[ObjectClass, ...]
) -> NDArray[np.int64]:
    """For each of a pack's ``names`` its number among the input's ``classes``, or -1: not learnt."""
    wanted = [kind.name for kind in classes]
    learnt = [merge.get(name, name) for name in names]
    return np.array([wanted.index(name) if name in wanted else -1 for name in learnt], np.int64)


class Sweeps:
    """Batches of ``points``, ``boxes`` and ``labels``: lists of tensors (N, 4), (M, 7) and (M,); ``index`` (B,).

    ``labels`` are numbers among the input's classes, of which ``classes`` has the names and what is near enough for a
    match. With ``pasting`` objects of the other sweeps are pasted where there is a key.
    """

    def __init__(
        self,
        pack: Pack,
        input: LidarInput,
        sampling: SweepSampling,
        merge: Mapping[str, str],
        *,
        pasting: bool = False,
    ) -> None:
        self.pack, self.input, self.sampling = pack, input, sampling
        self.classes = tuple((kind.name, kind.reach_m) for kind in input.classes)
        self.numbers = class_numbers(pack.names, merge, input.classes)
        self.bank = ObjectBank(pack, self.numbers) if pasting else None

    def __len__(self) -> int:
        return len(self.pack)

    def objects(self, index: int) -> tuple[Floats, NDArray[np.int64]]:
        """Boxes (M, 7) and labels (M,) of what is learnt of one sweep."""
        table = self.pack.table(index)
        labels = self.numbers[table[:, CLASS].astype(np.int64)]
        learnt = (labels >= 0) & ((table[:, RETURNS] < 0) | (table[:, RETURNS] >= self.sampling.fewest_points))
        return table[learnt, :7], labels[learnt]

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        samples = [self._sample(int(index), key) for index in indices]
        return {
            "points": [torch.from_numpy(points) for points, _, _ in samples],
            "boxes": [torch.from_numpy(boxes) for _, boxes, _ in samples],
            "labels": [torch.from_numpy(labels) for _, _, labels in samples],
            "index": torch.tensor(indices.tolist()),
            "classes": self.classes,
        }

    def _sample(self, index: int, key: Key | None) -> tuple[Floats, Floats, NDArray[np.int64]]:
        points = self.pack.points(index)
        boxes, labels = self.objects(index)
        if key is not None:
            generator = key.generator(index)
            if self.bank is not None:
                # Whatever else stands in the sweep is in the way too, learnt or not.
                points, boxes, labels = self.bank.paste(
                    points, boxes, labels, self.pack.table(index)[:, :7], self.sampling.paste, generator
                )
            points, boxes = augment_sweep(points, boxes, self.sampling, generator)
        points = self.input.crop(points)
        kept = within(boxes, self.input.range_m)
        return points, boxes[kept], labels[kept]


def augment_sweep(
    points: Floats, boxes: Floats, how: SweepSampling, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    """Points (N, 4) and boxes (M, 7) of one scene, changed alike; the points in a new order."""
    mirror = generator.random() < how.mirror
    turn = generator.uniform(-how.turn_rad, how.turn_rad)
    scale = generator.uniform(1 - how.scale, 1 + how.scale)
    lift = generator.uniform(-how.lift_m, how.lift_m)
    kept = len(points) - int(generator.uniform(0, how.most_lost) * len(points))
    points = points.take(generator.permutation(len(points))[:kept], axis=0)
    cosine, sine = np.cos(turn), np.sin(turn)
    side = -1.0 if mirror else 1.0
    plane = (scale * np.array([[cosine, sine], [-sine * side, cosine * side]])).astype(np.float32)
    for places in (points, boxes):
        places[:, :2] = places[:, :2] @ plane
        places[:, 2] = places[:, 2] * scale + lift
    boxes[:, 3:6] *= scale
    boxes[:, 6] = np.mod(side * boxes[:, 6] + turn + np.pi, 2 * np.pi) - np.pi
    return points, boxes
