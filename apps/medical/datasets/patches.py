"""The training data: phantom patches, packed or made anew in each epoch, mirrored and changed in brightness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apps.medical.datasets.synth.pack import Pack, PackSettings, open_pack, sample
from apps.medical.datasets.synth.phantom import mirror
from shared.data.dataset import Batch, Dataset
from shared.data.order import Indices, Key


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomData:
    """Patches of synthetic chests. ``size`` in voxels and ``spacing_mm`` are along x, y, z.

    ``fresh`` makes new training patches of the same chests in every epoch, one core beside the training; otherwise
    they are packed once and read again.
    """

    train_patches: int = 2000
    validation_patches: int = 128
    size: tuple[int, int, int] = (96, 96, 48)
    spacing_mm: tuple[float, float, float] = (0.703125, 0.703125, 1.25)
    seed: int = 20
    fresh: bool = False

    def train(self, input: Any = None) -> Dataset:
        settings = self._settings(self.train_patches, self.seed)
        return FreshPatches(settings) if self.fresh else Patches(open_pack(settings))

    def validation(self, input: Any = None) -> Dataset:
        return Patches(open_pack(self._settings(self.validation_patches, self.seed + 1)))

    def fingerprint(self) -> dict[str, Any]:
        return {
            "description": "Synthetic chest CT phantoms; nodule shapes from LIDC-IDRI's outlines (CC BY 3.0)",
            "synthetic": True,
            "patches": self.train_patches,
            "fresh_in_every_epoch": self.fresh,
            "size_voxels": list(self.size),
            "spacing_mm": list(self.spacing_mm),
            "seed": self.seed,
        }

    def _settings(self, patches: int, seed: int) -> PackSettings:
        return PackSettings(patches=patches, size=self.size, spacing_mm=self.spacing_mm, seed=seed)


@dataclass(frozen=True, slots=True)
class Patches:
    """A pack as a data set. A batch holds ``image`` float32 (B, 1, X, Y, Z) in 0..1 and ``boxes``, a list of (n, 6)."""

    pack: Pack

    def __len__(self) -> int:
        return len(self.pack.counts)

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        made = []
        for index in indices:
            boxes = np.array(self.pack.boxes[index, : self.pack.counts[index]])
            made.append(_varied(self.pack.images[index], boxes, key.generator(int(index)) if key else None))
        return _joined(made)


@dataclass(frozen=True, slots=True)
class FreshPatches:
    """Patches that are made when they are asked for, others in every epoch; batches as those of ``Patches``.

    The patch is a function of the key and the index, and so are its mirroring and brightness.
    """

    settings: PackSettings

    def __len__(self) -> int:
        return self.settings.patches

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        made = []
        for index in indices:
            random = key.generator(int(index)) if key else None
            made.append(_varied(*sample(self.settings, int(index), random), random))
        return _joined(made)


Sample = tuple[NDArray[np.float32], NDArray[np.float32]]


def _varied(image: NDArray[np.uint8], boxes: NDArray[np.float32], random: np.random.Generator | None) -> Sample:
    """The image in 0..1 and its boxes; mirrored, turned and changed in brightness where ``random`` is given."""
    gain, shift = 1.0, 0.0
    if random is not None:
        for axis in range(3):
            if random.random() < 0.5:
                image = np.flip(image, axis)
                boxes = mirror(boxes, axis, image.shape[axis])
        if image.shape[0] == image.shape[1] and random.random() < 0.5:
            image = image.transpose(1, 0, 2)
            boxes = boxes[:, [1, 0, 2, 4, 3, 5]]
        gain, shift = random.uniform(0.9, 1.1), random.uniform(-0.03, 0.03)
    return np.clip(image.astype(np.float32) * np.float32(gain / 255) + np.float32(shift), 0, 1), boxes


def _joined(samples: Sequence[Sample]) -> Batch:
    images, boxes = zip(*samples, strict=True)
    return {
        "image": torch.from_numpy(np.stack(images))[:, None],
        "boxes": [torch.from_numpy(np.ascontiguousarray(found)) for found in boxes],
    }
