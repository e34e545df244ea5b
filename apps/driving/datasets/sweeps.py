"""Batches of packed sweeps for LiDAR networks: the choice of objects to train on, and the augmentation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from apps.driving.datasets.packing import CLASS, RETURNS, Pack
from apps.driving.datasets.pasting import ObjectBank
from apps.driving.datasets.sampling import SweepSampling
from apps.driving.types import Floats, LidarInput, ObjectClass, within, wrap_angle
from shared.data.dataset import Batch
from shared.data.order import Indices, Key


def class_numbers(
    names: tuple[str, ...], merge: Mapping[str, str], classes: tuple[ObjectClass, ...]
) -> NDArray[np.int64]:
    """For each of a pack's ``names`` its index among the input's ``classes``, or -1 if it is not trained."""
    class_names = [kind.name for kind in classes]
    trained = [merge.get(name, name) for name in names]
    return np.array([class_names.index(name) if name in class_names else -1 for name in trained], np.int64)


class Sweeps:
    """Batches of ``points``, ``boxes`` and ``labels``: lists of tensors (N, 4), (M, 7) and (M,); ``index`` (B,).

    ``labels`` are indices of the input's classes; ``classes`` has their names and matching distances. With ``pasting``,
    objects from other sweeps are pasted if there is a key.
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
        """Boxes (M, 7) and labels (M,) of the objects of one sample to train on."""
        table = self.pack.table(index)
        labels = self.numbers[table[:, CLASS].astype(np.int64)]
        trained = (labels >= 0) & ((table[:, RETURNS] < 0) | (table[:, RETURNS] >= self.sampling.fewest_points))
        return table[trained, :7], labels[trained]

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
                # Pasted objects must not overlap any labelled object, whether it is trained on or not.
                points, boxes, labels = self.bank.paste(
                    points, boxes, labels, self.pack.table(index)[:, :7], self.sampling.paste, generator
                )
            points, boxes = augment_sweep(points, boxes, self.sampling, generator)
        points = self.input.crop(points)
        kept = within(boxes, self.input.range_m)
        return points, boxes[kept], labels[kept]


def augment_sweep(
    points: Floats, boxes: Floats, sampling: SweepSampling, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    """Points (N, 4), shuffled, and boxes (M, 7) of one scene, under the same random transform."""
    mirror = generator.random() < sampling.mirror
    rotation = generator.uniform(-sampling.turn_rad, sampling.turn_rad)
    scale = generator.uniform(1 - sampling.scale, 1 + sampling.scale)
    lift = generator.uniform(-sampling.lift_m, sampling.lift_m)
    kept = len(points) - int(generator.uniform(0, sampling.most_lost) * len(points))
    points = points.take(generator.permutation(len(points))[:kept], axis=0)
    cosine, sine = np.cos(rotation), np.sin(rotation)
    side = -1.0 if mirror else 1.0
    plane = (scale * np.array([[cosine, sine], [-sine * side, cosine * side]])).astype(np.float32)
    for array in (points, boxes):
        array[:, :2] = array[:, :2] @ plane
        array[:, 2] = array[:, 2] * scale + lift
    boxes[:, 3:6] *= scale
    boxes[:, 6] = wrap_angle(side * boxes[:, 6] + rotation)
    return points, boxes
