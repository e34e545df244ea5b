"""Chest CT phantoms in HU with exact ground truth: an anatomy with nodules, and a simulated scanner.

Generates patches and whole scans. Everything is a function of the given generator. Results that are measured on these
data must be reported as synthetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apps.medical.datasets.patches import clip_boxes, mirror
from apps.medical.datasets.synth.anatomy import Anatomy, draw, random_lung_points
from apps.medical.datasets.synth.fields import Array, interpolate_on_grid, open_grid
from apps.medical.datasets.synth.frame import Frame
from apps.medical.datasets.synth.nodules import measured_diameter_mm, paint_nodule
from apps.medical.datasets.synth.placing import NoduleSpec, draw_patch_nodules, draw_scan_nodules, place_nodules
from apps.medical.datasets.synth.scanner import Scanner, acquire
from apps.medical.datasets.synth.tissue import render_chest
from apps.medical.types import AnnotatedScan, CTVolume, Nodule

if TYPE_CHECKING:
    from apps.medical.datasets.synth.chests import PackedChest

FINE_Z_MM = 1.25
SLAB_SLICES = 32

EDGE_FRACTION = 0.08
"""The fraction of the training patches that extend beyond the edge of the image."""

OUTSIDE_HU = -1024.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """A patch of a phantom on the network's grid.

    image_xyz   float32 HU; indices increase towards the patient's right, front and head (RAS)
    boxes       (N, 6) in voxels: lower corner x, y, z, then upper; voxel i covers [i, i + 1]
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
    """A random patch of a chest with up to 3 nodules, at ``coarse`` times ``spacing_mm``.

    A packed chest is cropped, rotated and scaled at random. An anatomy is rendered upright and in its own size.
    """
    anatomy = chest if isinstance(chest, Anatomy) else chest.anatomy
    spacing = np.array(spacing_mm, np.float32) * coarse
    extent = np.array(size) * spacing
    centre = (_draw_centre(random, anatomy) + extent * random.uniform(-0.3, 0.3, 3)).astype(np.float32)
    frame = Frame(centre) if isinstance(chest, Anatomy) else Frame.draw(random, centre)
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
        shifted = tuple(axis + np.float32(offset) for axis, offset in zip(grid, centre, strict=True))
        image, lung = render_chest(anatomy, (shifted[0], shifted[1], shifted[2]), random)
    else:
        image, lung = (
            chest.resample(frame, grid, coarse),
            interpolate_on_grid(lambda *at: frame.lung_depth(anatomy, *at), grid, 3.0),
        )
    specs = draw_patch_nodules(random, coarse)
    placed = place_nodules(random, anatomy, frame, low + 3 * coarse, -low - 3 * coarse, specs)
    boxes = []
    for nodule in placed:
        corners = paint_nodule(image, grid, nodule, lung)
        if corners is not None:
            boxes.append(np.concatenate([(corner - low) / spacing for corner in corners]))
    acquired = acquire(image, fine, axes[2], scanner, random)
    box_array = np.array(boxes, np.float32).reshape(-1, 6)
    if random.random() < EDGE_FRACTION:
        acquired, box_array = _add_edge(random, acquired, box_array)
    clipped, _ = clip_boxes(box_array, size)
    return Patch(
        image_xyz=np.ascontiguousarray(acquired[::-1, ::-1]),
        boxes=mirror(mirror(clipped, 0, size[0]), 1, size[1]),
    )


def _add_edge(random: np.random.Generator, image: Array, boxes: Array) -> tuple[Array, Array]:
    """Simulates an edge of the image inside the patch: fills one side, clips the boxes, and drops those cut by half."""
    axis, fraction = int(random.integers(3)), random.uniform(0.15, 0.45)
    edge = int(fraction * image.shape[axis])
    outside = [slice(None)] * 3
    clipped = boxes.copy()
    if random.random() < 0.5:
        outside[axis] = slice(0, edge)
        clipped[:, axis] = np.maximum(boxes[:, axis], edge)
    else:
        outside[axis] = slice(image.shape[axis] - edge, None)
        clipped[:, axis + 3] = np.minimum(boxes[:, axis + 3], image.shape[axis] - edge)
    image[tuple(outside)] = OUTSIDE_HU
    clipped_length = clipped[:, axis + 3] - clipped[:, axis]
    return image, clipped[clipped_length > 0.5 * (boxes[:, axis + 3] - boxes[:, axis])]


