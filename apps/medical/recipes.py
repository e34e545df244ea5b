"""Named recipes: ``tiny`` for tests, ``small`` to ``candidates`` for CPU training, ``large`` and ``full`` for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from apps.medical.datasets.hard_candidates import HardCandidates
from apps.medical.datasets.scan_candidates import CANDIDATE_DATA_SETS, ScanCandidates
from apps.medical.datasets.scan_data import ScanData
from apps.medical.datasets.synthetic import Synthetic
from apps.medical.models.classifier import CandidateClassifier
from apps.medical.models.retinanet import RetinaNet3D
from apps.medical.models.retinanet import full as full_model
from apps.medical.task import CandidateTask, DetectionTask
from apps.medical.types import ChestInput
from shared.errors import InvalidInputError
from shared.optimizers import SGD, AdamW, CosineRestarts
from shared.recipe import DataConfig, Limits, Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class NoduleRecipe(Recipe):
    """Recipe of the nodule detector."""

    model: RetinaNet3D = field(default_factory=RetinaNet3D)
    data: DataConfig = field(default_factory=Synthetic)
    task: DetectionTask = field(default_factory=DetectionTask)
    input: ChestInput = field(default_factory=ChestInput)

    def check_data(self) -> None:
        if isinstance(self.data, HardCandidates | ScanCandidates):
            raise InvalidInputError(
                f"{type(self.data).__name__} has candidates for a second stage, but the recipe trains a detector; use "
                "CandidateRecipe, or data with patches, such as Marks, Luna16, Lidc or Synthetic"
            )


def tiny() -> NoduleRecipe:
    """Takes seconds on one core: enough to check that the training loop works."""
    return NoduleRecipe(
        model=RetinaNet3D(layers=(1, 1, 1, 1), planes=8, features=16, stem=3),
        data=Synthetic(train_patches=8, validation_patches=4, scans=1),
        input=ChestInput(patch_size=(64, 64, 32)),
        optimizer=AdamW(learning_rate=2e-3),
        schedule=CosineRestarts(warmup_steps=2),
        limits=Limits(epochs=2, batch=2, log_every=1),
    )


def small() -> NoduleRecipe:
    """Takes up to 30 minutes on two cores: one generates patches, 1,600 new ones per epoch, and the other trains."""
    return NoduleRecipe(
        model=RetinaNet3D(layers=(1, 1, 1, 1), planes=24, features=16, stem=3),
        data=Synthetic(train_patches=1600, validation_patches=64, fresh=True),
        input=ChestInput(patch_size=(80, 80, 48)),
        optimizer=AdamW(learning_rate=2e-3, weight_decay=1e-2),
        schedule=CosineRestarts(warmup_steps=60, period=8.0),
        limits=Limits(epochs=8, batch=2, evaluation_batch=4, minutes=30.0, patience=20, checkpoint_every=200),
    )


def overnight() -> NoduleRecipe:
    """Takes about 10 hours on one slow core. Schedule periods end after 8, 24 and 56 epochs; training may stop at each.

    Patches are cropped from whole synthetic chests, which are generated once at the start (30 minutes); each epoch has
    new patches. A quarter of them have twice the spacing, for the second look at a scan.
    """
    return NoduleRecipe(
        model=RetinaNet3D(layers=(1, 3, 1, 1), planes=32, features=16, stem=3),
        data=Synthetic(train_patches=1600, validation_patches=192, fresh=True, chests=96),
        input=ChestInput(patch_size=(80, 80, 48), second_look=2),
        optimizer=AdamW(learning_rate=2e-3, weight_decay=1e-2),
        schedule=CosineRestarts(warmup_steps=200, period=8.0),
        ema_decay=0.999,
        limits=Limits(epochs=56, batch=2, evaluation_batch=4, patience=60, checkpoint_every=200),
    )


def tiles() -> NoduleRecipe:
    """Fine-tunes an ``overnight`` run (``--init``) on patches as large as inference tiles; about 1 hour on two cores.

    The network's heads normalise over their whole input, so a network trained only on smaller patches misjudges a tile.
    """
    base = overnight()
    return replace(
        base,
        data=Synthetic(train_patches=2200, validation_patches=96, fresh=True, chests=144),
        input=replace(base.input, patch_size=base.input.tile_size),
        optimizer=AdamW(learning_rate=5e-4, weight_decay=1e-2),
        schedule=CosineRestarts(warmup_steps=50, period=1.0),
        limits=Limits(epochs=1, batch=1, evaluation_batch=1, checkpoint_every=100),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateRecipe(Recipe):
    """Recipe of the second stage, which is trained on the marks of a trained detector."""

    data_sets: ClassVar[Mapping[str, type[DataConfig]] | None] = CANDIDATE_DATA_SETS

    model: CandidateClassifier = field(default_factory=CandidateClassifier)
    data: DataConfig = field(default_factory=HardCandidates)
    task: CandidateTask = field(default_factory=CandidateTask)
    input: ChestInput = field(default_factory=ChestInput)

    def check_data(self) -> None:
        if isinstance(self.data, ScanData | Synthetic) and not isinstance(self.data, ScanCandidates):
            usable = ", ".join(kind.__name__ for kind in (*CANDIDATE_DATA_SETS.values(), HardCandidates))
            raise InvalidInputError(
                f"{type(self.data).__name__} has patches for a detector, but CandidateRecipe trains a second stage on "
                f"a detector's candidates; use one of {usable}"
            )
        # The network takes patches of any size, so it would be trained on others than it is used on.
        if isinstance(self.data, HardCandidates | ScanCandidates) and self.data.size != self.model.size:
            raise InvalidInputError(
                f"data.size is {self.data.size}, but model.size is {self.model.size}; give both the same size"
            )


def candidates() -> CandidateRecipe:
    """The second stage: 1 to 2 hours on one core to find the shipped detector's marks on phantoms, then minutes of
    training. With ``--data`` it is trained on the marks of a detector on real scans.
    """
    return CandidateRecipe(
        optimizer=AdamW(learning_rate=2e-3, weight_decay=5e-2),
        schedule=CosineRestarts(warmup_steps=100, period=12.0),
        ema_decay=0.998,
        limits=Limits(epochs=12, batch=32, evaluation_batch=64, patience=12),
    )


def large() -> NoduleRecipe:
    """Designed for minutes of training on one GPU, plus minutes to generate patches on 16 cores; not yet measured."""
    return NoduleRecipe(
        model=RetinaNet3D(layers=(2, 2, 1, 1), planes=32, features=48),
        data=Synthetic(train_patches=10_000, validation_patches=256),
        optimizer=AdamW(learning_rate=1.5e-3, weight_decay=1e-2),
        schedule=CosineRestarts(warmup_steps=100, period=3.0),
        limits=Limits(
            epochs=3,
            batch=16,
            minutes=6.5,
            monitor="sensitivity_at_quarter",
            mode="max",
            min_delta=0.0,
            patience=50,
            loader_threads=8,
            log_every=20,
        ),
    )


def full() -> NoduleRecipe:
    """MONAI's LUNA16 configuration (model zoo, lung_nodule_ct_detection) on phantoms; takes days on one GPU."""
    return NoduleRecipe(
        model=full_model(),
        data=Synthetic(train_patches=20_000, validation_patches=512),
        input=ChestInput(patch_size=(192, 192, 80), tile_size=(512, 512, 192)),
        optimizer=SGD(learning_rate=1e-2, momentum=0.9, weight_decay=3e-5, nesterov=True),
        schedule=CosineRestarts(warmup_steps=1000, period=300.0),
        limits=Limits(epochs=300, batch=4, patience=40, loader_threads=8),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "tiny": tiny,
    "small": small,
    "overnight": overnight,
    "tiles": tiles,
    "candidates": candidates,
    "large": large,
    "full": full,
}
