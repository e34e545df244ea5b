"""The training data: packed phantom patches, mirrored and changed in brightness at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from apps.medical.data.synth.pack import Pack, PackSettings, open_pack
from apps.medical.data.synth.phantom import mirror
from shared.data.dataset import Batch, Dataset
from shared.data.order import Indices, Key


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomData:
    """Patches of synthetic chests. ``size`` in voxels and ``spacing_mm`` are along x, y, z."""

    train_patches: int = 2000
    validation_patches: int = 128
    size: tuple[int, int, int] = (96, 96, 48)
    spacing_mm: tuple[float, float, float] = (0.703125, 0.703125, 1.25)
    seed: int = 20

    def train(self) -> Dataset:
        return Patches(open_pack(self._settings(self.train_patches, self.seed)))

    def validation(self) -> Dataset:
        return Patches(open_pack(self._settings(self.validation_patches, self.seed + 1)))

    def fingerprint(self) -> dict[str, Any]:
        return {
            "description": "Synthetic chest CT phantoms; nodule shapes from LIDC-IDRI's outlines (CC BY 3.0)",
            "synthetic": True,
            "patches": self.train_patches,
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
        images, boxes = [], []
        for index in indices:
            image = self.pack.images[index]
            found = np.array(self.pack.boxes[index, : self.pack.counts[index]])
            gain, shift = 1.0, 0.0
            if key is not None:
                random = key.generator(int(index))
                for axis in range(3):
                    if random.random() < 0.5:
                        image = np.flip(image, axis)
                        found = mirror(found, axis, image.shape[axis])
                if image.shape[0] == image.shape[1] and random.random() < 0.5:
                    image = image.transpose(1, 0, 2)
                    found = found[:, [1, 0, 2, 4, 3, 5]]
                gain, shift = random.uniform(0.9, 1.1), random.uniform(-0.03, 0.03)
            scaled = image.astype(np.float32) * np.float32(gain / 255) + np.float32(shift)
            images.append(np.clip(scaled, 0, 1))
            boxes.append(torch.from_numpy(np.ascontiguousarray(found)))
        return {"image": torch.from_numpy(np.stack(images))[:, None], "boxes": boxes}