def _draw_centre(random: np.random.Generator, anatomy: Anatomy) -> Array:
    """Draws the centre of a patch: anywhere in a lung, at a vessel end, or where false positives are most likely."""
    side = 1 if random.random() < 0.5 else -1
    (point,) = random_lung_points(random, anatomy, 1, side, 1.0)
    kind = random.random()
    if kind < 0.42:
        return np.asarray(point)
    if kind < 0.56:
        return _vessel_end(random, anatomy, point)
    back = anatomy.skeleton.spine_y - 47
    positions = (
        (side * 40, back + 4, anatomy.carina - 20),  # hilum
        (0, back, anatomy.carina),  # carina
        (side * 30, -anatomy.half_depth * 0.85, random.uniform(anatomy.base + 30, anatomy.carina + 60)),  # sternum
        (side * 45, -anatomy.half_depth * 0.5, anatomy.carina + 55),  # first rib
        (side * 50, anatomy.lean * 0.8, max(anatomy.top) - 15),  # apex
        (side * 60, random.uniform(-50, 40), anatomy.base + random.uniform(-10, 50)),  # diaphragm, gas below it
        (side * 25, anatomy.skeleton.spine_y - 10, random.uniform(anatomy.base + 20, anatomy.carina + 60)),  # spine
        (side * (anatomy.half_width - 8), random.uniform(-30, 50), random.uniform(anatomy.base, anatomy.carina + 40)),
    )
    return np.asarray(positions[int(random.integers(len(positions)))] + random.normal(size=3) * 10, np.float32)


def _vessel_end(random: np.random.Generator, anatomy: Anatomy, near_mm: Array) -> Array:
    """The end of a random vessel near a point, which may look like a nodule; the point if there is no vessel."""
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
    """A whole chest with ``nodules`` nodules of these diameters, and their ground truth.

    Takes half a minute at the network's spacing.
    """
    low, high = np.log(diameters_mm)
    specs = [NoduleSpec(diameter_mm=float(np.exp(random.uniform(low, high))), kind=None) for _ in range(nodules)]
    scan = simulate_scan(random, specs, spacing_mm=spacing_mm, name=name)
    return scan.volume, list(scan.nodules)


def phantom(
    random: np.random.Generator, *, spacing_mm: tuple[float, float, float], name: str, nodules: int = 5
) -> AnnotatedScan:
    """A whole chest with nodules of all sizes, 3 to 80 mm, and kinds."""
    return simulate_scan(random, draw_scan_nodules(random, nodules), spacing_mm=spacing_mm, name=name)


def simulate_scan(
    random: np.random.Generator, specs: Sequence[NoduleSpec], *, spacing_mm: tuple[float, float, float], name: str
) -> AnnotatedScan:
    """A simulated scan of a whole chest with the nodules in ``specs``, except those that find no room."""
    anatomy = draw(random)
    width = anatomy.half_width + anatomy.wall + anatomy.breast * 0.4 + 18
    front = anatomy.half_depth + anatomy.wall + anatomy.breast + 18
    back = anatomy.half_depth + anatomy.wall + anatomy.lean + 12
    low = np.array([-width, -front, anatomy.base - 50], np.float32)
    high = np.array([width, back, max(anatomy.top) + 14], np.float32)
    count = np.ceil((high - low) / spacing_mm).astype(int)
    scanner = Scanner.draw(random, spacing_mm=spacing_mm[2]).aligned()
    placed = place_nodules(random, anatomy, Frame(np.zeros(3, np.float32)), low, high, specs)
    axes = [low[n] + spacing_mm[n] * (np.arange(count[n], dtype=np.float32) + 0.5) for n in range(3)]
    voxels = np.empty(tuple(count[::-1]), np.int16)
    corners: dict[int, list[Array]] = {}
    margin = scanner.slice_spacing + scanner.slice_thickness
    step_z = min(max(FINE_Z_MM, spacing_mm[2] / 3), spacing_mm[2])
    for start in range(0, count[2], SLAB_SLICES):
        heights = axes[2][start : start + SLAB_SLICES]
        fine = np.arange(heights[0] - margin, heights[-1] + margin, step_z, dtype=np.float32)
        grid = open_grid(axes[0], axes[1], fine)
        image, lung = render_chest(anatomy, grid, random)
        for index, nodule in enumerate(placed):
            slab_corners = paint_nodule(image, grid, nodule, lung)
            if slab_corners is not None:
                corners.setdefault(index, []).append(np.concatenate(slab_corners))
        acquired = acquire(image, fine, heights, scanner, random)
        voxels[start : start + SLAB_SLICES] = np.rint(acquired).astype(np.int16).T
    truth, kinds = [], []
    for index, ends in corners.items():
        box = np.concatenate([np.min(ends, axis=0)[:3], np.max(ends, axis=0)[3:]])
        truth.append(
            Nodule(
                centre_lps_mm=tuple(((box[:3] + box[3:]) / 2).tolist()),
                mean_diameter_mm=measured_diameter_mm(placed[index], anatomy.lung_depth),
                score=1.0,
                box_lps_mm=tuple(box.tolist()),
            )
        )
        kinds.append(placed[index].kind)
    origin = (float(axes[0][0]), float(axes[1][0]), float(axes[2][0]))
    scan_volume = CTVolume(voxels_zyx=voxels, spacing_mm=spacing_mm, origin_lps_mm=origin, name=name)
    return AnnotatedScan(name=name, volume=scan_volume, nodules=tuple(truth), kinds=tuple(kinds))
