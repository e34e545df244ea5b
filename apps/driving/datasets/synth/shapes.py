"""What stands in a street: vehicles, people, and things that are neither, built from convex parts.

Shapes stand at the origin of their own frame: x forward, y left, z up from the ground, metres; ``place`` turns and
moves them. Vehicles and people fill their box exactly. Size statistics are those published for KITTI's training labels
(means and spreads of length, width, height; Geiger et al. 2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from apps.driving.datasets.synth.casting import Polytope, Quadric, Solid

# Index into MATERIALS. Reflectivity at 905 nm; share of rays that give no return; colour (RGB).
MATERIALS = (
    # name, reflectivity, loss, colour
    ("asphalt", 0.28, 0.01, (98, 98, 100)),
    ("verge", 0.34, 0.02, (120, 124, 96)),
    ("rubber", 0.06, 0.25, (28, 28, 30)),
    ("glass", 0.08, 0.55, (52, 62, 72)),
    ("wall", 0.38, 0.01, (170, 158, 140)),
    ("brick", 0.33, 0.01, (142, 98, 84)),
    ("bark", 0.30, 0.02, (92, 76, 62)),
    ("leaves", 0.40, 0.06, (74, 98, 52)),
    ("metal", 0.35, 0.02, (132, 134, 136)),
    ("skin", 0.40, 0.02, (196, 150, 124)),
    ("cloth dark", 0.18, 0.04, (48, 50, 62)),
    ("cloth bright", 0.42, 0.02, (150, 92, 88)),
    ("paint white", 0.45, 0.02, (222, 222, 220)),
    ("paint silver", 0.34, 0.04, (164, 166, 170)),
    ("paint black", 0.07, 0.30, (30, 31, 34)),
    ("paint red", 0.30, 0.05, (142, 34, 32)),
    ("paint blue", 0.20, 0.08, (38, 58, 108)),
    ("paint grey", 0.22, 0.07, (96, 98, 102)),
    ("plate", 0.95, 0.0, (230, 226, 190)),
    ("lamp red", 0.8, 0.0, (190, 20, 24)),
    ("lamp", 0.6, 0.05, (240, 240, 232)),
)
INDEX = {row[0]: number for number, row in enumerate(MATERIALS)}
PAINTS = [
    INDEX[name] for name in ("paint white", "paint silver", "paint black", "paint red", "paint blue", "paint grey")
]
PAINT_SHARES = (0.2, 0.25, 0.2, 0.08, 0.12, 0.15)

# class: (mean, spread) of length, width, height.
SIZES = {
    "car": ((3.88, 0.43), (1.63, 0.10), (1.53, 0.13)),
    "van": ((5.06, 0.5), (1.90, 0.14), (2.20, 0.25)),
    "truck": ((9.5, 2.2), (2.55, 0.15), (3.2, 0.35)),
    "pedestrian": ((0.84, 0.2), (0.66, 0.12), (1.76, 0.11)),
    "cyclist": ((1.76, 0.14), (0.60, 0.10), (1.74, 0.09)),
}
MARGIN_M = 0.025
Part = Polytope | Quadric


@dataclass(frozen=True, slots=True)
class Shape:
    """Parts in the shape's own frame, and its size (length, width, height) in metres; ``name`` is the class or None."""

    parts: Sequence[Part]
    size: tuple[float, float, float]
    name: str | None = None


def size_of(name: str, generator: np.random.Generator) -> tuple[float, float, float]:
    """A size drawn for a class, within 2.2 spreads of its mean; length and height of a car go together a little."""
    shared = generator.normal() * 0.3
    values = [
        mean + spread * float(np.clip(generator.normal() * 0.95 + shared, -2.2, 2.2)) for mean, spread in SIZES[name]
    ]
    return values[0], values[1], values[2]


def _within(size: tuple[float, float, float]) -> tuple[float, float, float]:
    # People draw boxes around noisy points, so labels stand off from the surface by about the noise of the range.
    return size[0] - 2 * MARGIN_M, size[1] - 2 * MARGIN_M, size[2] - MARGIN_M


