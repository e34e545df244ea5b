"""Chest CT phantoms in HU with exact truth: an anatomy painted on a grid, nodules in it, and an imitated scanner.

Everything is a function of the given generator. Synthetic data: whatever is measured on it is to be called so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from apps.medical.datasets.patches import clip_boxes, mirror
from apps.medical.datasets.synth.anatomy import Anatomy, draw, spread
from apps.medical.datasets.synth.fields import Array, Coordinates, open_grid, soft
from apps.medical.datasets.synth.nodules import Placed, diameter_mm, paint, place
from apps.medical.types import CTVolume, Nodule

FINE_Z_MM = 1.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanner:
    """How an image is taken. Lengths in mm; ``noise_hu`` is the standard deviation in soft tissue."""

    slice_spacing: float
    slice_thickness: float
    blur: float
    noise_hu: float
    grain: float
    sharpen: float
    offset: float

    @classmethod
    def draw(cls, random: np.random.Generator) -> Scanner:
        """From thin and noisy to 5 mm and smooth."""
        kind = random.random()
        spacing = 1.25 if kind < 0.4 else float(random.uniform(1.25, 3.2) if kind < 0.65 else random.uniform(3.2, 6.0))
        if random.random() < 0.35 and kind >= 0.65:
            spacing = 5.0
        thickness = spacing * float(random.choice([1.0, 1.0, 1.0, 1.25, 0.6]))
        return cls(
            slice_spacing=spacing,
            slice_thickness=max(thickness, 1.0),
            blur=float(random.uniform(0.25, 0.75)),
            noise_hu=float(np.exp(random.uniform(np.log(5), np.log(45))) / np.sqrt(max(1.0, thickness / 2))),
            grain=float(random.uniform(0.4, 1.1)),
            sharpen=float(random.uniform(0.3, 1.2)) if random.random() < 0.35 else 0.0,
            offset=float(random.uniform(0, spacing)),
        )


def tissue(anatomy: Anatomy, grid: Coordinates, random: np.random.Generator) -> tuple[Array, Array]:
    """The chest without nodules: HU and the depth in the lung (mm), shape (X, Y, Z)."""
    x, y, z = grid
    lung = anatomy.lung_depth(x, y, z)
    cavity = anatomy.cavity_depth(x, y, z)
    texture = anatomy.wall_texture(x, y, z)
    image = _wall(anatomy, grid, cavity, texture)
    middle = soft(cavity, 3.0)
    fill = anatomy.mediastinum_texture(x, y, z)
    soft_tissue = np.where(fill > 0.5, -85, 38) + 6 * texture
    below = soft(-anatomy.above_diaphragm(x, y, z) - 2, 2.0)
    organ = 55 + 12 * texture + 0.25 * (anatomy.blood_hu - 40)
    soft_tissue = soft_tissue * (1 - below) + organ * below
    hx, hy, hz, ha, hb, hc = anatomy.heart
    heart = np.sqrt(((x - hx) / ha) ** 2 + ((y - hy) / hb) ** 2 + ((z - hz) / hc) ** 2)
    chambers = soft((0.9 - heart) * 45, 6.0)
    soft_tissue = soft_tissue * (1 - chambers) + (anatomy.blood_hu * 0.9 + 10 * texture) * chambers
    image = image * (1 - middle) + soft_tissue * middle
    image = _spine(anatomy, grid, image, texture)
    great = np.zeros(image.shape, np.float32)
    _paint(anatomy.great_vessels, great, grid, 1.5)
    image += great * (anatomy.blood_hu + 4 * texture - image)

    air = anatomy.lung_hu + anatomy.lung_texture(x, y, z) + 0.25 * y + np.zeros_like(image)
    clouds = anatomy.haze(x, y, z)
    air += 260 * np.clip(clouds - anatomy.haze_level, 0, 1.2)
    for fissure in anatomy.fissures:
        # Thinner than a voxel: it fills a part of one.
        air += min(1.0, fissure.thickness) * soft(fissure.depth(x, y, z, 3 * clouds), 1.0) * (0 - air)
    image += soft(lung, 1.0) * (air - image)
    rim = random.random() < 0.4
    _paint_into(image, grid, anatomy.nodes, 42.0, 1.5)
    vessels = np.zeros(image.shape, np.float32)
    for tree in (anatomy.arteries, anatomy.veins):
        _paint(tree, vessels, grid, 0.9)
    blood = min(anatomy.blood_hu, 180) if rim else anatomy.blood_hu
    image += vessels * soft(lung + 2.5, 2.0) * (blood - image)
    bands = np.zeros(image.shape, np.float32)
    _paint(anatomy.bands, bands, grid, 0.9)
    image += bands * soft(lung + 1, 2.0) * np.maximum(0 - image, 0)
    for tubes, wall in ((anatomy.airways, 0.7), (anatomy.trachea, 1.5)):
        near = tubes.near(*_extent(grid))
        if len(near.start):
            shell, lumen = np.zeros(image.shape, np.float32), np.zeros(image.shape, np.float32)
            near.paint(shell, grid, 0.9, wall)
            near.paint(lumen, grid, 0.9)
            image += shell * np.maximum(-20 - image, 0)
            image += lumen * (-985 - image)
            # Nothing grows inside an airway.
            lung = np.where(lumen > 0.3, -3, lung).astype(np.float32)
    return image.astype(np.float32), lung


def _wall(anatomy: Anatomy, grid: Coordinates, cavity: Array, texture: Array) -> Array:
    """Chest wall: pleura, ribs in muscle, fat, skin, and the air around."""
    x, y, z = grid
    outward = -cavity
    thickness = anatomy.wall * (0.75 + 0.35 * np.abs(x) / anatomy.half_width)
    shoulder = np.clip(z - anatomy.apex_start, 0, 80) * 0.7
    muscle = soft(0.5 * thickness + 3 * texture + shoulder * 0.5 - outward, 2.0)
    image = -100 + 9 * texture + muscle * (152 + 6 * texture)
    band = np.mod(z - anatomy.rib_slope * y - anatomy.rib_phase + 0.12 * np.abs(x), anatomy.rib_pitch)
    across = 6.2 - np.abs(band - anatomy.rib_pitch / 2)
    rib = np.minimum(across, 4.4 - np.abs(outward - 6.2)) + 0.5 * texture
    rib = np.where(np.abs(x) > 16, rib, -5)
    scapula = np.minimum(3.5 - np.abs(outward - 24 - 1.2 * texture), np.minimum(np.abs(x) - 55, y - 5))
    bone = np.maximum(rib, np.where(z > 10, scapula, -5))
    sternum = np.minimum(np.minimum(18 - np.abs(x), 6 - np.abs(y + anatomy.half_depth + 10)), 60 - z)
    bone = np.maximum(bone, sternum)
    image = _bone(image, bone, texture)
    skin = thickness + 14 + shoulder + 0.6 * texture - outward
    return np.asarray(image * soft(skin, 1.5) + -1000 * (1 - soft(skin, 1.5)), np.float32)


def _spine(anatomy: Anatomy, grid: Coordinates, image: Array, texture: Array) -> Array:
    x, y, z = grid
    sx, sy, radius = anatomy.spine
    body = radius * 0.78 - np.sqrt((x - sx) ** 2 + (y - sy - 4) ** 2)
    disc = np.abs(np.mod(z + 7, 24.0) - 12) < 2.2
    arch = np.minimum(7 - np.abs(y - sy - radius - 14 + 0.3 * np.abs(x)), 26 - np.abs(x))
    bone = np.maximum(np.where(disc, -3, body), np.where(disc, -3, arch))
    around = soft(np.asarray(radius + 6 - np.sqrt((x - sx) ** 2 + (y - sy - 8) ** 2), np.float32), 3.0)
    image = image + around * (50 + 6 * texture - image)
    return _bone(image, bone, texture)


def _bone(image: Array, depth: Array, texture: Array) -> Array:
    """Cortex of 2 mm around marrow."""
    density = 180 + 40 * texture + 520 * soft(2.0 - np.abs(depth - 0.6), 1.5)
    return np.asarray(image + soft(depth, 1.2) * (density - image), np.float32)


def _extent(grid: Coordinates) -> tuple[Array, Array]:
    return (
        np.array([axis.min() for axis in grid], np.float32),
        np.array([axis.max() for axis in grid], np.float32),
    )


def _paint(tubes: object, occupancy: Array, grid: Coordinates, edge_mm: float) -> None:
    near = tubes.near(*_extent(grid))  # type: ignore[attr-defined]
    if len(near.start):
        near.paint(occupancy, grid, edge_mm)


def _paint_into(image: Array, grid: Coordinates, tubes: object, density: float, edge_mm: float) -> None:
    filled = np.zeros(image.shape, np.float32)
    _paint(tubes, filled, grid, edge_mm)
    image += filled * (density - image)


def acquire(image: Array, z_mm: Array, out_z_mm: Array, scanner: Scanner, random: np.random.Generator) -> Array:
    """Takes slices of the scanner's thickness out of a finely spaced image, and reads them at heights ``out_z_mm``.

    Where the scanner's spacing is that of the output, ``out_z_mm`` are the slices. Noise belongs to the slices.
    """
    first = out_z_mm[0] - scanner.offset
    count = int(np.ceil((out_z_mm[-1] - first) / scanner.slice_spacing)) + 1
    slices = first + scanner.slice_spacing * np.arange(count)
    distance = np.abs(z_mm[:, None] - slices[None, :])
    half_fine = (z_mm[1] - z_mm[0]) / 2
    weight = np.clip((scanner.slice_thickness / 2 + half_fine - distance) / (2 * half_fine), 0, 1)
    weight += 1e-6 * np.exp(-distance)
    weight /= weight.sum(axis=0)
    taken = image @ weight.astype(np.float32)
    if scanner.blur > 0:
        taken = ndimage.gaussian_filter(taken, (scanner.blur, scanner.blur, 0), truncate=3)
    if scanner.noise_hu > 0:
        noise = random.standard_normal(taken.shape, np.float32)
        noise = ndimage.gaussian_filter(noise, (scanner.grain, scanner.grain, 0), truncate=3)
        taken += noise * np.float32(scanner.noise_hu / noise.std())
    if scanner.sharpen > 0:
        taken += scanner.sharpen * (taken - ndimage.gaussian_filter(taken, (1.0, 1.0, 0), truncate=3))
    position = np.clip((out_z_mm - slices[0]) / scanner.slice_spacing, 0, count - 1)
    lower = np.minimum(position.astype(int), max(count - 2, 0))
    part = (position - lower).astype(np.float32)
    upper = np.minimum(lower + 1, count - 1)
    read = taken[..., lower] * (1 - part) + taken[..., upper] * part
    return np.asarray(np.clip(read, -1024, 3071))


def put_nodules(
    random: np.random.Generator,
    anatomy: Anatomy,
    low_mm: Array,
    high_mm: Array,
    count: int,
    diameters_mm: tuple[float, float] | None = None,
    *,
    resized: float = 1.0,
    subsolid: float = 0.0,
) -> list[Placed]:
    """Up to ``count`` nodules with centres in the box, apart from each other: free, at the pleura, or at a vessel.

    The share ``resized`` of them is evenly spread over ``diameters_mm`` on a logarithmic scale, the rest has the
    sizes of the outlines. The share ``subsolid`` is drawn from part-solid and ground-glass outlines alone.
    """
    placed: list[Placed] = []
    tries = np.asarray(random.uniform(low_mm, high_mm, size=(400, 3)), np.float32)
    depth = anatomy.lung_depth(*tries.T)
    for _ in range(count):
        even = diameters_mm if random.random() < resized else None
        diameter = float(np.exp(random.uniform(*np.log(even)))) if even else None
        kind = random.random()
        nodule = place(random, np.zeros(3, np.float32), diameter, subsolid=random.random() < subsolid)
        radius = nodule.shape.diameter_mm / 2 / np.cbrt(np.abs(np.linalg.det(nodule.turn)))
        if kind < 0.5:
            fitting = depth > radius * 0.9 + 1
        elif kind < 0.75:
            fitting = (depth > 0.15 * radius) & (depth < 0.8 * radius + 0.5)
        else:
            fitting = depth > 2
        for index in random.permutation(np.nonzero(fitting)[0])[:12]:
            centre = tries[index]
            if kind >= 0.75:
                ends = anatomy.arteries.end[np.abs(anatomy.arteries.end - centre).max(axis=1) < 25]
                if len(ends):
                    nearest = ends[np.argmin(((ends - centre) ** 2).sum(axis=1))]
                    shift = random.normal(size=3)
                    moved = nearest + shift * (0.8 * radius / np.linalg.norm(shift))
                    if anatomy.lung_depth(*np.asarray(moved, np.float32)[:, None])[0] > 0.5 * radius:
                        centre = np.asarray(moved, np.float32)
            apart = all(
                np.linalg.norm(centre - other.centre_mm) > nodule.radius_mm + other.radius_mm + 4 for other in placed
            )
            if apart:
                # Placed already carries its shape and turn; only the centre is new.
                placed.append(_moved(nodule, centre))
                break
    return placed


def _moved(nodule: Placed, centre: Array) -> Placed:
    from dataclasses import replace

    return replace(nodule, centre_mm=np.asarray(centre, np.float32))


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
    anatomy: Anatomy,
    size: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
) -> Patch:
    """A random piece of ``anatomy`` with 0 to 3 nodules in it: in a lung, at a hilum, or where a vessel branches."""
    extent = np.array(size) * spacing_mm
    side = 1 if random.random() < 0.5 else -1
    place_kind = random.random()
    (focus,) = spread(random, anatomy, 1, side, 1.0)
    if place_kind > 0.8:
        # The hilum, where vessels are thick and false findings most likely.
        focus = np.array([side * (anatomy.midline + 8), 2, anatomy.carina - 18]) + random.normal(size=3) * 14
    elif place_kind > 0.72:
        focus = focus + random.normal(size=3) * 30
    elif place_kind > 0.5:
        focus = _branching(random, anatomy, focus)
    low = (focus - extent * random.uniform(0.2, 0.8, 3)).astype(np.float32)
    high = low + extent.astype(np.float32)
    count = int(random.choice([0, 1, 2, 3], p=[0.2, 0.4, 0.27, 0.13]))
    nodules = put_nodules(random, anatomy, low + 4, high - 4, count, (5.0, 26.0), resized=0.4, subsolid=0.2)
    scanner = Scanner.draw(random)
    axes = [low[n] + spacing_mm[n] * (np.arange(size[n], dtype=np.float32) + 0.5) for n in range(3)]
    margin = scanner.slice_spacing + scanner.slice_thickness
    fine = np.arange(low[2] - margin, high[2] + margin, FINE_Z_MM, dtype=np.float32)
    grid = open_grid(axes[0], axes[1], fine)
    image, lung = tissue(anatomy, grid, random)
    boxes = []
    for nodule in nodules:
        corners = paint(image, grid, nodule, lung)
        if corners is not None:
            boxes.append(np.concatenate([(corner - low) / spacing_mm for corner in corners]))
    read = acquire(image, fine, axes[2], scanner, random)
    kept, _ = clip_boxes(np.array(boxes, np.float32).reshape(-1, 6), size)
    return Patch(image_xyz=np.ascontiguousarray(read[::-1, ::-1]), boxes=mirror(mirror(kept, 0, size[0]), 1, size[1]))


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
    """A whole chest with ``nodules`` nodules and their truth; some seconds."""
    anatomy = draw(random)
    width = anatomy.half_width + anatomy.wall + 16
    depth = anatomy.half_depth + anatomy.wall + 16
    bottom = anatomy.base - 45
    top = anatomy.apex_start + anatomy.apex_height + 12
    low = np.array([-width, -depth, bottom], np.float32)
    high = np.array([width, depth, top], np.float32)
    count = np.ceil((high - low) / spacing_mm).astype(int)
    scanner = Scanner(
        slice_spacing=spacing_mm[2],
        slice_thickness=spacing_mm[2],
        blur=0.5,
        noise_hu=float(random.uniform(8, 25)),
        grain=0.7,
        sharpen=0.0,
        offset=0.0,
    )
    placed = put_nodules(random, anatomy, low, high, nodules, diameters_mm)
    axes = [low[n] + spacing_mm[n] * (np.arange(count[n], dtype=np.float32) + 0.5) for n in range(3)]
    voxels = np.empty(tuple(count[::-1]), np.int16)
    corners: dict[int, list[Array]] = {}
    slab = 32
    for start in range(0, count[2], slab):
        heights = axes[2][start : start + slab]
        fine = np.arange(heights[0] - 2 * spacing_mm[2], heights[-1] + 2 * spacing_mm[2], FINE_Z_MM, dtype=np.float32)
        grid = open_grid(axes[0], axes[1], fine)
        image, lung = tissue(anatomy, grid, random)
        for index, nodule in enumerate(placed):
            found = paint(image, grid, nodule, lung)
            if found is not None:
                corners.setdefault(index, []).append(np.concatenate(found))
        read = acquire(image, fine, heights, scanner, random)
        voxels[start : start + slab] = np.rint(read).astype(np.int16).T
    truth = []
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
    origin = (float(axes[0][0]), float(axes[1][0]), float(axes[2][0]))
    return CTVolume(voxels_zyx=voxels, spacing_mm=spacing_mm, origin_lps_mm=origin, name=name), truth
