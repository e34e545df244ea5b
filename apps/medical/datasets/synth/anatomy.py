"""A thorax as analytic shapes: lungs, chest wall with ribs and spine, mediastinum, diaphragm, vessels, airways.

Frame: LPS mm with the origin in the middle of the chest (x to the left, y to the back, z to the head). Depths are
signed distances in mm, approximate away from the surface, positive inside. Sizes are those of adults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.medical.datasets.synth.fields import Array, Waves
from apps.medical.datasets.synth.vessels import Tubes, bronchi, grow, join


@dataclass(frozen=True, kw_only=True, slots=True)
class Fissure:
    """A sheet of pleura between lobes: z = height + slope y in the lung of one ``side`` (-1 right, 1 left).

    ``back_mm`` is where it ends towards the back (y).
    """

    side: int
    height: float
    slope: float
    back_mm: float
    thickness: float

    def depth(self, x: Array, y: Array, z: Array, bend_mm: Array) -> Array:
        """Depth inside the sheet in mm, positive inside; ``bend_mm`` lifts it."""
        across = np.abs(z - self.height - self.slope * y - bend_mm) / np.float32(np.hypot(1, self.slope))
        depth = np.float32(self.thickness / 2) - across
        return np.asarray(np.where((x * self.side > 0) & (y < self.back_mm), depth, -9), np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """One person's chest. Lengths in mm, densities in HU; see ``draw`` for their ranges."""

    half_width: float
    half_depth: float
    wall: float
    apex_start: float
    apex_height: float
    base: float
    dome: tuple[float, float]
    midline: float
    heart: tuple[float, float, float, float, float, float]
    spine: tuple[float, float, float]
    aorta: tuple[float, float, float]
    carina: float
    rib_pitch: float
    rib_slope: float
    rib_phase: float
    blood_hu: float
    lung_hu: float
    surface: Waves
    wall_texture: Waves
    mediastinum_texture: Waves
    lung_texture: Waves
    haze: Waves
    haze_level: float
    arteries: Tubes
    veins: Tubes
    airways: Tubes
    trachea: Tubes
    great_vessels: Tubes
    nodes: Tubes
    bands: Tubes
    fissures: tuple[Fissure, ...]

    def cavity_depth(self, x: Array, y: Array, z: Array) -> Array:
        """Depth inside the rib cage."""
        taper = 1 - 0.12 * np.clip((z - 20) / 120, -1, 1.2) ** 2
        a, b = self.half_width * taper, self.half_depth * taper
        ratio = (np.abs(x / a) ** 2.4 + np.abs(y / b) ** 2.4) ** np.float32(1 / 2.4)
        return np.asarray((1 - ratio) * np.minimum(a, b) * 1.1, np.float32)

    def lung_depth(self, x: Array, y: Array, z: Array) -> Array:
        """Depth inside the nearer lung."""
        side = np.abs(x)
        rise = np.clip(z - self.apex_start, 0, None) / self.apex_height
        outward = (side - 0.42 * self.half_width) / (0.58 * self.half_width)
        apex = 62 * (1 - np.sqrt(rise**2 + 0.92 * outward**2 * (rise > 0) + ((y - 5) / 105) ** 2 * (rise > 0)))
        width = self.midline * (0.45 + 0.55 * np.exp(-(((y - 8) / 45) ** 2)))
        width = width + 10 * np.clip(z / 110, -0.3, 1) * (z > 0) * np.exp(-((y / 50) ** 2))
        depth = np.minimum(self.cavity_depth(x, y, z) - self.wall * 0.05, side - width)
        depth = np.minimum(depth, np.where(rise > 0, apex, 60))
        hx, hy, hz, ha, hb, hc = self.heart
        heart = np.sqrt(((x - hx) / ha) ** 2 + ((y - hy) / hb) ** 2 + ((z - hz) / hc) ** 2)
        depth = np.minimum(depth, (heart - 1) * min(ha, hb, hc))
        sx, sy, sr = self.spine
        depth = np.minimum(depth, np.sqrt((x - sx) ** 2 + ((y - sy) * 0.9) ** 2) - sr)
        ax, ay, ar = self.aorta
        aorta = np.sqrt((x - ax) ** 2 + (y - ay) ** 2) - ar
        depth = np.minimum(depth, np.where(z < self.carina + 25, aorta, aorta + 0.6 * (z - self.carina - 25)))
        depth = np.minimum(depth, self.above_diaphragm(x, y, z))
        return np.asarray(depth + self.surface(x, y, z), np.float32)

    def above_diaphragm(self, x: Array, y: Array, z: Array) -> Array:
        """Height above the diaphragm's two domes."""
        right, left = self.dome
        height = np.where(x < 0, right, left)
        centre = np.where(x < 0, -0.5, 0.5) * self.half_width
        dome = height * (1 - ((x - centre) / 85) ** 2 - ((y + 12) / 85) ** 2)
        return np.asarray((z - self.base - np.maximum(dome, -70)) * 0.8, np.float32)


