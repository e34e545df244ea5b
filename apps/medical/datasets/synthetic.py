"""Synthetic chests with exact ground truth: training patches, packed or fresh in each epoch, and whole scans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.medical.types import AnnotatedScan, ChestInput
from shared.data.build_cache import parallel_imap

if TYPE_CHECKING:
    from apps.medical.datasets.synth.pack import Pack, PackSettings
    from shared.data.dataset import Batch, Dataset
    from shared.data.order import Indices, Key

SPACINGS_MM = ((0.8, 0.8, 1.5), (1.0, 1.0, 2.5), (0.8, 0.8, 5.0))
"""Whole phantoms use these voxel spacings in turn."""

EVALUATION_SEED = 611
"""The seed of the phantoms for the headline table. Neither patches nor calibration use chests of this seed."""

VALIDATION_DIVISOR = 8
"""The number of chests for training divided by this is the number for validation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """Patches of synthetic chests, and whole chests with nodules of 3 to 80 mm.

    With ``fresh`` new training patches of the same chests are generated in every epoch, on one core beside the
    training; otherwise they are packed once and reused. With ``chests`` patches are cropped from this number of chests,
    packed whole, and validation patches from an eighth as many. ``scans`` is the number of whole chests for evaluation
    and calibration.
    """

    train_patches: int = 2000
    validation_patches: int = 128
    seed: int = 20
    fresh: bool = False
    scans: int = 15
    chests: int = 0

    def train(self, input: ChestInput) -> Dataset:
        from apps.medical.datasets.synth.chests import pack_chests
        from apps.medical.datasets.synth.pack import open_pack

        settings = self._settings(self.train_patches, self.seed, self.chests, input)
        if self.fresh and self.chests:
            pack_chests(self.seed, self.chests, input.spacing_mm)
        return FreshPatches(settings) if self.fresh else PackedPatches(open_pack(settings), input)

    def validation(self, input: ChestInput) -> Dataset:
        from apps.medical.datasets.synth.pack import open_pack

        chests = -(-self.chests // VALIDATION_DIVISOR)
        return PackedPatches(open_pack(self._settings(self.validation_patches, self.seed + 1, chests, input)), input)

    def validation_scans(self) -> Iterator[AnnotatedScan]:
        """Whole chests that are not used for patches."""
        return phantoms(EVALUATION_SEED, self.scans)

    def training_scans(self, max_scans: int) -> Iterator[AnnotatedScan]:
        """``max_scans`` whole chests of the training seed, each with its own scanner noise and nodules."""
        return phantoms(self.seed, max_scans)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "description": "Synthetic chest CT phantoms; nodule shapes from LIDC-IDRI's outlines (CC BY 3.0)",
            "synthetic": True,
            "patches": self.train_patches,
            "fresh_in_every_epoch": self.fresh,
            "chests": self.chests,
            "seed": self.seed,
        }

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        """The numbers of patches and their size."""
        return {
            "training patches": self.train_patches,
            "validation patches": self.validation_patches,
            "patch": f"{' x '.join(map(str, input.patch_size))} voxels of {' x '.join(map(str, input.spacing_mm))} mm",
            "synthetic": True,
        }

    def _settings(self, patches: int, seed: int, chests: int, input: ChestInput) -> PackSettings:
        from apps.medical.datasets.synth.pack import PackSettings

        return PackSettings(patches=patches, input=input, seed=seed, chests=chests)


def phantoms(seed: int, count: int, nodules: int = 5) -> Iterator[AnnotatedScan]:
    """The first ``count`` chests of a seed, each with ``nodules`` nodules of 3 to 30 mm, and two of three with a mass.

    A chest takes one core about twenty seconds. Other processes generate the next ones while the caller uses one.
    """
    return parallel_imap(_phantom, ((seed, number, nodules) for number in range(count)))


def _phantom(seed: int, number: int, nodules: int) -> AnnotatedScan:
    from apps.medical.datasets.synth.phantom import phantom

    random = np.random.default_rng((seed, number))
    spacing_mm = SPACINGS_MM[number % len(SPACINGS_MM)]
    return phantom(random, spacing_mm=spacing_mm, name=str(number), nodules=nodules)


@dataclass(frozen=True, slots=True)
class PackedPatches:
    """A pack of patches as a data set; batches are as ``patches.collate`` makes them."""

    pack: Pack
    input: ChestInput

    def __len__(self) -> int:
        return len(self.pack.counts)

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        from apps.medical.datasets.patches import augment, collate

        patches = []
        for index in indices:
            boxes = np.array(self.pack.boxes[index, : self.pack.counts[index]])
            patches.append(augment(self.pack.images[index], boxes, key.generator(int(index)) if key else None))
        return collate(patches, self.input)


@dataclass(frozen=True, slots=True)
class FreshPatches:
    """Patches that are generated on request and differ in every epoch; batches are as ``patches.collate`` makes them.

    A patch and its augmentation are a function of the key and the index.
    """

    settings: PackSettings

    def __len__(self) -> int:
        return self.settings.patches

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        from apps.medical.datasets.patches import augment, collate
        from apps.medical.datasets.synth.pack import make_patch

        patches = []
        for index in indices:
            random = key.generator(int(index)) if key else None
            patches.append(augment(*make_patch(self.settings, int(index), random), random))
        return collate(patches, self.settings.input)
