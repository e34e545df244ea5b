"""The objects to detect in a street: vehicles, pedestrians and cyclists, which fill their boxes exactly.

Size statistics (means and standard deviations of length, width, height) are those published for the training labels of
KITTI (Geiger et al. 2012), and of nuScenes and Argoverse 2 where their vehicles are larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from apps.driving.datasets.synth.sensors import Sizes
from apps.driving.datasets.synth.shapes import (
    INDEX,
    Part,
    Shape,
    block,
    cylinder,
    ellipsoid,
    prism,
    with_rounded_ends,
    with_tucked_sides,
)

PAINTS = [
    INDEX[name] for name in ("paint white", "paint silver", "paint black", "paint red", "paint blue", "paint grey")
]
PAINT_PROBABILITIES = (0.2, 0.25, 0.2, 0.08, 0.12, 0.15)

# class: (mean, standard deviation) of length, width, height, as published for KITTI.
SIZES = {
    "car": ((3.88, 0.43), (1.63, 0.10), (1.53, 0.13)),
    "van": ((5.06, 0.5), (1.90, 0.14), (2.20, 0.25)),
    "truck": ((9.5, 2.2), (2.55, 0.15), (3.2, 0.35)),
    "pedestrian": ((0.84, 0.2), (0.66, 0.12), (1.76, 0.11)),
    "cyclist": ((1.76, 0.14), (0.60, 0.10), (1.74, 0.09)),
}
# Where they differ: those of the labels of nuScenes and Argoverse 2, from North America and Singapore.
WIDE_SIZES = SIZES | {
    "car": ((4.62, 0.45), (1.93, 0.16), (1.70, 0.20)),
    "van": ((5.4, 0.6), (2.05, 0.14), (2.25, 0.3)),
    "truck": ((8.0, 2.4), (2.6, 0.2), (3.1, 0.45)),
    "pedestrian": ((0.74, 0.18), (0.67, 0.13), (1.77, 0.14)),
}
MARGIN_M = 0.025


def size_of(name: str, generator: np.random.Generator, sizes: Sizes = "kitti") -> tuple[float, float, float]:
    """A random size for a class, within 2.2 standard deviations of the mean; the dimensions are slightly correlated."""
    shared = generator.normal() * 0.3
    table = SIZES if sizes == "kitti" else WIDE_SIZES
    values = [
        mean + spread * float(np.clip(generator.normal() * 0.95 + shared, -2.2, 2.2)) for mean, spread in table[name]
    ]
    return values[0], values[1], values[2]


def _surface_size(size: tuple[float, float, float]) -> tuple[float, float, float]:
    # Annotators draw boxes around noisy points, so labels are larger than the surface by about the range noise.
    return size[0] - 2 * MARGIN_M, size[1] - 2 * MARGIN_M, size[2] - MARGIN_M


def vehicle(name: str, generator: np.random.Generator, sizes: Sizes = "kitti") -> Shape:
    """A car (saloon, hatchback, estate, people carrier, pickup), a van or a truck with a random size, paint and
    form."""
    size = size_of(name, generator, sizes)
    paint = int(generator.choice(PAINTS, p=PAINT_PROBABILITIES))
    return replace({"car": _car, "van": _van, "truck": _truck}[name](_surface_size(size), paint, generator), size=size)


def _wheels(size: tuple[float, float, float], radius: float, positions: Sequence[float]) -> list[Part]:
    length, width, _ = size
    tyre = INDEX["rubber"]
    return [
        cylinder(
            (position * length, side * (width / 2 - 0.22), radius),
            (position * length, side * (width / 2 - 0.01), radius),
            radius,
            tyre,
        )
        for position in positions
        for side in (-1, 1)
    ]


_REAR = {
    "saloon": (0.13, 0.6),
    "hatchback": (0.03, 0.35),
    "estate": (0.01, 0.2),
    "carrier": (0.01, 0.14),
    "pickup": (0.33, 0.06),
}
"""The distance from the rear to the cabin as a fraction of the length, and from there to the roof, of the height."""


def _car(size: tuple[float, float, float], paint: int, generator: np.random.Generator) -> Shape:
    length, width, height = size
    front, rear = length / 2, -length / 2
    kind = str(
        generator.choice(["saloon", "hatchback", "estate", "carrier", "pickup"], p=[0.28, 0.36, 0.2, 0.12, 0.04])
    )
    belt = height * generator.uniform(0.56, 0.66)
    hood = height * generator.uniform(0.46, 0.53)
    glass, clearance = INDEX["glass"], 0.18
    nose = generator.uniform(0.08, 0.2)
    cowl = length * (generator.uniform(0.24, 0.31) if kind == "carrier" else generator.uniform(0.17, 0.23))
    deck = belt * (0.97 if kind in ("saloon", "pickup") else 1.0)
    body = prism(
        [
            (rear + 0.12, clearance),
            (rear, hood * 0.72),
            (rear + 0.05, deck),
            (cowl - 0.05, belt),
            (front - nose - 0.2, hood),
            (front - nose, hood * 0.92),
            (front - 0.3 * nose, hood * 0.75),
            (front, hood * 0.55),
            (front - 0.1, clearance),
        ],
        [paint] * 9,
        width / 2,
        paint,
    )
    # How far the ends of the bumpers, and of the windows, are set back from their centre.
    bumpers = (generator.uniform(0.2, 0.45), generator.uniform(0.08, 0.25), generator.uniform(2.5, 4.0))
    windows = (generator.uniform(0.1, 0.25), generator.uniform(0.05, 0.2), 2.0)
    body = with_tucked_sides(
        with_rounded_ends(body, width / 2, *bumpers), width / 2, hood * 0.6, generator.uniform(0.05, 0.25)
    )
    slant = height * (generator.uniform(0.3, 0.42) if kind == "pickup" else generator.uniform(0.55, 0.75))
    tail, rake = _REAR[kind][0] * length, _REAR[kind][1] * height
    inset = (0.05, 0.05) if kind == "pickup" else (0.3, 0.25)
    # On a short car both slopes are steeper, so that half a metre of roof remains between them.
    steepness = min(1.0, (cowl - rear - tail - sum(inset) - 0.5) / (slant + rake))
    slant, rake = slant * steepness, rake * steepness
    roof = height - 0.06
    top_front, top_rear = cowl - slant, rear + tail + rake
    cabin = prism(
        [
            (rear + tail, belt - 0.08),
            (top_rear, roof),
            (top_rear + inset[0], height),
            (top_front - inset[1], height),
            (top_front, roof),
            (cowl, belt - 0.08),
        ],
        [glass, paint, paint, paint, glass, paint],
        width / 2 - 0.03,
        glass,
        taper=generator.uniform(0.22, 0.38),
        pivot=belt,
    )
    cabin = with_rounded_ends(cabin, width / 2, *windows)
    lamp = hood * 0.8
    plates_and_lamps = [
        block((rear, -0.26, hood * 0.66), (rear + 0.2, 0.26, hood * 0.66 + 0.12), INDEX["plate"]),
        block((front - 0.2, -0.26, 0.38), (front - 0.01, 0.26, 0.48), INDEX["plate"]),
    ]
    for side in (-1, 1):
        low, high = sorted((side * (width / 2 - 0.02), side * (width / 2 - 0.34)))
        plates_and_lamps.append(block((rear, low, lamp - 0.06), (rear + 0.5, high, lamp + 0.08), INDEX["lamp red"]))
        ahead = front - 0.4 * nose
        plates_and_lamps.append(block((front - 0.6, low, lamp - 0.07), (ahead, high, lamp + 0.03), INDEX["lamp"]))
    ends = [with_rounded_ends(part, width / 2, *bumpers) for part in plates_and_lamps]
    pillars: list[Part] = [
        prism(
            [
                (position - 0.05, belt - 0.05),
                (position - 0.05, height - 0.03),
                (position + 0.05, height - 0.03),
                (position + 0.05, belt - 0.05),
            ],
            [paint] * 4,
            width / 2 - 0.025,
            paint,
            taper=0.3,
            pivot=belt,
        )
        for position in (rear + 0.28 * length, rear + 0.5 * length)
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
    body = with_rounded_ends(body, width / 2, generator.uniform(0.15, 0.4), generator.uniform(0.02, 0.12))
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
        with_rounded_ends(
            prism(
                [(cab, 0.4), (cab, cab_height), (front - 0.25, cab_height), (front, cab_height * 0.5), (front, 0.4)],
                [paint, paint, INDEX["glass"], paint, paint],
                width / 2 - 0.03,
                paint,
            ),
            width / 2,
            front_m=generator.uniform(0.05, 0.2),
            rear_m=0.0,
        ),
        block((rear, -0.4, 0.55), (front - 0.2, 0.4, 1.0), INDEX["metal"]),
        *_wheels(size, 0.5, (-0.38, -0.26, 0.36)),
    ]
    return Shape(parts, size, "truck")


def pedestrian(generator: np.random.Generator) -> Shape:
    """A walking or standing person, arms and legs inside the box."""
    size = size_of("pedestrian", generator)
    length, width, height = _surface_size(size)
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
    for side, direction in ((1, -1), (-1, 1)):
        hand = (direction * swing, side * (width / 2 - 0.06), hip * 0.95)
        parts.append(cylinder((0, side * breadth, shoulder - 0.04), hand, 0.055, top))
    return Shape(parts, size, "pedestrian")


def cyclist(generator: np.random.Generator) -> Shape:
    """A person on a bicycle."""
    size = size_of("cyclist", generator)
    length, width, height = _surface_size(size)
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