def prism(
    profile: Sequence[tuple[float, float]],
    materials: Sequence[int],
    half_width: float,
    side: int,
    taper: float = 0.0,
    pivot: float = 0.0,
    porosity: float = 0.0,
) -> Polytope:
    """A convex profile in (x, z), clockwise seen from +y reversed, drawn out along y to ``half_width`` on both sides.

    ``materials`` name the faces of the profile's edges, ``side`` both sides. ``taper`` is how much narrower each side
    gets per metre above ``pivot``.
    """
    points = np.asarray(profile, np.float64)
    edges = np.roll(points, -1, axis=0) - points
    outward = np.stack([edges[:, 1], np.zeros(len(edges)), -edges[:, 0]], axis=1)
    centre = points.mean(axis=0)
    offsets = (outward[:, [0, 2]] * points).sum(1)
    flip = np.sign(offsets - outward[:, [0, 2]] @ centre)
    outward, offsets = outward * flip[:, None], offsets * flip
    length = np.linalg.norm(outward, axis=1)
    sides = np.array([[0, 1, taper], [0, -1, taper]])
    reach = half_width + taper * pivot
    scale = np.hypot(1, taper)
    return Polytope(
        np.concatenate([outward / length[:, None], sides / scale]).astype(np.float32),
        np.concatenate([offsets / length, [reach / scale] * 2]).astype(np.float32),
        np.array([*materials, side, side], np.int16),
        porosity,
    )


def block(low: Sequence[float], high: Sequence[float], material: int, porosity: float = 0.0) -> Polytope:
    """An axis-aligned box between two corners."""
    eye = np.eye(3, dtype=np.float32)
    return Polytope(
        np.concatenate([eye, -eye]),
        np.concatenate([np.asarray(high, np.float32), -np.asarray(low, np.float32)]),
        np.full(6, material, np.int16),
        porosity,
    )


def ellipsoid(centre: Sequence[float], radii: Sequence[float], material: int, porosity: float = 0.0) -> Quadric:
    """An ellipsoid with its axes along those of the frame."""
    return Quadric(
        np.diag(1 / np.asarray(radii, np.float32)), np.asarray(centre, np.float32), material, False, porosity
    )


def cylinder(
    start: Sequence[float], end: Sequence[float], radius: float, material: int, porosity: float = 0.0
) -> Quadric:
    """A cylinder between two points."""
    a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
    half = np.linalg.norm(b - a) / 2
    axis = (b - a) / (2 * half)
    across = np.cross(axis, [1.0, 0, 0] if abs(axis[0]) < 0.8 else [0, 1.0, 0])
    across /= np.linalg.norm(across)
    matrix = np.stack([across / radius, np.cross(axis, across) / radius, axis / half])
    return Quadric(matrix.astype(np.float32), ((a + b) / 2).astype(np.float32), material, True, porosity)