def draw(random: np.random.Generator, *, targets: int = 750) -> Anatomy:
    """A chest whose sizes, densities and trees are drawn from ``random``; about 0.2 s."""
    half_width, half_depth = random.uniform(108, 145), random.uniform(72, 102)
    spine_y = half_depth - random.uniform(0, 8)
    contrast = random.random() < 0.5
    shape: dict[str, Any] = {
        "half_width": half_width,
        "half_depth": half_depth,
        "wall": random.uniform(18, 45),
        "apex_start": random.uniform(45, 75),
        "apex_height": random.uniform(45, 70),
        "base": random.uniform(-120, -85),
        "dome": (random.uniform(35, 60), random.uniform(20, 45)),
        "midline": random.uniform(26, 40),
        "heart": (
            *(random.uniform(18, 32), random.uniform(-35, -15), random.uniform(-65, -40)),
            *(random.uniform(48, 66), random.uniform(42, 55), random.uniform(45, 62)),
        ),
        "spine": (random.uniform(-4, 4), spine_y, random.uniform(22, 29)),
        "aorta": (random.uniform(20, 32), spine_y - random.uniform(20, 34), random.uniform(10, 16)),
        "carina": random.uniform(10, 35),
        "rib_pitch": random.uniform(21, 29),
        "rib_slope": random.uniform(0.25, 0.7),
        "rib_phase": random.uniform(0, 30),
        "blood_hu": random.uniform(110, 320) if contrast else random.uniform(30, 55),
        "lung_hu": random.uniform(-905, -800),
        # Wider than nodules: a bump of their size would be a nodule at the pleura that nobody labelled.
        "surface": Waves.draw(random, deviation=random.uniform(0.8, 2.2), wavelengths_mm=(36, 120), count=14),
        "wall_texture": Waves.draw(random, deviation=1.0, wavelengths_mm=(6, 40), count=14),
        "mediastinum_texture": Waves.draw(random, deviation=1.0, wavelengths_mm=(8, 40), count=14),
        "lung_texture": Waves.draw(random, deviation=random.uniform(6, 22), wavelengths_mm=(4, 50), count=18),
        # Coarser than nodules: a cloud of their size would be a ground-glass nodule that nobody labelled.
        "haze": Waves.draw(random, deviation=1.0, wavelengths_mm=(60, 160), count=12),
        "haze_level": random.uniform(1.2, 3.5),
        "fissures": _fissures(random),
    }
    nothing = Tubes(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32))
    trees: dict[str, Any] = dict.fromkeys(
        ("arteries", "veins", "airways", "trachea", "great_vessels", "nodes", "bands"), nothing
    )
    bare = Anatomy(**shape, **trees)
    carina = np.array([0, -8, bare.carina], np.float32)
    arteries: list[Tubes] = []
    veins: list[Tubes] = []
    airways, nodes, bands = [], [], []
    density = random.uniform(0.6, 1.5)
    trunk = [_tube(carina + (0, 2, 110), carina, random.uniform(7, 9.5))]
    for side in (-1, 1):
        middle = bare.carina - random.uniform(12, 30)
        hilum = np.array([side * (bare.midline + 4), random.uniform(-4, 12), middle], np.float32)
        for kind, offset in ((arteries, 0.0), (veins, -12.0)):
            goals = spread(random, bare, int(targets * density), side)
            start = hilum + np.array([-side * 16, 0, offset / 2], np.float32)
            at = hilum + np.array([0, offset / 2, offset], np.float32)
            leaf, power = random.uniform(0.36, 0.62), random.uniform(2.2, 2.8)
            kind.append(grow(random, bare.lung_depth, start, at, goals, leaf_radius_mm=leaf, exponent=power))
        airways.append(bronchi(random, arteries[-1], random.uniform(1.1, 1.7)))
        trunk.append(_tube(carina, hilum + np.array([0, 6, 6], np.float32), random.uniform(4.5, 6.5)))
        nodes += _lymph_nodes(random, bare, hilum, int(random.integers(3, 9)))
        bands += _bands(random, bare, side)
    great = [
        _tube((bare.aorta[0], bare.aorta[1], -150), (bare.aorta[0], bare.aorta[1], bare.carina + 25), bare.aorta[2]),
        _tube((bare.aorta[0], bare.aorta[1], bare.carina + 25), (-4, -32, bare.carina + 20), bare.aorta[2]),
        _tube((-4, -32, bare.carina + 20), (0, -25, bare.carina - 45), bare.aorta[2] * 1.1),
        _tube((-20, -22, bare.carina + 80), (-22, -20, bare.carina - 40), random.uniform(7, 10)),
        _tube((12, -30, bare.carina - 35), (8, -8, bare.carina - 12), random.uniform(11, 14)),
        _tube((8, -8, bare.carina - 14), (-30, 0, bare.carina - 20), random.uniform(8, 11)),
        _tube((8, -8, bare.carina - 10), (30, 2, bare.carina - 14), random.uniform(8, 11)),
    ]
    trees = {
        "arteries": join(arteries),
        "veins": join(veins),
        "airways": join(airways),
        "trachea": join(trunk),
        "great_vessels": join(great),
        "nodes": join(nodes) if nodes else nothing,
        "bands": join(bands) if bands else nothing,
    }
    return Anatomy(**shape, **trees)


