"""Chest CT phantoms in HU with exact truth: an anatomy, nodules in it, and an imitated scanner; pieces and whole scans.

Everything is a function of the given generator. Synthetic data: whatever is measured on it is to be called so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apps.medical.datasets.patches import clip_boxes, mirror
from apps.medical.datasets.synth.anatomy import Anatomy, draw, spread
from apps.medical.datasets.synth.fields import Array, on_grid, open_grid
from apps.medical.datasets.synth.frame import Frame
from apps.medical.datasets.synth.nodules import diameter_mm, paint
from apps.medical.datasets.synth.placing import NoduleSpec, patch_nodules, put_nodules, scan_nodules
from apps.medical.datasets.synth.scanner import Scanner, acquire
from apps.medical.datasets.synth.tissue import tissue
from apps.medical.types import AnnotatedScan, CTVolume, Nodule

if TYPE_CHECKING:
    from apps.medical.datasets.synth.chests import PackedChest

FINE_Z_MM = 1.25
SLAB = 32

CUT_SHARE = 0.08
"""Of training patches: so many reach over the image's edge."""

OUTSIDE_HU = -1024.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """A piece of a phantom on the network's grid.

    image_xyz   float32 HU, indexed towards the patient's right, front and head (RAS)
    boxes       (n, 6) voxel units: lower corner x, y, z, then upper; voxel i covers [i, i + 1]
    """

    image_xyz: Array
    boxes: Array


def patch(
    random: np.random.Generator,
    chest: Anatomy | PackedChest,
    size: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    *,
    coarse: int = 1,
) -> Patch:
    """A random piece of a chest with up to 3 nodules in it, ``coarse`` times as coarse as ``spacing_mm``.

    A packed chest is cut, turned and resized at random; an anatomy is painted anew, upright and in its size.
    """
    anatomy = chest if isinstance(chest, Anatomy) else chest.anatomy
    spacing = np.array(spacing_mm, np.float32) * coarse
    extent = np.array(size) * spacing
    middle = (_focus(random, anatomy) + extent * random.uniform(-0.3, 0.3, 3)).astype(np.float32)
    frame = Frame(middle) if isinstance(chest, Anatomy) else Frame.draw(random, middle)
    low = (-extent / 2).astype(np.float32)
    fine_z = float(spacing[2])
    scanner = Scanner.draw(random)
    if coarse > 1:
        scanner = scanner.averaged(coarse, fine_z)
    margin = scanner.slice_spacing + scanner.slice_thickness
    axes = [low[n] + spacing[n] * (np.arange(size[n], dtype=np.float32) + 0.5) for n in range(3)]
    fine = axes[2][0] + fine_z * np.arange(-np.ceil(margin / fine_z), size[2] + np.ceil(margin / fine_z) + 1)
    fine = fine.astype(np.float32)
    grid = open_grid(axes[0], axes[1], fine)
    if isinstance(chest, Anatomy):
        body = tuple(axis + np.float32(m) for axis, m in zip(grid, middle, strict=True))
        image, lung = tissue(anatomy, (body[0], body[1], body[2]), random)
    else:
        image, lung = chest.cut(frame, grid, coarse), on_grid(lambda *at: frame.lung_depth(anatomy, *at), grid, 3.0)
    specs = patch_nodules(random, coarse)
    placed = put_nodules(random, anatomy, frame, low + 3 * coarse, -low - 3 * coarse, specs)
    boxes = []
    for nodule in placed:
        corners = paint(image, grid, nodule, lung)
        if corners is not None:
            boxes.append(np.concatenate([(corner - low) / spacing for corner in corners]))
    read = acquire(image, fine, axes[2], scanner, random)
    found = np.array(boxes, np.float32).reshape(-1, 6)
    if random.random() < CUT_SHARE:
        read, found = _cut_off(random, read, found)
    kept, _ = clip_boxes(found, size)
    return Patch(image_xyz=np.ascontiguousarray(read[::-1, ::-1]), boxes=mirror(mirror(kept, 0, size[0]), 1, size[1]))


def _cut_off(random: np.random.Generator, image: Array, boxes: Array) -> tuple[Array, Array]:
    """The image's edge within the patch: what lies beyond is nothing, and most of a nodule must lie before it."""
    axis, share = int(random.integers(3)), random.uniform(0.15, 0.45)
    edge = int(share * image.shape[axis])
    beyond = [slice(None)] * 3
    cut = boxes.copy()
    if random.random() < 0.5:
        beyond[axis] = slice(0, edge)
        cut[:, axis] = np.maximum(boxes[:, axis], edge)
    else:
        beyond[axis] = slice(image.shape[axis] - edge, None)
        cut[:, axis + 3] = np.minimum(boxes[:, axis + 3], image.shape[axis] - edge)
    image[tuple(beyond)] = OUTSIDE_HU
    left = cut[:, axis + 3] - cut[:, axis]
    return image, cut[left > 0.5 * (boxes[:, axis + 3] - boxes[:, axis])]


