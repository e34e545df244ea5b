"""Scans resampled to the network's grid and packed once each, and the training patches drawn from them.

A pack is a folder in the user's cache, named by a digest of the scan's files (path, size and modification time) and of
the grid. It holds ``scan.json`` and ``voxels.npy``, uint8 (X, Y, Z) with the window scaled to 0..255: the lungs with a
margin of 14 mm, or the whole scan if no lungs are found. Marks are not part of it and can change without repacking.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from apps.medical.datasets.patches import augment, clip_boxes, collate
from apps.medical.datasets.scan_files import ScanFile
from apps.medical.types import ChestInput, Float64, triple
from shared.data.build_cache import get_or_build, packs_folder, parallel_map
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from shared.data.dataset import Batch
    from shared.data.order import Indices, Key

LabelledPatch: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]
"""An image (X, Y, Z) in 0..255, its boxes (N, 6) in voxels, and their class indices (N,)."""

VERSION = 2
MIN_SCANS_FOR_PROCESSES = 4
"""Fewer scans are packed in this process, because starting others, which import torch, takes longer."""

CANDIDATE_FRACTION = 0.5
"""The fraction of the patches not drawn around a nodule that are drawn around a candidate, if there are any."""


@dataclass(frozen=True, slots=True)
class PackedScan:
    """A scan on the grid, and its marks there.

    folder             the folder of the pack
    spacing_mm         voxel spacing of the stored scan
    lungs              whether lungs were found, so that the pack is their box
    boxes              (N, 6) in voxels of the pack, of the nodules inside it
    labels             (N,) class indices
    diameters_mm       diameters of all nodules
    outside            number of nodules outside the volume
    away_from_lungs    number of nodules inside the volume but outside the pack
    candidates         (M, 3) in voxels of the pack, of those inside it
    """

    folder: Path
    spacing_mm: tuple[float, float, float]
    lungs: bool
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    diameters_mm: tuple[float, ...]
    outside: int
    away_from_lungs: int
    candidates: Float64

    @property
    def voxels(self) -> NDArray[np.uint8]:
        return _load_voxels(self.folder)


@lru_cache(maxsize=2048)
def _load_voxels(folder: Path) -> NDArray[np.uint8]:
    voxels: NDArray[np.uint8] = np.load(folder / "voxels.npy", mmap_mode="r")
    return voxels


def open_scans(scans: Sequence[ScanFile], input: ChestInput) -> list[PackedScan]:
    """Opens the packs of the scans, after building the missing ones on all processors."""
    names = [pack_name(scan, input) for scan in scans]
    missing = [(scan, input) for scan, name in zip(scans, names, strict=True) if not (packs_folder() / name).is_dir()]
    if len(missing) < MIN_SCANS_FOR_PROCESSES:
        for scan, grid in missing:
            pack_scan(scan, grid)
    else:
        parallel_map(pack_scan, missing, "packing scans")
    return [_open_scan(scan, packs_folder() / name, input) for scan, name in zip(scans, names, strict=True)]


def pack_name(scan: ScanFile, input: ChestInput) -> str:
    """The name of the pack: a digest of everything that determines its content."""
    folders = [scan.path, *scan.folders] if scan.path.is_dir() else []
    files = [file for folder in folders for file in sorted(folder.iterdir())] or [scan.path, *_voxel_files(scan.path)]
    file_states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    settings = asdict(input)
    for name in ("patch_size", "tile_size", "classes", "second_look"):
        settings.pop(name)
    content = json.dumps([VERSION, scan.path.resolve().as_posix(), scan.series, file_states, settings], sort_keys=True)
    return f"ct-{hashlib.sha256(content.encode()).hexdigest()[:20]}"


def _voxel_files(path: Path) -> list[Path]:
    """The files that may hold the voxels of a MetaImage header."""
    return [file for suffix in (".raw", ".zraw", ".raw.gz") if (file := path.with_suffix(suffix)).is_file()]


def pack_scan(scan: ScanFile, input: ChestInput) -> None:
    """Builds the pack of a scan if it is missing."""
    get_or_build(pack_name(scan, input), lambda new_folder: _build(scan, input, new_folder))


def _build(scan: ScanFile, input: ChestInput, folder: Path) -> None:
    from apps.medical.inference.grid import cover, reorient_to_lps, resample
    from apps.medical.inference.lungs import find_lungs

    stored = scan.read()
    volume = reorient_to_lps(stored)
    lungs = find_lungs(volume)
    low, high = ((0, 0, 0), volume.size_ijk) if lungs is None else (lungs.low_ijk, lungs.high_ijk)
    grid = cover(volume, low, high, input.spacing_mm, (1, 1, 1))
    voxels = resample(volume, grid, input.window_hu).mul_(255).round_().numpy().astype(np.uint8)
    np.save(folder / "voxels.npy", voxels)
    description = {
        "grid": {"origin_lps_mm": grid.origin_lps_mm.tolist(), "size": list(grid.size)},
        "lungs": lungs is not None,
        "spacing_mm": list(stored.spacing_mm),
        "size_ijk": list(stored.size_ijk),
        "origin_lps_mm": list(stored.origin_lps_mm),
        "direction": stored.direction.tolist(),
        "remarks": list(stored.remarks),
    }
    (folder / "scan.json").write_text(json.dumps(description), encoding="utf-8")


def _open_scan(scan: ScanFile, folder: Path, input: ChestInput) -> PackedScan:
    from apps.medical.inference.grid import Grid
    from apps.medical.types import CTVolume

    description = json.loads((folder / "scan.json").read_text(encoding="utf-8"))
    columns, rows, slices = description["size_ijk"]
    # Only the geometry is used, so the voxels are a broadcast zero, which takes no memory.
    geometry = CTVolume(
        voxels_zyx=np.broadcast_to(np.int16(0), (slices, rows, columns)),
        spacing_mm=tuple(description["spacing_mm"]),
        origin_lps_mm=tuple(description["origin_lps_mm"]),
        direction=np.array(description["direction"]),
        remarks=tuple(description["remarks"]),
    )
    spacing, size = np.array(input.spacing_mm), tuple(description["grid"]["size"])
    grid = Grid(np.array(description["grid"]["origin_lps_mm"]), spacing, triple(size))
    boxes, labels, outside, away_from_lungs = [], [], 0, 0
    for mark in scan.nodules:
        centre_lps_mm = scan.to_lps_mm(geometry, mark.centre)
        index = geometry.to_index_ijk(centre_lps_mm)
        centre = grid.to_voxels(centre_lps_mm)
        radius = max(mark.diameter_mm, 0.0) / 2 / spacing
        if not np.all((index >= -0.5) & (index < np.array(geometry.size_ijk) - 0.5)):
            outside += 1
        elif not np.all((centre >= 0) & (centre < size)):
            away_from_lungs += 1
        elif mark.diameter_mm > 0:
            boxes.append(np.concatenate([centre - radius, centre + radius]))
            labels.append(_class_index(mark.label, scan, input))
    positions = np.array(scan.candidates, np.float64).reshape(-1, 3)
    candidates = grid.to_voxels(scan.to_lps_mm(geometry, positions))
    return PackedScan(
        folder=folder,
        spacing_mm=geometry.spacing_mm,
        lungs=bool(description["lungs"]),
        boxes=np.array(boxes, np.float32).reshape(-1, 6),
        labels=np.array(labels, np.int64),
        diameters_mm=tuple(mark.diameter_mm for mark in scan.nodules),
        outside=outside,
        away_from_lungs=away_from_lungs,
        candidates=candidates[np.all((candidates >= 0) & (candidates < size), axis=1)],
    )


def _class_index(label: str, scan: ScanFile, input: ChestInput) -> int:
    if len(input.classes) == 1:
        return 0
    if label not in input.classes:
        raise InvalidInputError(
            f"{scan.path.name} has a nodule of the class {label!r}; the classes of the input are {input.classes}"
        )
    return input.classes.index(label)


class ScanPatches:
    """``length`` patches of packed scans: every second one around a nodule, the others anywhere or around a candidate.

    Position and augmentation of a patch are a function of (seed, epoch, index). Without a key the position is a
    function of the index, and there is no augmentation. Voxels outside the pack are air. Batches are as ``collate``
    makes them.
    """

    def __init__(self, scans: Iterable[PackedScan], input: ChestInput, length: int) -> None:
        self.scans, self.input, self.length = tuple(scans), input, length
        self._nodules = [(n, m) for n, scan in enumerate(self.scans) for m in range(len(scan.boxes))]
        self._candidates = [(n, m) for n, scan in enumerate(self.scans) for m in range(len(scan.candidates))]

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        patches, labels = [], []
        for index in indices:
            random = np.random.default_rng((int(index), 0)) if key is None else key.generator(int(index))
            image, boxes, patch_labels = self._patch(int(index), random)
            patches.append(augment(image, boxes, None if key is None else random))
            labels.append(patch_labels)
        return collate(patches, self.input, labels)

    def _patch(self, index: int, random: np.random.Generator) -> LabelledPatch:
        size = np.array(self.input.patch_size)
        if self._nodules and index % 2 == 0:
            number, nodule = self._nodules[(index // 2) % len(self._nodules)]
            box = self.scans[number].boxes[nodule]
            # The patch contains the whole box, or, if the box is larger, its centre part.
            slack = np.maximum(size - (box[3:] - box[:3]), 0)
            start = np.rint((box[:3] + box[3:] - size) / 2 + slack * random.uniform(-0.5, 0.5, 3)).astype(int)
        elif self._candidates and random.random() < CANDIDATE_FRACTION:
            number, candidate = self._candidates[random.integers(len(self._candidates))]
            centre = self.scans[number].candidates[candidate]
            start = np.rint(centre - size / 2 + size * random.uniform(-0.25, 0.25, 3)).astype(int)
        else:
            number = int(random.integers(len(self.scans)))
            slack = np.array(self.scans[number].voxels.shape) - size
            start = random.integers(np.minimum(slack, 0), np.maximum(slack, 0) + 1)
        return self._crop(self.scans[number], start)

    def _crop(self, scan: PackedScan, start: NDArray[np.int_]) -> LabelledPatch:
        size, shape = np.array(self.input.patch_size), np.array(scan.voxels.shape)
        start = np.clip(start, np.minimum(shape - size, 0), np.maximum(shape - size, 0))
        low, high = np.maximum(start, 0), np.minimum(start + size, shape)
        image = np.zeros(self.input.patch_size, np.uint8)
        inside = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
        image[inside] = scan.voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        boxes, kept = clip_boxes(scan.boxes - np.tile(start, 2).astype(np.float32), self.input.patch_size)
        return image, boxes, scan.labels[kept]
