"""Training data of the second stage: the detector's true and false positives on phantoms, packed once.

A mark is a nodule if its distance from the centre of one is less than the radius (LUNA16's rule). Marks that narrowly
miss a nodule are ambiguous and left out. The highest-scoring marks of each scan, which are the hard ones, are kept.
Each scan is also used with its upper and lower end cut off, as in a CT of the abdomen or the neck, because a vessel
that leaves the image looks round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.types import AnnotatedScan, ChestInput, Float64, Nodule
from shared.data.build_cache import get_or_build
from shared.deploy.programs.store import weights_digest

if TYPE_CHECKING:
    from apps.medical.predictor import NodulePredictor
    from shared.data.dataset import Batch, Dataset
    from shared.data.order import Indices, Key
    from shared.deploy.artifact import Artifact

WEIGHTS, DETECTOR = Path(__file__).parents[1] / "weights", "lung_nodules"
VERSION = 5
PARTS = ("patches", "facts", "labels")
AMBIGUOUS_MM = 5.0
"""A mark outside a nodule but closer to its surface than this is ambiguous. So is one inside an excluded finding or
this close to it."""

MAX_END_DISTANCE_MM = 25.0
"""Marks of a cropped scan are only kept up to this distance from its ends. The others equal those of the whole scan."""

MAX_SHIFT = 2
"""Maximum random shift of a patch, in voxels of its scale, and the margin around packed patches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HardCandidates:
    """The marks of a detector on ``scans`` phantoms, and on ``validation_scans`` others for validation.

    ``detector`` is the folder of its artifact, by default the shipped one. At most ``per_scan`` marks of a scan are
    kept. Phantoms have more ``nodules`` than patients, since too few marks would be nodules otherwise.
    """

    detector: Path | None = None
    scans: int = 200
    validation_scans: int = 30
    per_scan: int = 80
    nodules: int = 15
    size: tuple[int, int, int] = (32, 32, 16)
    seed: int = 3020

    def train(self, input: ChestInput) -> Dataset:
        return self._open_pack(self.seed, self.scans)

    def validation(self, input: ChestInput) -> Dataset:
        return self._open_pack(self.seed + 1, self.validation_scans)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "description": "Marks of the detector on synthetic chest CT phantoms",
            "synthetic": True,
            "scans": self.scans,
            "detector": weights_digest(self.artifact()),
            "seed": self.seed,
        }

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        """The number of training marks, and how many of them are nodules."""
        pack = self._open_pack(self.seed, self.scans)
        return {"training marks": len(pack), "of nodules": int(pack.labels.sum()), "synthetic": True}

    def artifact(self) -> Artifact:
        """The artifact of the detector."""
        from shared.deploy.artifact import open_artifact
        from shared.deploy.registry import Registry

        return open_artifact(self.detector) if self.detector else Registry(WEIGHTS).newest(DETECTOR)

    def _open_pack(self, seed: int, scans: int) -> PackedCandidates:
        settings = [VERSION, weights_digest(self.artifact()), seed, scans, self.nodules, self.per_scan, self.size]
        name = f"marks-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"
        folder = get_or_build(name, lambda new_folder: self._build(seed, scans, new_folder))
        return PackedCandidates(*(np.load(folder / f"{part}.npy", mmap_mode="r") for part in PARTS))

    def _build(self, seed: int, scans: int, folder: Path) -> None:
        from apps.medical.datasets.synthetic import phantoms
        from apps.medical.predictor import NodulePredictor

        predictor = NodulePredictor.load([self.artifact()], "cpu")
        size = (self.size[0] + 2 * MAX_SHIFT, self.size[1] + 2 * MAX_SHIFT, self.size[2] + 2 * MAX_SHIFT)
        marks = []
        for number, scan in enumerate(phantoms(seed, scans, self.nodules)):
            cropped = crop_ends(scan, np.random.default_rng((seed, number)))
            marks.append(detector_marks(predictor, scan, self.per_scan, size))
            marks.append(
                detector_marks(predictor, cropped, self.per_scan, size, max_end_distance_mm=MAX_END_DISTANCE_MM)
            )
        for name, parts in zip(PARTS, zip(*marks, strict=True), strict=True):
            np.save(folder / f"{name}.npy", np.concatenate(parts))


