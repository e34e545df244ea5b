"""A thorax of analytic shapes: the lungs, the structures around them, and the trees of vessels and airways inside them.

Frame: LPS mm with the origin in the centre of the chest (x to the left, y to the back, z to the head). Depths are
signed distances in mm, positive inside, and approximate away from the surface. Sizes are those of adults. The two sides
differ: each has its own width, dome, apex and hilum, the heart is on the left, and the spine may be curved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.medical.datasets.synth.fields import Array, Waves, capsule_depth, ellipsoid_depth, smooth_min
from apps.medical.datasets.synth.skeleton import Skeleton
from apps.medical.datasets.synth.vessels import Tubes, bronchi, concatenate, grow_tree, tube

HEIGHTS = np.linspace(0, 1, 8)
WIDTHS = np.array([1.0, 1.0, 0.985, 0.95, 0.89, 0.80, 0.67, 0.48])
DEPTHS = np.array([0.97, 1.0, 1.0, 0.98, 0.94, 0.87, 0.76, 0.58])
"""The half axes of the rib cage at eight heights from the base to the apex, relative to the largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fissure:
    """A sheet of pleura between lobes: z = height + slope * y in the lung on one ``side`` (-1 right, 1 left).

    ``back_mm`` is the y at which it ends towards the back.
    """

    side: int
    height: float
    slope: float
    back_mm: float
    thickness: float

    def depth(self, x: Array, y: Array, z: Array, bend_mm: Array) -> Array:
        """Depth inside the sheet in mm; ``bend_mm`` raises it along z."""
        distance = np.abs(z - self.height - self.slope * y - bend_mm) / np.float32(np.hypot(1, self.slope))
        depth = np.float32(self.thickness / 2) - distance
        return np.asarray(np.where((x * self.side > 0) & (y < self.back_mm), depth, -9), np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """An ellipsoid with the half axes ``size`` if ``end`` is None, otherwise a capsule with the radius ``size[0]``."""

    start: tuple[float, float, float]
    size: tuple[float, ...]
    end: tuple[float, float, float] | None = None

    def depth(self, x: Array, y: Array, z: Array) -> Array:
        if self.end is None:
            return ellipsoid_depth(x, y, z, self.start, self.size)
        return capsule_depth(x, y, z, self.start, self.end, self.size[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """One person's chest. Lengths are in mm and densities in HU; ``draw`` has their ranges.

    wall, breast      thickness of the chest wall and of the breasts
    base, top         z of the base, and of the apices of the right and left lung
    lean, tilt, bend  backward lean of the upper chest, axial tilt, and curvature of the midline
    dome, flat        heights of the right and left dome of the diaphragm, and how steeply the domes fall off
    midline           half width of the mediastinum between its parts
    carina            z of the carina
    """

    half_width: float
    half_depth: float
    wall: float
    breast: float
    base: float
    top: tuple[float, float]
    lean: float
    tilt: float
    bend: tuple[float, float, float]
    dome: tuple[float, float]
    flat: float
    midline: float
    carina: float
    skeleton: Skeleton
    heart: tuple[Body, ...]
    great_vessels: tuple[Body, ...]
    soft_tissues: tuple[Body, ...]
    fat: tuple[Body, ...]
    blood_hu: float
    lung_hu: float
    surface: Waves
    wall_texture: Waves
    fat_texture: Waves
    lung_texture: Waves
    emphysema: float
    haze: Waves
    haze_level: float
    dependent_hu: float
    apical_caps_mm: tuple[float, float]
    arteries: Tubes
    veins: Tubes
    airways: Tubes
    trachea: Tubes
    nodes: Tubes
    bands: Tubes
    fissures: tuple[Fissure, ...]
    gas: tuple[Body, ...]
    stool: Waves
    calcium: float
    motion_mm: float

    def midline_x(self, z: Array) -> Array:
        """The x of the midline at a height z, since a spine is rarely straight."""
        size, length, phase = self.bend
        return np.asarray(size * np.sin(z / length + phase), np.float32)

    def cavity_depth(self, x: Array, y: Array, z: Array) -> Array:
        """Depth inside the rib cage."""
        height = (z - self.base) / (max(self.top) - self.base)
        x = x - self.midline_x(z)
        y = y + self.tilt * x - self.lean * np.clip(height, 0, 1.2) ** 2
        a = self.half_width * np.interp(height, HEIGHTS, WIDTHS)
        b = self.half_depth * np.interp(height, HEIGHTS, DEPTHS)
        # Flattened at the front and hollow beside the spine, like a rib cage.
        ratio = (np.abs(x / a) ** 2.3 + np.abs(y / b) ** 2.5) ** np.float32(1 / 2.4)
        return np.asarray((1 - ratio) * np.minimum(a, b) * 1.05, np.float32)

    def mediastinum_depth(self, x: Array, y: Array, z: Array) -> Array:
        """Depth inside the mediastinum: heart, vessels, spine, hila and fat, with rounded joints."""
        upper = 26 / (1 + np.exp(-(z - self.carina - 35) / 10)) * np.exp(-(((y - 5) / 70) ** 2))
        depth = self.midline + upper - np.abs(x - self.midline_x(z))
        for body in (*self.heart, *self.great_vessels, *self.soft_tissues, *self.fat):
            depth = -smooth_min(-depth, -body.depth(x, y, z), 7.0)
        return np.asarray(depth, np.float32)

    def lung_depth(self, x: Array, y: Array, z: Array) -> Array:
        """Depth inside the nearer lung."""
        depth = smooth_min(self.cavity_depth(x, y, z), -self.mediastinum_depth(x, y, z), 5.0)
        right, left = self.top
        cap = 30 * (((np.abs(x) - 54) / 44) ** 2 + ((y - self.lean * 0.8) / 52) ** 2)
        apex = (np.where(x < 0, right, left) - z - cap) * 0.7
        scar = np.where(x < 0, *self.apical_caps_mm) * (1 + 0.5 * self.haze(x, y, z))
        apex = apex - np.clip(scar, 0, None) * np.exp(-(np.clip(apex, 0, None) / 12))
        depth = smooth_min(depth, np.asarray(apex, np.float32), 9.0)
        depth = smooth_min(depth, -self.skeleton.bulge(x, y, z, self), 3.0)
        depth = smooth_min(depth, self.above_diaphragm(x, y, z), 2.5)
        return np.asarray(depth + self.surface(x, y, z), np.float32)

    def above_diaphragm(self, x: Array, y: Array, z: Array) -> Array:
        """Height above the two domes of the diaphragm, which fall off towards the ribs and the back."""
        right, left = self.dome
        height = np.where(x < 0, right, left)
        centre = np.where(x < 0, -0.47, 0.5) * self.half_width
        fall = ((x - centre) / (self.half_width * 0.62)) ** 2 + ((y + 14) / (self.half_depth * 1.0)) ** 2
        dome = height * (1 - self.flat * fall)
        return np.asarray((z - self.base - np.maximum(dome, -60)) * 0.75, np.float32)


NO_TUBES = Tubes(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32))


def draw(random: np.random.Generator, *, targets: int = 1000) -> Anatomy:
    """Draws a chest at random, which takes about half a second. ``targets`` scales the number of vessels."""
    uniform = random.uniform
    half_width, half_depth = uniform(112, 148), uniform(74, 104)
    base, carina = uniform(-125, -95), uniform(5, 30)
    spine_y = half_depth - uniform(22, 30)
    contrast = random.random() < 0.5
    heart, great_vessels, soft_tissues, fat = _mediastinum(random, half_width, half_depth, base, carina, spine_y)
    skeleton = Skeleton.draw(random, half_width, half_depth, base, spine_y)
    top = carina + uniform(85, 105)
    shape: dict[str, Any] = {
        "half_width": half_width,
        "half_depth": half_depth,
        "wall": uniform(14, 42),
        "breast": uniform(0, 45) if random.random() < 0.6 else 0.0,
        "base": base,
        "top": (top + uniform(-8, 8), top + uniform(-8, 8)),
        "lean": uniform(10, 30),
        "tilt": random.normal() * 0.06,
        "bend": (random.normal() * 3, uniform(45, 90), uniform(0, 6)),
        "dome": (uniform(35, 62), uniform(22, 48)),
        "flat": uniform(0.7, 1.15),
        "midline": uniform(1.5, 6),
        "carina": carina,
        "skeleton": skeleton,
        "heart": heart,
        "great_vessels": great_vessels,
        "soft_tissues": soft_tissues,
        "fat": fat,
        "blood_hu": uniform(110, 320) if contrast else uniform(30, 55),
        "lung_hu": uniform(-915, -800),
        # Longer than nodules: a bump of their size would be an unlabelled nodule at the pleura.
        "surface": Waves.draw(random, deviation=uniform(0.5, 1.5), wavelengths_mm=(36, 120), count=14),
        "wall_texture": Waves.draw(random, deviation=1.0, wavelengths_mm=(6, 40), count=14),
        "fat_texture": Waves.draw(random, deviation=1.0, wavelengths_mm=(7, 40), count=14),
        "lung_texture": Waves.draw(random, deviation=uniform(6, 24), wavelengths_mm=(4, 50), count=20),
        "emphysema": uniform(10, 90) if random.random() < 0.4 else 0.0,
        # Longer than nodules: a cloud of their size would be an unlabelled ground-glass nodule.
        "haze": Waves.draw(random, deviation=1.0, wavelengths_mm=(60, 160), count=12),
        "haze_level": uniform(1.2, 3.5),
        "dependent_hu": uniform(60, 320) if random.random() < 0.5 else 0.0,
        "apical_caps_mm": tuple((uniform(1, 9) if random.random() < 0.4 else 0.0) for _ in range(2)),
        "fissures": _fissures(random),
        "gas": _gas(random, half_width, half_depth, base),
        "stool": Waves.draw(random, deviation=1.0, wavelengths_mm=(5, 18), count=14),
        "calcium": uniform(0, 1) if random.random() < 0.5 else 0.0,
        "motion_mm": uniform(0.8, 3.0) if random.random() < 0.4 else 0.0,
    }
    trees: dict[str, Any] = dict.fromkeys(("arteries", "veins", "airways", "trachea", "nodes", "bands"), NO_TUBES)
    without_trees = Anatomy(**shape, **trees)
    trees = _grow_trees(random, without_trees, targets)
    return Anatomy(**shape, **trees)


def _mediastinum(
    random: np.random.Generator, half_width: float, half_depth: float, base: float, carina: float, spine_y: float
) -> tuple[tuple[Body, ...], ...]:
    """Heart, great vessels, other soft tissue (starting with the spine), and fat."""
    uniform = random.uniform
    size = uniform(0.9, 1.2) * half_depth / 85
    x, y = uniform(26, 42), spine_y - 22 - uniform(46, 54) * size
    # The heart ends below the carina.
    z = min(base + uniform(48, 62), carina - 12 - 50 * size)
    back = spine_y - 47
    # Vessels, trachea and hila keep their distances from the spine, regardless of the depth of the chest.
    heart = (
        Body(start=(x + 14, y - 4, z), size=(48 * size, 42 * size, 46 * size)),
        Body(start=(x - 26, y + 4, z + 8), size=(36 * size, 38 * size, 46 * size)),
        Body(start=(x - 6, y + 24, z + 24), size=(40 * size, 24 * size, 28 * size)),
    )
    wide = uniform(0.85, 1.25)
    ax, ay = uniform(20, 32), spine_y - uniform(14, 24)
    arch = carina + uniform(22, 34)
    ascending = (-14 + uniform(-6, 4), back - 30 + uniform(-6, 6))
    great_vessels = (
        Body(start=(*ascending, carina - 48), end=(*ascending, arch - 8), size=(15 * wide,)),
        Body(start=(*ascending, arch - 8), end=(2, back - 8, arch + 6), size=(14 * wide,)),
        Body(start=(2, back - 8, arch + 6), end=(ax, ay, arch - 8), size=(13 * wide,)),
        Body(start=(ax, ay, arch - 8), end=(ax - 8, spine_y - 28, base - 60), size=(12 * wide,)),
        Body(start=(-26, back - 18, carina + 75), end=(-27, back - 16, carina - 40), size=(uniform(7, 10),)),
        Body(start=(20, back - 40, carina - 50), end=(12, back - 20, carina - 16), size=(uniform(12, 15),)),
        Body(start=(12, back - 20, carina - 18), end=(-40, back - 2, carina - 22), size=(uniform(8, 11),)),
        Body(start=(12, back - 20, carina - 14), end=(40, back + 4, carina - 8), size=(uniform(8, 11),)),
        Body(start=(-30, back - 12, carina + 95), end=(-26, back - 18, carina + 55), size=(uniform(6, 9),)),
        Body(start=(34, back - 12, carina + 95), end=(-26, back - 22, carina + 52), size=(uniform(5, 8),)),
        Body(start=(28, back, carina + 100), end=(8, back - 6, arch), size=(uniform(5, 8),)),
    )
    spine = uniform(17, 22)
    soft_tissues = (
        Body(start=(random.normal() * 2, spine_y, 220), end=(random.normal() * 2, spine_y, base - 120), size=(spine,)),
        Body(start=(0, spine_y + spine + 6, 220), end=(0, spine_y + spine + 6, base - 120), size=(spine * 1.05,)),
        Body(start=(6, spine_y - spine - 8, 220), end=(4, spine_y - spine - 8, base - 60), size=(uniform(6, 9),)),
        Body(start=(0, back - 6, carina + 140), end=(0, back + 2, carina), size=(uniform(12, 17),)),
        *(
            Body(
                start=(side * uniform(30, 40), back + uniform(-4, 10), carina - uniform(18, 30)),
                size=(uniform(9, 16), uniform(10, 15), uniform(18, 28)),
            )
            for side in (-1, 1)
        ),
    )
    # Fat pads in the angles between heart and diaphragm start at the heart, so that none floats in the lung.
    right = (x - 45 - uniform(5, 30), y - 18 * size, base + uniform(20, 40))
    left = (x + 45 + uniform(0, 25), y - 14 * size, base + uniform(15, 35))
    fat = (
        Body(start=(0, -half_depth * 0.75, carina + uniform(0, 30)), size=(uniform(8, 20), 24, uniform(35, 60))),
        Body(start=(x - 20, y, z), end=right, size=(uniform(8, 20),)),
        Body(start=(x + 10, y, z), end=left, size=(uniform(8, 22),)),
        Body(start=(x - 5, y - 10, z + 10), end=(0, -half_depth * 1.05, z + uniform(0, 25)), size=(uniform(5, 14),)),
    )
    return heart, great_vessels, soft_tissues, fat


def _gas(random: np.random.Generator, half_width: float, half_depth: float, base: float) -> tuple[Body, ...]:
    """Gas below the diaphragm: a stomach bubble on the left, and loops of colon at the front, mostly on the left."""
    uniform, bodies = random.uniform, []
    if random.random() < 0.75:
        centre = (half_width * uniform(0.3, 0.5), uniform(-30, 20), base - uniform(5, 22))
        bodies.append(Body(start=centre, size=(uniform(15, 38), uniform(15, 34), uniform(12, 30))))
    for _ in range(int(random.integers(0, 6))):
        side = 1 if random.random() < 0.65 else -1
        centre = (side * half_width * uniform(0.15, 0.75), uniform(-half_depth * 0.7, 0), base - uniform(12, 60))
        bodies.append(Body(start=centre, size=(uniform(9, 24), uniform(8, 20), uniform(9, 22))))
    return tuple(bodies)


def _grow_trees(random: np.random.Generator, without_trees: Anatomy, targets: int) -> dict[str, Any]:
    """Vessels, airways, lymph nodes and scars of both lungs; the trees start at the great vessels and the trachea."""
    back = without_trees.skeleton.spine_y - 47
    carina = np.array([0, back + 2, without_trees.carina], np.float32)
    arteries: list[Tubes] = []
    veins: list[Tubes] = []
    airways, nodes, bands = [], [], []
    density = random.uniform(0.7, 1.6)
    radius = random.uniform(7, 9.5)
    trachea = [tube((0, back - 6, without_trees.carina + 140), carina, radius)]
    for side in (-1, 1):
        hilum = np.array(
            [
                side * random.uniform(36, 46),
                back + random.uniform(-2, 10),
                without_trees.carina - random.uniform(14, 28),
            ]
        )
        for trees, offset in ((arteries, 4.0), (veins, -14.0)):
            points = random_lung_points(random, without_trees, int(targets * density), side)
            root = np.array([side * 12, back + (-18 if trees is arteries else 6), hilum[2] + offset / 2])
            entry = hilum + np.array([0, -offset / 2, offset])
            leaf, power = random.uniform(0.36, 0.62), random.uniform(2.1, 2.6)
            trees.append(
                grow_tree(random, without_trees.lung_depth, root, entry, points, leaf_radius_mm=leaf, exponent=power)
            )
        airways.append(bronchi(random, arteries[-1], random.uniform(1.0, 1.6)))
        main_bronchus_end = hilum + np.array([0, 5, 6])
        trachea.append(tube(carina, main_bronchus_end, random.uniform(4.5, 6.5)))
        trachea.append(tube(main_bronchus_end, hilum + np.array([side * 12, 8, -14]), random.uniform(3.0, 4.5)))
        trachea.append(tube(main_bronchus_end, hilum + np.array([side * 14, 2, 16]), random.uniform(2.4, 3.6)))
        nodes += _lymph_nodes(random, without_trees, hilum, int(random.integers(3, 9)))
        bands += _scar_bands(random, without_trees, side)
    return {
        "arteries": concatenate(arteries),
        "veins": concatenate(veins),
        "airways": concatenate(airways),
        "trachea": concatenate(trachea),
        "nodes": concatenate(nodes) if nodes else NO_TUBES,
        "bands": concatenate(bands) if bands else NO_TUBES,
    }


def random_lung_points(
    random: np.random.Generator, anatomy: Anatomy, count: int, side: int, min_mm: float = 2.0
) -> Array:
    """Random points (``count``, 3) at least ``min_mm`` deep in the right (-1) or left (1) lung."""
    accepted: list[Array] = []
    low = np.array([2, -anatomy.half_depth, anatomy.base - 60])
    high = np.array([anatomy.half_width + 5, anatomy.half_depth + anatomy.lean, max(anatomy.top)])
    while sum(map(len, accepted)) < count:
        points = random.uniform(low, high, size=(4 * count + 64, 3)).astype(np.float32)
        points *= np.array([side, 1, 1], np.float32)
        accepted.append(points[anatomy.lung_depth(*points.T) > min_mm])
    return np.concatenate(accepted)[:count]


def _lymph_nodes(random: np.random.Generator, anatomy: Anatomy, hilum: Array, count: int) -> list[Tubes]:
    """Hilar lymph nodes: short thick segments around the hilum.

    Those in aerated lung are left out, since they would be unlabelled nodules.
    """
    nodes = []
    for _ in range(count):
        start = hilum + random.normal(size=3) * (7, 11, 17)
        end, radius = start + random.normal(size=3) * 4, random.uniform(2.5, 7)
        (depth,) = anatomy.lung_depth(*((start + end) / 2).astype(np.float32)[:, None])
        if depth < -0.5 * radius:
            nodes.append(tube(start, end, radius))
    return nodes


def _fissures(random: np.random.Generator) -> tuple[Fissure, ...]:
    """The oblique fissures of both lungs and the horizontal fissure of the right lung."""
    oblique = [
        Fissure(
            side=side,
            height=random.uniform(-35, 0),
            slope=random.uniform(0.7, 1.3),
            back_mm=200.0,
            thickness=random.uniform(0.1, 0.9),
        )
        for side in (-1, 1)
    ]
    right = oblique[0]
    height = random.uniform(-15, 15)
    junction_y = (height - right.height) / right.slope
    horizontal = Fissure(
        side=-1, height=height, slope=random.uniform(-0.1, 0.1), back_mm=junction_y, thickness=random.uniform(0.1, 0.7)
    )
    return (*oblique, horizontal)


def _scar_bands(random: np.random.Generator, anatomy: Anatomy, side: int) -> list[Tubes]:
    """Scars and bands of atelectasis: thin straight opacities; most scars are at the apex."""
    bands = []
    for _ in range(int(random.integers(0, 5))):
        (point,) = random_lung_points(random, anatomy, 1, side, 1.0)
        direction = random.normal(size=3) * (1, 1, 0.4)
        direction *= random.uniform(10, 35) / np.linalg.norm(direction)
        bands.append(tube(point, point + direction, random.uniform(0.5, 1.3)))
    if max(anatomy.apical_caps_mm) > 0:
        for point in random_lung_points(random, anatomy, 40, side, 1.0):
            if point[2] > max(anatomy.top) - 35 and len(bands) < 12:
                direction = random.normal(size=3) * random.uniform(3, 8)
                bands.append(tube(point, point + direction, random.uniform(0.4, 1.1)))
    return bands