def place(shape: Shape, x: float, y: float, z: float, yaw: float, instance: int) -> Solid:
    """The shape standing at (x, y, z) of the LiDAR frame, turned by ``yaw``."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], np.float32)
    move = np.array([x, y, z], np.float32)
    parts: list[Part] = []
    for part in shape.parts:
        if isinstance(part, Polytope):
            normals: NDArray[np.float32] = part.normals @ turn.T
            offsets: NDArray[np.float32] = part.offsets + normals @ move
            parts.append(replace(part, normals=normals, offsets=offsets))
        else:
            parts.append(replace(part, matrix=part.matrix @ turn.T, centre=turn @ part.centre + move))
    length, width, height = shape.size
    corners = np.array([[i * length / 2, j * width / 2, k * height] for i in (-1, 1) for j in (-1, 1) for k in (0, 1)])
    return Solid(tuple(parts), (corners.astype(np.float32) @ turn.T + move), instance, shape.name is not None)


def vehicle(name: str, generator: np.random.Generator) -> Shape:
    """A car (saloon, hatchback or SUV), a van or a truck of its own size, paint and lines."""
    size = size_of(name, generator)
    paint = int(generator.choice(PAINTS, p=PAINT_SHARES))
    return replace({"car": _car, "van": _van, "truck": _truck}[name](_within(size), paint, generator), size=size)


def _wheels(size: tuple[float, float, float], radius: float, places: Sequence[float]) -> list[Part]:
    length, width, _ = size
    tyre = INDEX["rubber"]
    return [
        cylinder(
            (at * length, side * (width / 2 - 0.22), radius),
            (at * length, side * (width / 2 - 0.01), radius),
            radius,
            tyre,
        )
        for at in places
        for side in (-1, 1)
    ]


def _car(size: tuple[float, float, float], paint: int, generator: np.random.Generator) -> Shape:
    length, width, height = size
    front, rear = length / 2, -length / 2
    kind = generator.choice(["saloon", "hatchback", "estate"], p=[0.3, 0.45, 0.25])
    belt = height * generator.uniform(0.56, 0.63)
    hood = height * generator.uniform(0.46, 0.53)
    glass, clearance = INDEX["glass"], 0.18
    nose = generator.uniform(0.04, 0.12)
    cowl = length * generator.uniform(0.17, 0.23)
    deck = belt * (0.97 if kind == "saloon" else 1.0)
    body = prism(
        [
            (rear + 0.12, clearance),
            (rear, hood * 0.72),
            (rear + 0.05, deck),
            (cowl - 0.05, belt),
            (front - nose - 0.05, hood),
            (front, hood * 0.7),
            (front - 0.1, clearance),
        ],
        [paint] * 7,
        width / 2,
        paint,
    )
    slant = height * generator.uniform(0.55, 0.75)
    tail = {"saloon": 0.13, "hatchback": 0.03, "estate": 0.01}[str(kind)] * length
    rake = {"saloon": 0.6, "hatchback": 0.35, "estate": 0.2}[str(kind)] * height
    roof = height - 0.06
    top_front, top_rear = cowl - slant, rear + tail + rake
    cabin = prism(
        [
            (rear + tail, belt - 0.08),
            (top_rear, roof),
            (top_rear + 0.3, height),
            (top_front - 0.25, height),
            (top_front, roof),
            (cowl, belt - 0.08),
        ],
        [glass, paint, paint, paint, glass, paint],
        width / 2 - 0.03,
        glass,
        taper=generator.uniform(0.22, 0.38),
        pivot=belt,
    )
    ends: list[Part] = [
        block((rear, -0.26, hood * 0.66), (rear + 0.06, 0.26, hood * 0.66 + 0.12), INDEX["plate"]),
        block((front - 0.06, -0.26, 0.38), (front - 0.01, 0.26, 0.48), INDEX["plate"]),
    ]
    lamp = hood * 0.8
    for side in (-1, 1):
        low, high = sorted((side * (width / 2 - 0.02), side * (width / 2 - 0.34)))
        ends.append(block((rear, low, lamp - 0.06), (rear + 0.09, high, lamp + 0.08), INDEX["lamp red"]))
        ends.append(block((front - 0.14, low, lamp - 0.07), (front - 0.03, high, lamp + 0.03), INDEX["lamp"]))
    pillars: list[Part] = [
        prism(
            [
                (at - 0.05, belt - 0.05),
                (at - 0.05, height - 0.03),
                (at + 0.05, height - 0.03),
                (at + 0.05, belt - 0.05),
            ],
            [paint] * 4,
            width / 2 - 0.025,
            paint,
            taper=0.3,
            pivot=belt,
        )
        for at in (rear + 0.28 * length, rear + 0.5 * length)
    ]
    radius = float(generator.uniform(0.29, 0.34))
    return Shape([body, cabin, *pillars, *_wheels(size, radius, (-0.31, 0.32)), *ends], size, "car")


def _van(size: tuple[float, float, float], paint: int, generator: np.random.Generator) -> Shape:
    length, width, height = size
    front, rear = length / 2, -length / 2
    glass = INDEX["glass"]
    box = generator.random() < 0.5
    cowl = front - generator.uniform(0.5, 0.9)
    belt = height * 0.5
    body = prism(
        [
            (rear, 0.22),
            (rear, height * 0.8),
            (rear + 0.08, height),
            (cowl - 0.7, height),
            (cowl, belt),
            (front, belt * 0.75),
            (front, 0.25),
        ],
        [paint if box else glass, paint, paint, glass, paint, paint, paint],
        width / 2,
        paint,
        taper=0.05,
        pivot=0.25,
    )
    windows: list[Part] = [
        prism(
            [(low, belt + 0.1), (low, height * 0.85), (high, height * 0.85), (high, belt + 0.1)],
            [glass] * 4,
            width / 2 + 0.0,
            glass,
            taper=0.03,
            pivot=belt,
        )
        for low, high in ([(cowl - 1.3, cowl - 0.55)] if box else [(rear + 0.2, rear + 1.5), (cowl - 1.9, cowl - 0.55)])
    ]
    return Shape([body, *windows, *_wheels(size, 0.34, (-0.3, 0.32))], size, "van")


def _truck(size: tuple[float, float, float], paint: int, generator: np.random.Generator) -> Shape:
    length, width, height = size
    front, rear = length / 2, -length / 2
    cab = front - generator.uniform(1.7, 2.2)
    cab_height = min(height, 2.7)
    cargo = int(generator.choice(PAINTS[:2]))
    parts: list[Part] = [
        block((rear, -width / 2, 0.95), (cab - 0.3, width / 2, height), cargo),
        prism(
            [(cab, 0.4), (cab, cab_height), (front - 0.25, cab_height), (front, cab_height * 0.5), (front, 0.4)],
            [paint, paint, INDEX["glass"], paint, paint],
            width / 2 - 0.03,
            paint,
        ),
        block((rear, -0.4, 0.55), (front - 0.2, 0.4, 1.0), INDEX["metal"]),
        *_wheels(size, 0.5, (-0.38, -0.26, 0.36)),
    ]
    return Shape(parts, size, "truck")


def pedestrian(generator: np.random.Generator) -> Shape:
    """A person who walks or stands, arms and legs within the box."""
    size = size_of("pedestrian", generator)
    length, width, height = _within(size)
    top, legs = int(generator.choice([INDEX["cloth dark"], INDEX["cloth bright"]])), INDEX["cloth dark"]
    hip, shoulder = height * 0.5, height * 0.83
    stride = (length / 2 - 0.09) * generator.uniform(0.6, 1)
    depth = 0.13 + 0.03 * generator.random()
    breadth = min(width / 2 - 0.1, 0.24)
    lean = stride * 0.05
    parts: list[Part] = [
        ellipsoid((lean, 0, height - 0.125), (0.1, 0.085, 0.125), INDEX["skin"]),
        ellipsoid((0, 0, (hip + shoulder) / 2), (depth, breadth, (shoulder - hip) * 0.68), top),
        cylinder((0, 0.09, hip), (stride, 0.09, 0.03), 0.08, legs),
        cylinder((0, -0.09, hip), (-stride, -0.09, 0.03), 0.08, legs),
    ]
    swing = stride * generator.uniform(0.3, 0.9)
    for side, way in ((1, -1), (-1, 1)):
        hand = (way * swing, side * (width / 2 - 0.06), hip * 0.95)
        parts.append(cylinder((0, side * breadth, shoulder - 0.04), hand, 0.055, top))
    return Shape(parts, size, "pedestrian")


def cyclist(generator: np.random.Generator) -> Shape:
    """A person on a bicycle."""
    size = size_of("cyclist", generator)
    length, width, height = _within(size)
    top, metal = int(generator.choice([INDEX["cloth dark"], INDEX["cloth bright"]])), INDEX["metal"]
    radius = 0.33
    front, rear = length / 2 - radius, -length / 2 + radius
    seat, hands = (rear + 0.22, 0, 0.95), (front - 0.12, 0, 1.02)
    shoulder = (seat[0] + generator.uniform(0.2, 0.36), 0, height - 0.32)
    parts: list[Part] = [
        *(cylinder((at, -0.025, radius), (at, 0.025, radius), radius, INDEX["rubber"], 0.45) for at in (front, rear)),
        cylinder((rear, 0, radius), (front - 0.1, 0, 0.85), 0.03, metal),
        cylinder((front, 0, radius), (front - 0.12, 0, 1.0), 0.03, metal),
        cylinder((front - 0.12, -width / 2 + 0.03, 1.0), (front - 0.12, width / 2 - 0.03, 1.0), 0.025, metal),
        cylinder(seat, shoulder, 0.17, top),
        ellipsoid((shoulder[0] + 0.1, 0, height - 0.12), (0.11, 0.09, 0.12), INDEX["skin"]),
    ]
    for side in (-1, 1):
        hip, pedal = (seat[0], side * 0.1, seat[2]), (0.0, side * 0.14, 0.25 + 0.15 * (1 + side))
        parts.append(cylinder(hip, (0.28, side * 0.14, 0.75 + 0.08 * side), 0.075, INDEX["cloth dark"]))
        parts.append(cylinder((0.28, side * 0.14, 0.75 + 0.08 * side), pedal, 0.06, INDEX["cloth dark"]))
        parts.append(
            cylinder(
                (shoulder[0], side * 0.17, shoulder[2]), (hands[0], side * (width / 2 - 0.06), hands[2]), 0.05, top
            )
        )
    return Shape(parts, size, "cyclist")