def crop_ends(scan: AnnotatedScan, random: np.random.Generator) -> AnnotatedScan:
    """Crops a random part of the slices at both ends of a scan; nodules that are cut in two become excluded ones."""
    volume = scan.volume
    slices = volume.size_ijk[2]
    first, last = int(slices * random.uniform(0.1, 0.45)), int(slices * random.uniform(0.6, 0.95))
    origin = volume.to_lps_mm([0, 0, first])
    kept: list[Nodule] = []
    cut: list[Nodule] = []
    for nodule in scan.nodules:
        centre = float(volume.to_index_ijk(np.array([nodule.centre_lps_mm]))[0, 2])
        radius = nodule.mean_diameter_mm / 2 / volume.spacing_mm[2]
        if first < centre - radius and centre + radius < last - 1:
            kept.append(nodule)
        elif first < centre + radius and centre - radius < last - 1:
            cut.append(nodule)
    cropped = replace(
        volume,
        voxels_zyx=np.ascontiguousarray(volume.voxels_zyx[first:last]),
        origin_lps_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
    )
    return AnnotatedScan(name=scan.name, volume=cropped, nodules=tuple(kept), excluded=tuple(cut))


def detector_marks(
    predictor: NodulePredictor,
    scan: AnnotatedScan,
    max_marks: int,
    size: tuple[int, int, int],
    *,
    max_end_distance_mm: float = np.inf,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """The highest-scoring marks of a detector on a scan, without ambiguous ones and those at excluded findings.

    Returns patches (N, 2, X, Y, Z) in 0..255, the second stage's scalar inputs (N, 2), and labels (N,), 1 for nodules.
    All marks are within ``max_end_distance_mm`` of the first or the last slice.
    """
    from apps.medical.inference.second_stage import cut_patches, scalar_inputs

    candidates = predictor.candidates(scan.volume)
    if candidates is None:
        return np.zeros((0, 2, *size), np.uint8), np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    low, high = candidates.ends_lps_mm()
    centres = (low + high) / 2
    distance = _surface_distance_mm(centres, scan.nodules)
    is_clear = (distance < 0) | (distance > AMBIGUOUS_MM)
    is_clear &= _surface_distance_mm(centres, scan.excluded) > AMBIGUOUS_MM
    slices = scan.volume.to_index_ijk(centres)[:, 2]
    end_distance = np.minimum(slices, scan.volume.size_ijk[2] - 1 - slices) * scan.volume.spacing_mm[2]
    kept = np.nonzero(is_clear & (end_distance <= max_end_distance_mm))[0][:max_marks]
    chosen = candidates.chosen(kept)
    patches = cut_patches(chosen, size).mul_(255).round_().cpu().numpy().astype(np.uint8)
    return patches, scalar_inputs(chosen), (distance[kept] < 0).astype(np.float32)


def _surface_distance_mm(positions: Float64, nodules: Sequence[Nodule]) -> Float64:
    """Distances (N,) of positions (N, 3) to the surface of the nearest nodule, a sphere; negative inside."""
    centres = np.array([nodule.centre_lps_mm for nodule in nodules]).reshape(-1, 3)
    radii = np.array([nodule.mean_diameter_mm / 2 for nodule in nodules])
    distances = np.linalg.norm(positions[:, None] - centres, axis=2) - radii
    return np.asarray(distances.min(axis=1, initial=np.inf))


@dataclass(frozen=True, slots=True)
class PackedCandidates:
    """Marks as a data set. The fields are the results of ``detector_marks``; ``facts`` are the scalar inputs.

    The patches have a margin of ``MAX_SHIFT`` voxels.
    """

    patches: NDArray[np.uint8]
    facts: NDArray[np.float32]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        """A batch: ``image`` (B, 2, X, Y, Z) in 0..1, the scalar inputs ``known`` (B, 2), and ``label`` (B,)."""
        import torch

        images = []
        size = np.array(self.patches.shape[2:]) - 2 * MAX_SHIFT
        for index in indices:
            gain, shift, start = 1.0, 0.0, np.full(3, MAX_SHIFT)
            if key is not None:
                random = key.generator(int(index))
                start = random.integers(0, 2 * MAX_SHIFT, 3, endpoint=True)
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