def _focus(random: np.random.Generator, anatomy: Anatomy) -> Array:
    """Where a patch looks: in a lung, at a branching, or where false findings are most likely."""
    side = 1 if random.random() < 0.5 else -1
    (point,) = spread(random, anatomy, 1, side, 1.0)
    kind = random.random()
    if kind < 0.42:
        return np.asarray(point)
    if kind < 0.56:
        return _branching(random, anatomy, point)
    back = anatomy.skeleton.spine_y - 47
    places = (
        (side * 40, back + 4, anatomy.carina - 20),  # hilum
        (0, back, anatomy.carina),  # carina
        (side * 30, -anatomy.half_depth * 0.85, random.uniform(anatomy.base + 30, anatomy.carina + 60)),  # sternum
        (side * 45, -anatomy.half_depth * 0.5, anatomy.carina + 55),  # first rib
        (side * 50, anatomy.lean * 0.8, max(anatomy.top) - 15),  # apex
        (side * 60, random.uniform(-50, 40), anatomy.base + random.uniform(-10, 50)),  # diaphragm, gas below it
        (side * 25, anatomy.skeleton.spine_y - 10, random.uniform(anatomy.base + 20, anatomy.carina + 60)),  # spine
        (side * (anatomy.half_width - 8), random.uniform(-30, 50), random.uniform(anatomy.base, anatomy.carina + 40)),
    )
    return np.asarray(places[int(random.integers(len(places)))] + random.normal(size=3) * 10, np.float32)


def _branching(random: np.random.Generator, anatomy: Anatomy, near_mm: Array) -> Array:
    """The end of a vessel that may be taken for a nodule, among some near a point; the point where there is none."""
    tree = anatomy.arteries if random.random() < 0.5 else anatomy.veins
    thick = np.nonzero(tree.radius[:, 1] > 0.8)[0]
    if not len(thick):
        return near_mm
    nearest = thick[np.argsort(((tree.end[thick] - near_mm) ** 2).sum(axis=1))[:8]]
    return np.asarray(tree.end[random.choice(nearest)])


def volume(
    random: np.random.Generator,
    *,
    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 2.5),
    nodules: int = 4,
    diameters_mm: tuple[float, float] = (5.0, 22.0),
    name: str = "phantom",
) -> tuple[CTVolume, list[Nodule]]:
    """A whole chest with ``nodules`` nodules of these sizes and their truth; half a minute at the network's spacing."""
    low, high = np.log(diameters_mm)
    specs = [NoduleSpec(diameter_mm=float(np.exp(random.uniform(low, high))), kind=None) for _ in range(nodules)]
    scan = scan_with(random, specs, spacing_mm=spacing_mm, name=name)
    return scan.volume, list(scan.nodules)


def phantom(
    random: np.random.Generator, *, spacing_mm: tuple[float, float, float], name: str, nodules: int = 5
) -> AnnotatedScan:
    """A whole chest with nodules of all sizes, 3 to 80 mm, and kinds."""
    return scan_with(random, scan_nodules(random, nodules), spacing_mm=spacing_mm, name=name)


def scan_with(
    random: np.random.Generator, specs: Sequence[NoduleSpec], *, spacing_mm: tuple[float, float, float], name: str
) -> AnnotatedScan:
    """A whole chest with those of the nodules that find room, as a scanner takes it."""
    anatomy = draw(random)
    width = anatomy.half_width + anatomy.wall + anatomy.breast * 0.4 + 18
    front = anatomy.half_depth + anatomy.wall + anatomy.breast + 18
    back = anatomy.half_depth + anatomy.wall + anatomy.lean + 12
    low = np.array([-width, -front, anatomy.base - 50], np.float32)
    high = np.array([width, back, max(anatomy.top) + 14], np.float32)
    count = np.ceil((high - low) / spacing_mm).astype(int)
    scanner = Scanner.draw(random, spacing_mm=spacing_mm[2]).aligned()
    placed = put_nodules(random, anatomy, Frame(np.zeros(3, np.float32)), low, high, specs)
    axes = [low[n] + spacing_mm[n] * (np.arange(count[n], dtype=np.float32) + 0.5) for n in range(3)]
    voxels = np.empty(tuple(count[::-1]), np.int16)
    corners: dict[int, list[Array]] = {}
    margin = scanner.slice_spacing + scanner.slice_thickness
    step_z = min(max(FINE_Z_MM, spacing_mm[2] / 3), spacing_mm[2])
    for start in range(0, count[2], SLAB):
        heights = axes[2][start : start + SLAB]
        fine = np.arange(heights[0] - margin, heights[-1] + margin, step_z, dtype=np.float32)
        grid = open_grid(axes[0], axes[1], fine)
        image, lung = tissue(anatomy, grid, random)
        for index, nodule in enumerate(placed):
            found = paint(image, grid, nodule, lung)
            if found is not None:
                corners.setdefault(index, []).append(np.concatenate(found))
        read = acquire(image, fine, heights, scanner, random)
        voxels[start : start + SLAB] = np.rint(read).astype(np.int16).T
    truth, kinds = [], []
    for index, ends in corners.items():
        box = np.concatenate([np.min(ends, axis=0)[:3], np.max(ends, axis=0)[3:]])
        truth.append(
            Nodule(
                centre_lps_mm=tuple(((box[:3] + box[3:]) / 2).tolist()),
                mean_diameter_mm=diameter_mm(placed[index], anatomy.lung_depth),
                score=1.0,
                box_lps_mm=tuple(box.tolist()),
            )
        )
        kinds.append(placed[index].kind)
    origin = (float(axes[0][0]), float(axes[1][0]), float(axes[2][0]))
    made = CTVolume(voxels_zyx=voxels, spacing_mm=spacing_mm, origin_lps_mm=origin, name=name)
    return AnnotatedScan(name=name, volume=made, nodules=tuple(truth), kinds=tuple(kinds))