def spread(random: np.random.Generator, anatomy: Anatomy, count: int, side: int, least_mm: float = 2.0) -> Array:
    """Points at least ``least_mm`` deep in the right (-1) or left (1) lung, shape (count, 3)."""
    found: list[Array] = []
    low = np.array([6, -anatomy.half_depth, anatomy.base - 60])
    high = np.array([anatomy.half_width, anatomy.half_depth, anatomy.apex_start + anatomy.apex_height])
    while sum(map(len, found)) < count:
        points = random.uniform(low, high, size=(6 * count, 3)).astype(np.float32) * np.array([side, 1, 1], np.float32)
        found.append(points[anatomy.lung_depth(*points.T) > least_mm])
    return np.concatenate(found)[:count]


def _tube(start: object, end: object, radius: float) -> Tubes:
    first, last = (np.asarray(point, np.float32)[None] for point in (start, end))
    return Tubes(first, last, np.full((1, 2), radius, np.float32))


def _lymph_nodes(random: np.random.Generator, anatomy: Anatomy, hilum: Array, count: int) -> list[Tubes]:
    """Hilar lymph nodes: short thick pieces close around the hilum.

    Those that would lie in aerated lung are left out: there such a piece is a nodule, and no label would say so.
    """
    found = []
    for _ in range(count):
        start = hilum + random.normal(size=3) * (7, 11, 17)
        end, radius = start + random.normal(size=3) * 4, random.uniform(2.5, 7)
        (depth,) = anatomy.lung_depth(*((start + end) / 2).astype(np.float32)[:, None])
        if depth < -0.5 * radius:
            found.append(_tube(start, end, radius))
    return found


def _fissures(random: np.random.Generator) -> tuple[Fissure, ...]:
    """The oblique fissures of both lungs and the right one's horizontal fissure."""
    found = [
        Fissure(
            side=side,
            height=random.uniform(-35, 0),
            slope=random.uniform(0.7, 1.3),
            back_mm=200.0,
            thickness=random.uniform(0.3, 1.1),
        )
        for side in (-1, 1)
    ]
    right = found[0]
    height = random.uniform(-15, 15)
    meeting = (height - right.height) / right.slope
    horizontal = Fissure(
        side=-1, height=height, slope=random.uniform(-0.1, 0.1), back_mm=meeting, thickness=random.uniform(0.3, 0.9)
    )
    return (*found, horizontal)


def _bands(random: np.random.Generator, anatomy: Anatomy, side: int) -> list[Tubes]:
    """Scars and strips of atelectasis: thin straight opacities, from the pleura inwards."""
    bands = []
    for _ in range(int(random.integers(0, 5))):
        (point,) = spread(random, anatomy, 1, side, 1.0)
        along = random.normal(size=3) * (1, 1, 0.4)
        along *= random.uniform(10, 35) / np.linalg.norm(along)
        bands.append(_tube(point, point + along, random.uniform(0.5, 1.3)))
    return bands
