"""Training data of the second stage: the detector's true and false positives on phantoms, packed once.

``scan_candidates`` has the same for real scans.

A mark is a nodule if its distance from the centre of one is less than the radius (LUNA16's rule). Marks that narrowly
miss a nodule are ambiguous and left out. The highest-scoring marks of each scan, which are the hard ones, are kept.
Each scan is also used with its upper and lower end cut off, as in a CT of the abdomen or the neck, because a vessel
that leaves the image looks round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.types import AnnotatedScan, ChestInput, Float64, Nodule, triple
from shared.data.build_cache import get_or_build
from shared.deploy.programs.store import weights_digest
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar

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
        return open_detector_artifact(self.detector)

    def _open_pack(self, seed: int, scans: int) -> PackedCandidates:
        settings = [VERSION, weights_digest(self.artifact()), seed, scans, self.nodules, self.per_scan, self.size]
        name = f"marks-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"
        return open_candidates(get_or_build(name, lambda new_folder: self._build(seed, scans, new_folder)))

    def _build(self, seed: int, scans: int, folder: Path) -> None:
        from apps.medical.datasets.synthetic import phantoms

        chests = progress_bar(phantoms(seed, scans, self.nodules), scans, "searching phantoms")
        pack_candidates(self.artifact(), chests, self.per_scan, self.size, seed, folder)


def open_detector_artifact(folder: Path | None) -> Artifact:
    """The artifact of a detector; the newest shipped one if ``folder`` is None.

    Raises InvalidInputError if the folder has no artifact, or that of another model.
    """
    from shared.deploy.artifact import open_artifact
    from shared.deploy.registry import Registry

    if folder is None:
        return Registry(WEIGHTS).newest(DETECTOR)
    artifact = open_artifact(folder)
    if artifact.manifest.name != DETECTOR:
        raise InvalidInputError(
            f"{folder} is the model {artifact.manifest.name}; give the artifact of a detector with --data.detector"
        )
    return artifact


def pack_candidates(
    detector: Artifact,
    scans: Iterable[AnnotatedScan],
    per_scan: int,
    size: tuple[int, int, int],
    seed: int,
    folder: Path,
) -> None:
    """Writes the marks of ``detector`` on the scans into ``folder``: at most ``per_scan`` on a scan and its crop each.

    Raises InvalidInputError if there are none.
    """
    from apps.medical.predictor import NodulePredictor

    predictor = NodulePredictor.load([detector], "cpu")
    padded = (size[0] + 2 * MAX_SHIFT, size[1] + 2 * MAX_SHIFT, size[2] + 2 * MAX_SHIFT)
    facts, labels = [np.zeros((0, 2), np.float32)], [np.zeros(0, np.float32)]
    # The patches of a thousand scans would not fit into memory.
    with (folder / "patches.bin").open("w+b") as file:
        for number, scan in enumerate(scans):
            cropped = crop_ends(scan, np.random.default_rng((seed, number)))
            for part, max_distance in ((scan, np.inf), (cropped, MAX_END_DISTANCE_MM)):
                marks = detector_marks(predictor, part, per_scan, padded, max_end_distance_mm=max_distance)
                file.write(marks[0].tobytes())
                facts.append(marks[1])
                labels.append(marks[2])
        count = sum(map(len, labels))
        if not count:
            raise InvalidInputError(f"the detector {detector.path} marks nothing in the scans")
        shape = (count, 2, *padded)
        patches = np.lib.format.open_memmap(folder / "patches.npy", mode="w+", dtype=np.uint8, shape=shape)
        patches[:] = np.memmap(file, np.uint8, "r", shape=shape)
    (folder / "patches.bin").unlink()
    np.save(folder / "facts.npy", np.concatenate(facts))
    np.save(folder / "labels.npy", np.concatenate(labels))


def open_candidates(folder: Path) -> PackedCandidates:
    """Opens what ``pack_candidates`` wrote."""
    return PackedCandidates(*(np.load(folder / f"{part}.npy", mmap_mode="r") for part in PARTS))


def crop_ends(scan: AnnotatedScan, random: np.random.Generator) -> AnnotatedScan:
    """Crops a random part of the slices at both ends of a scan; nodules that are cut in two become excluded ones.

    The scan's excluded findings remain excluded.
    """
    volume = scan.volume
    slices = volume.size_ijk[2]
    first, last = int(slices * random.uniform(0.1, 0.45)), int(slices * random.uniform(0.6, 0.95))
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
        origin_lps_mm=triple(volume.to_lps_mm([0, 0, first]).tolist()),
    )
    return AnnotatedScan(name=scan.name, volume=cropped, nodules=tuple(kept), excluded=(*scan.excluded, *cut))


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
