"""What the second stage learns from: the detector's own marks on phantoms, right and wrong, packed once.

A mark within a nodule's radius of its centre is one (LUNA16's rule); one that is near a nodule and misses it teaches
nothing, and is left out. Of each scan the surest marks are kept, which are the hard ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.types import AnnotatedScan, ChestInput
from shared.data.build_cache import get_or_build

if TYPE_CHECKING:
    from apps.medical.predictor import NodulePredictor
    from shared.data.dataset import Batch, Dataset
    from shared.data.order import Indices, Key
    from shared.deploy.artifact import Artifact

WEIGHTS, DETECTOR = Path(__file__).parents[1] / "weights", "lung_nodules"
VERSION = 2
PARTS = ("patches", "facts", "labels")
NEAR_MM = 5.0
"""A mark that misses a nodule by less than this is neither right nor wrong."""

SHIFT = 2
"""A patch is shifted at random by so many voxels of its scale; it is packed with as many around it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HardCandidates:
    """The marks of a detector on ``scans`` phantoms, and on ``validation_scans`` others for validation.

    ``detector`` is the artifact's folder; by default the shipped one. At most ``per_scan`` marks of a scan are kept. A
    phantom has more ``nodules`` than a patient, for there are too few among the marks otherwise.
    """

    detector: Path | None = None
    scans: int = 200
    validation_scans: int = 30
    per_scan: int = 80
    nodules: int = 15
    size: tuple[int, int, int] = (32, 32, 16)
    seed: int = 3020

    def train(self, input: ChestInput) -> Dataset:
        return self._pack(self.seed, self.scans)

    def validation(self, input: ChestInput) -> Dataset:
        return self._pack(self.seed + 1, self.validation_scans)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "description": "Marks of the detector on synthetic chest CT phantoms",
            "synthetic": True,
            "scans": self.scans,
            "detector": weights_digest(self.artifact()),
            "seed": self.seed,
        }

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        """How many marks there are, and how many of them are nodules."""
        made = self._pack(self.seed, self.scans)
        return {"training marks": len(made), "of nodules": int(made.labels.sum()), "synthetic": True}

    def artifact(self) -> Artifact:
        """The detector's."""
        from shared.deploy.artifact import open_artifact
        from shared.deploy.registry import Registry

        return open_artifact(self.detector) if self.detector else Registry(WEIGHTS).newest(DETECTOR)

    def _pack(self, seed: int, scans: int) -> PackedCandidates:
        stated = [VERSION, weights_digest(self.artifact()), seed, scans, self.nodules, self.per_scan, self.size]
        name = f"marks-{hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:16]}"
        folder = get_or_build(name, lambda aside: self._make(seed, scans, aside))
        return PackedCandidates(*(np.load(folder / f"{part}.npy", mmap_mode="r") for part in PARTS))

    def _make(self, seed: int, scans: int, folder: Path) -> None:
        from apps.medical.datasets.synthetic import phantoms
        from apps.medical.predictor import NodulePredictor

        predictor = NodulePredictor.load([self.artifact()], "cpu")
        size = (self.size[0] + 2 * SHIFT, self.size[1] + 2 * SHIFT, self.size[2] + 2 * SHIFT)
        found = [marks_of(predictor, scan, self.per_scan, size) for scan in phantoms(seed, scans, self.nodules)]
        for name, parts in zip(PARTS, zip(*found, strict=True), strict=True):
            np.save(folder / f"{name}.npy", np.concatenate(parts))


def weights_digest(artifact: Artifact) -> str:
    """By which the marks of one detector are told from those of another."""
    return str(artifact.manifest.files["weights.safetensors"]["sha256"])


def marks_of(
    predictor: NodulePredictor, scan: AnnotatedScan, most: int, size: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """The surest marks of a detector on a scan: patches (n, 2, X, Y, Z) on 0..255, what is known, and 1 for nodules."""
    from apps.medical.inference.second_stage import cut_patches, known

    found = predictor.candidates(scan.volume)
    if found is None:
        return np.zeros((0, 2, *size), np.uint8), np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    low, high = found.ends_lps_mm()
    centres = np.array([nodule.centre_lps_mm for nodule in scan.nodules]).reshape(-1, 3)
    radii = np.array([nodule.mean_diameter_mm / 2 for nodule in scan.nodules])
    beyond = np.linalg.norm((low + high)[:, None] / 2 - centres, axis=2) - radii
    nearest = beyond.min(axis=1, initial=np.inf)
    clear = np.nonzero((nearest < 0) | (nearest > NEAR_MM))[0][:most]
    chosen = found.chosen(clear)
    patches = cut_patches(chosen, size).mul_(255).round_().cpu().numpy().astype(np.uint8)
    return patches, known(chosen), (nearest[clear] < 0).astype(np.float32)


@dataclass(frozen=True, slots=True)
class PackedCandidates:
    """Marks as a data set; ``patches``, ``facts`` and ``labels`` are those of ``marks_of``, with ``SHIFT`` around."""

    patches: NDArray[np.uint8]
    facts: NDArray[np.float32]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        """``image`` (B, 2, X, Y, Z) in 0..1, ``known`` (B, 2) and ``label`` (B,)."""
        import torch

        images = []
        size = np.array(self.patches.shape[2:]) - 2 * SHIFT
        for index in indices:
            gain, shift, start = 1.0, 0.0, np.full(3, SHIFT)
            if key is not None:
                random = key.generator(int(index))
                start = random.integers(0, 2 * SHIFT, 3, endpoint=True)
            window = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
            image = np.asarray(self.patches[(index, slice(None), *window)])
            if key is not None:
                for axis in (1, 2, 3):
                    if random.random() < 0.5:
                        image = np.flip(image, axis)
                if random.random() < 0.5 and image.shape[1] == image.shape[2]:
                    image = image.transpose(0, 2, 1, 3)
                gain, shift = random.uniform(0.9, 1.1), random.uniform(-0.03, 0.03)
            images.append(np.clip(image.astype(np.float32) * np.float32(gain / 255) + np.float32(shift), 0, 1))
        at = np.asarray(indices)
        return {
            "image": torch.from_numpy(np.stack(images)),
            "known": torch.from_numpy(np.array(self.facts[at])),
            "label": torch.from_numpy(np.array(self.labels[at])),
        }
