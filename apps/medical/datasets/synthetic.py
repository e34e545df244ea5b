"""Synthetic chests with exact truth: patches to train on, packed or made anew in each epoch, and whole scans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.medical.types import AnnotatedScan, ChestInput
from shared.data.build_cache import made_ahead

if TYPE_CHECKING:
    from apps.medical.datasets.synth.pack import Pack, PackSettings
    from shared.data.dataset import Batch, Dataset
    from shared.data.order import Indices, Key

SPACINGS_MM = ((0.8, 0.8, 1.5), (1.0, 1.0, 2.5), (0.8, 0.8, 5.0))
"""Whole phantoms take turns with these."""

EVALUATION_SEED = 611
"""Of the whole phantoms that the headline table is scored on: no patch and no calibration takes a chest from there."""

VALIDATION_SHARE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """Patches of synthetic chests, and whole ones with nodules of 3 to 80 mm.

    ``fresh`` makes new training patches of the same chests in every epoch, one core beside the training; otherwise
    they are packed once and read again. With ``chests`` patches are cut out of so many chests that are packed whole,
    and of an eighth as many for validation. ``scans`` whole chests are there for evaluation and calibration.
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

        chests = -(-self.chests // VALIDATION_SHARE)
        return PackedPatches(open_pack(self._settings(self.validation_patches, self.seed + 1, chests, input)), input)

    def validation_scans(self) -> Iterator[AnnotatedScan]:
        """Whole chests that no patch is taken from."""
        return phantoms(EVALUATION_SEED, self.scans)

    def training_scans(self, most: int) -> Iterator[AnnotatedScan]:
        """Whole chests of the training's seed, with a scanner's noise and nodules of their own."""
        return phantoms(self.seed, most)

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
        """How many patches there are, and of what."""
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
    """The first ``count`` chests of a series: so many nodules of 3 to 30 mm each, and in two of three a larger mass.

    A chest takes a core some twenty seconds; the next are painted by other processes while one is looked at.
    """
    return made_ahead(_phantom, ((seed, number, nodules) for number in range(count)))


def _phantom(seed: int, number: int, nodules: int) -> AnnotatedScan:
    from apps.medical.datasets.synth.phantom import phantom

    random = np.random.default_rng((seed, number))
    spacing_mm = SPACINGS_MM[number % len(SPACINGS_MM)]
    return phantom(random, spacing_mm=spacing_mm, name=str(number), nodules=nodules)


@dataclass(frozen=True, slots=True)
class PackedPatches:
    """A pack as a data set; batches as ``patches.collate`` makes them."""

    pack: Pack
    input: ChestInput

    def __len__(self) -> int:
        return len(self.pack.counts)

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        from apps.medical.datasets.patches import augment, collate

        made = []
        for index in indices:
            boxes = np.array(self.pack.boxes[index, : self.pack.counts[index]])
            made.append(augment(self.pack.images[index], boxes, key.generator(int(index)) if key else None))
        return collate(made, self.input)


@dataclass(frozen=True, slots=True)
class FreshPatches:
    """Patches that are made when they are asked for, others in every epoch; batches as those of ``PackedPatches``.

    The patch is a function of the key and the index, and so are its mirroring and brightness.
    """

    settings: PackSettings

    def __len__(self) -> int:
        return self.settings.patches

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        from apps.medical.datasets.patches import augment, collate
        from apps.medical.datasets.synth.pack import sample

        made = []
        for index in indices:
            random = key.generator(int(index)) if key else None
            made.append(augment(*sample(self.settings, int(index), random), random))
        return collate(made, self.settings.input)
