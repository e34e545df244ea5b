"""What the second stage learns from: the detector's own marks on phantoms, right and wrong, packed once.

A mark within a nodule's radius of its centre is one (LUNA16's rule); one that is near a nodule and misses it teaches
nothing, and is left out. Of each scan the surest marks are kept, which are the hard ones. Each is seen once more with
its upper and lower end cut off, as in a CT of the abdomen or the neck: a vessel that leaves the image looks round.
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
NEAR_MM = 5.0
"""A mark that misses a nodule by less than this is neither right nor wrong."""

END_MM = 25.0
"""How far from its ends the marks of a scan are kept that was cut; the others are those of the whole one."""

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
        found = []
        for number, scan in enumerate(phantoms(seed, scans, self.nodules)):
            short = crop_ends(scan, np.random.default_rng((seed, number)))
            found.append(marks_of(predictor, scan, self.per_scan, size))
            found.append(marks_of(predictor, short, self.per_scan, size, from_ends_mm=END_MM))
        for name, parts in zip(PARTS, zip(*found, strict=True), strict=True):
            np.save(folder / f"{name}.npy", np.concatenate(parts))


def crop_ends(scan: AnnotatedScan, random: np.random.Generator) -> AnnotatedScan:
    """The scan without a part of its slices at either end; nodules that are cut in two are excluded."""
    volume = scan.volume
    slices = volume.size_ijk[2]
    first, last = int(slices * random.uniform(0.1, 0.45)), int(slices * random.uniform(0.6, 0.95))
    origin = volume.to_lps_mm([0, 0, first])
    kept: list[Nodule] = []
    halved: list[Nodule] = []
    for nodule in scan.nodules:
        middle = float(volume.to_index_ijk(np.array([nodule.centre_lps_mm]))[0, 2])
        reach = nodule.mean_diameter_mm / 2 / volume.spacing_mm[2]
        if first < middle - reach and middle + reach < last - 1:
            kept.append(nodule)
        elif first < middle + reach and middle - reach < last - 1:
            halved.append(nodule)
    short = replace(
        volume,
        voxels_zyx=np.ascontiguousarray(volume.voxels_zyx[first:last]),
        origin_lps_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
    )
    return AnnotatedScan(name=scan.name, volume=short, nodules=tuple(kept), excluded=tuple(halved))


def marks_of(
    predictor: NodulePredictor,
    scan: AnnotatedScan,
    most: int,
    size: tuple[int, int, int],
    *,
    from_ends_mm: float = np.inf,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """The surest marks of a detector on a scan: patches (n, 2, X, Y, Z) on 0..255, what is known, and 1 for nodules.

    None is further than ``from_ends_mm`` from the first or the last slice, nor near an excluded nodule.
    """
    from apps.medical.inference.second_stage import cut_patches, scalar_inputs

    found = predictor.candidates(scan.volume)
    if found is None:
        return np.zeros((0, 2, *size), np.uint8), np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    low, high = found.ends_lps_mm()
    middles = (low + high) / 2
    nearest = _beyond_mm(middles, scan.nodules)
    told = ((nearest < 0) | (nearest > NEAR_MM)) & (_beyond_mm(middles, scan.excluded) > NEAR_MM)
    slices = scan.volume.to_index_ijk(middles)[:, 2]
    to_end = np.minimum(slices, scan.volume.size_ijk[2] - 1 - slices) * scan.volume.spacing_mm[2]
    clear = np.nonzero(told & (to_end <= from_ends_mm))[0][:most]
    chosen = found.chosen(clear)
    patches = cut_patches(chosen, size).mul_(255).round_().cpu().numpy().astype(np.uint8)
    return patches, scalar_inputs(chosen), (nearest[clear] < 0).astype(np.float32)


def _beyond_mm(places: Float64, nodules: Sequence[Nodule]) -> Float64:
    """(n,) how far each place lies beyond the surface of the nearest nodule, a ball; negative within one."""
    centres = np.array([nodule.centre_lps_mm for nodule in nodules]).reshape(-1, 3)
    radii = np.array([nodule.mean_diameter_mm / 2 for nodule in nodules])
    beyond = np.linalg.norm(places[:, None] - centres, axis=2) - radii
    return np.asarray(beyond.min(axis=1, initial=np.inf))


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
