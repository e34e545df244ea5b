"""Objects in a street that should not be detected: walls, houses, poles, trees, bushes, fences, street furniture.

As in reality, some are as large as a car or a person. The vehicle that carries the sensors is here too.
"""

from __future__ import annotations

import numpy as np

from apps.driving.datasets.synth.shapes import INDEX, Part, Shape, block, cylinder, ellipsoid, prism


def house(length: float, depth: float, generator: np.random.Generator) -> Shape:
    """A facade of ``length`` along x with recessed windows and often a ledge; +y points to the street."""
    height = float(generator.uniform(3.0, 14.0))
    wall = INDEX[str(generator.choice(["wall", "brick"]))]
    parts: list[Part] = [block((-length / 2, -depth / 2, 0), (length / 2, depth / 2 - 0.25, height), wall)]
    # The outer skin of the facade consists of separate pieces; the windows are behind it.
    bay = float(generator.uniform(2.2, 4.0))
    edges = np.arange(-length / 2, length / 2 - 0.8, bay)
    for left in edges[:14]:
        parts.append(block((left, 0, 0), (left + bay * 0.55, depth / 2, height), wall))
    if generator.random() < 0.5:
        parts.append(block((-length / 2, 0, 0), (length / 2, depth / 2, 0.9), wall))
    return Shape(parts, (length, depth, height))


def wall(length: float, generator: np.random.Generator) -> Shape:
    """A garden wall, a hedge or a fence of ``length`` along x."""
    kind = generator.choice(["wall", "hedge", "fence", "railing"], p=[0.35, 0.3, 0.2, 0.15])
    height = float(generator.uniform(0.7, 2.2) if generator.random() < 0.6 else generator.uniform(2.0, 4.0))
    if kind == "wall":
        return Shape(
            [block((-length / 2, -0.15, 0), (length / 2, 0.15, height), INDEX["brick"])], (length, 0.3, height)
        )
    if kind == "hedge":
        count = max(2, int(length / 0.9))
        parts: list[Part] = [
            ellipsoid((x, generator.normal() * 0.08, height * 0.45), (0.75, 0.5, height * 0.55), INDEX["leaves"], 0.15)
            for x in np.linspace(-length / 2 + 0.5, length / 2 - 0.5, min(count, 16))
        ]
        return Shape(parts, (length, 1.2, height * 1.05))
    if kind == "fence":
        panel: list[Part] = [
            block(
                (-length / 2, -0.03, 0.05),
                (length / 2, 0.03, height),
                INDEX["metal"],
                float(generator.uniform(0.3, 0.7)),
            )
        ]
        return Shape(panel, (length, 0.1, height))
    rails: list[Part] = [
        block((-length / 2, -0.04, z), (length / 2, 0.04, z + 0.14), INDEX["metal"]) for z in (0.35, 0.65)
    ]
    rails += [cylinder((x, 0, 0), (x, 0, 0.8), 0.06, INDEX["metal"]) for x in np.linspace(-length / 2, length / 2, 5)]
    return Shape(rails, (length, 0.16, 0.85))


def tree(generator: np.random.Generator) -> Shape:
    """A tree with a trunk and an irregular crown."""
    trunk, radius = float(generator.uniform(1.6, 3.2)), float(generator.uniform(0.08, 0.28))
    spread, height = float(generator.uniform(1.0, 2.8)), float(generator.uniform(2.0, 4.5))
    parts: list[Part] = [cylinder((0, 0, 0), (0, 0, trunk + 0.6), radius, INDEX["bark"])]
    for _ in range(int(generator.integers(4, 8))):
        angle, radial = generator.uniform(0, 2 * np.pi), spread * generator.uniform(0, 0.6)
        size = spread * generator.uniform(0.35, 0.6)
        parts.append(
            ellipsoid(
                (np.cos(angle) * radial, np.sin(angle) * radial, trunk + height * generator.uniform(0.15, 0.8)),
                (size, size, size * generator.uniform(0.6, 1.1)),
                INDEX["leaves"],
                float(generator.uniform(0.25, 0.55)),
            )
        )
    return Shape(parts, (2.4 * spread, 2.4 * spread, trunk + height * 1.3))


def street_tree(generator: np.random.Generator) -> Shape:
    """A tree whose crown starts at head height and overhangs the road with its moving and parked vehicles."""
    clear, radius = float(generator.uniform(1.7, 3.6)), float(generator.uniform(0.1, 0.45))
    spread, height = float(generator.uniform(2.0, 5.5)), float(generator.uniform(2.0, 6.0))
    porosity = float(generator.uniform(0.2, 0.8))
    parts: list[Part] = [cylinder((0, 0, 0), (0, 0, clear + 0.5 * height), radius, INDEX["bark"])]
    for _ in range(int(generator.integers(7, 14))):
        angle, radial = generator.uniform(0, 2 * np.pi), spread * np.sqrt(generator.uniform(0, 0.6))
        wide, high = spread * generator.uniform(0.2, 0.45), height * generator.uniform(0.12, 0.35)
        parts.append(
            ellipsoid(
                (
                    np.cos(angle) * radial,
                    np.sin(angle) * radial,
                    clear + high + height * generator.uniform(0, 0.6) ** 2,
                ),
                (wide, wide, high),
                INDEX["leaves"],
                porosity,
            )
        )
    return Shape(parts, (2.5 * spread, 2.5 * spread, clear + 1.4 * height), footprint=(2 * radius, 2 * radius))


def branches(generator: np.random.Generator) -> Shape:
    """Leaves of a distant tree that hang down over a vehicle."""
    low = float(generator.uniform(1.4, 2.4))
    parts: list[Part] = []
    for _ in range(int(generator.integers(2, 6))):
        wide, high = float(generator.uniform(0.4, 1.4)), float(generator.uniform(0.2, 0.8))
        centre = (generator.normal() * 0.9, generator.normal() * 0.7, low + high + generator.uniform(0, 0.8))
        parts.append(ellipsoid(centre, (wide, wide, high), INDEX["leaves"], float(generator.uniform(0.2, 0.7))))
    return Shape(parts, (6.0, 6.0, 5.0), footprint=(0.2, 0.2))


def bush(generator: np.random.Generator) -> Shape:
    """A low blob of leaves; some are as large as a car or a person."""
    length, width = float(generator.uniform(0.6, 3.5)), float(generator.uniform(0.6, 1.8))
    height = float(generator.uniform(0.5, 2.0))
    parts: list[Part] = []
    for _ in range(int(generator.integers(3, 7))):
        size = generator.uniform(0.3, 0.5)
        parts.append(
            ellipsoid(
                (generator.uniform(-0.3, 0.3) * length, generator.uniform(-0.3, 0.3) * width, height * 0.45),
                (length * size * 0.6, width * size, height * generator.uniform(0.35, 0.55)),
                INDEX["leaves"],
                float(generator.uniform(0.1, 0.4)),
            )
        )
    return Shape(parts, (length * 1.3, width * 1.8, height * 1.05))


def thicket(length: float, generator: np.random.Generator) -> Shape:
    """Undergrowth, bushes and low trees grown together along x."""
    width, height = float(generator.uniform(1.0, 3.0)), float(generator.uniform(0.8, 6.5))
    parts: list[Part] = []
    for _ in range(int(length * 1.8)):
        tall = height * generator.uniform(0.35, 1.0)
        parts.append(
            ellipsoid(
                (generator.uniform(-0.5, 0.5) * length, generator.uniform(-0.3, 0.3) * width, tall * 0.4),
                (generator.uniform(0.4, 1.1), width * generator.uniform(0.25, 0.5), tall * 0.6),
                INDEX["leaves"],
                float(generator.uniform(0.15, 0.5)),
            )
        )
    return Shape(parts, (length + 2.2, width * 1.7, height), footprint=(length + 1.0, width * 1.4))


def conifer(generator: np.random.Generator) -> Shape:
    """A tree that is green from the ground up, or a tall shrub."""
    height, radius = float(generator.uniform(1.5, 7.0)), float(generator.uniform(0.4, 1.5))
    parts: list[Part] = []
    for fraction in np.linspace(0.12, 0.85, 4):
        size = radius * (1.05 - fraction)
        half = height * 0.22
        parts.append(
            ellipsoid(
                (0, 0, height * fraction), (size, size, half), INDEX["leaves"], float(generator.uniform(0.1, 0.35))
            )
        )
    return Shape(parts, (2 * radius, 2 * radius, height * 1.1))


def trimmed_hedge(generator: np.random.Generator, length: float | None = None) -> Shape:
    """A piece of hedge with a rectangular cut, often as long and as high as a car."""
    long, width, height = (float(generator.uniform(*limits)) for limits in ((1.0, 6.0), (0.6, 2.0), (0.8, 2.0)))
    length = length or long
    low, high = (-length / 2, -width / 2, 0.0), (length / 2, width / 2, height)
    parts: list[Part] = [block(low, high, INDEX["leaves"], float(generator.uniform(0.05, 0.3)))]
    return Shape(parts, (length, width, height), footprint=(length, width))


def guard_rail(length: float, generator: np.random.Generator) -> Shape:
    """A steel rail of ``length`` along x on posts."""
    low = float(generator.uniform(0.4, 0.5))
    parts: list[Part] = [
        block((-length / 2, -0.04, low), (length / 2, 0.04, low + 0.31), INDEX["metal"]),
        *(
            block((x - 0.05, -0.12, 0), (x + 0.05, -0.04, low + 0.25), INDEX["metal"])
            for x in np.arange(-length / 2 + 0.5, length / 2, 2.0)
        ),
    ]
    return Shape(parts, (length, 0.24, low + 0.31))


def concrete_barrier(length: float, generator: np.random.Generator) -> Shape:
    """A barrier of ``length`` along x with a wider base."""
    height = float(generator.uniform(0.8, 1.1))
    wall = INDEX["wall"]
    parts: list[Part] = [
        block((-length / 2, -0.3, 0), (length / 2, 0.3, 0.25), wall),
        block((-length / 2, -0.12, 0.2), (length / 2, 0.12, height), wall),
    ]
    return Shape(parts, (length, 0.6, height))


def works_barrier(generator: np.random.Generator) -> Shape:
    """A hollow road works barrier, as long as a person is tall, on a wider base."""
    length, foot, height = (float(generator.uniform(*limits)) for limits in ((1.1, 2.2), (0.4, 0.7), (0.8, 1.2)))
    top, plate = foot * float(generator.uniform(0.2, 0.5)), INDEX["plate"]
    parts: list[Part] = [
        block((-length / 2, -foot / 2, 0), (length / 2, foot / 2, height * 0.3), plate),
        block((-length / 2, -top / 2, height * 0.25), (length / 2, top / 2, height), plate),
    ]
    return Shape(parts, (length, foot, height))


def traffic_cone(generator: np.random.Generator) -> Shape:
    """A cone, or a slender post, on a flat base."""
    height, radius = float(generator.uniform(0.45, 1.1)), float(generator.uniform(0.05, 0.16))
    plate = INDEX["plate"]
    parts: list[Part] = [
        block((-0.2, -0.2, 0), (0.2, 0.2, 0.06), plate),
        cylinder((0, 0, 0), (0, 0, height * 0.55), radius, plate),
        cylinder((0, 0, height * 0.5), (0, 0, height), radius * 0.5, plate),
    ]
    return Shape(parts, (0.4, 0.4, height))


def container(generator: np.random.Generator) -> Shape:
    """A skip, a waste container or a stack of goods: as large as a vehicle, with upright walls."""
    length, width, height = (float(generator.uniform(*limits)) for limits in ((1.2, 6.1), (1.0, 2.4), (1.1, 2.6)))
    material = INDEX[str(generator.choice(["metal", "paint grey", "paint blue", "brick"]))]
    lean = float(generator.uniform(0, 0.25)) * length if generator.random() < 0.5 else 0.0
    body = prism(
        [(-length / 2 + lean, 0.1), (-length / 2, height), (length / 2, height), (length / 2 - lean, 0.1)],
        [material] * 4,
        width / 2,
        material,
    )
    return Shape([body], (length, width, height))


def trailer(generator: np.random.Generator) -> Shape:
    """A parked trailer: a low box on two wheels, and its drawbar."""
    length, width, height = (float(generator.uniform(*limits)) for limits in ((2.0, 4.0), (1.3, 1.8), (0.8, 1.5)))
    box = block((-length / 2, -width / 2, 0.45), (length / 2 - 1.0, width / 2, height), INDEX["metal"])
    bar = cylinder((length / 2 - 1.0, 0, 0.45), (length / 2, 0, 0.45), 0.05, INDEX["metal"])
    wheels = [
        cylinder((-0.3, side * width / 2, 0.3), (-0.3, side * (width / 2 + 0.18), 0.3), 0.3, INDEX["rubber"])
        for side in (-1, 1)
    ]
    return Shape([box, bar, *wheels], (length, width + 0.36, height))


def boulder(generator: np.random.Generator) -> Shape:
    """A stone, a heap of earth, or a bale."""
    length, width, height = (float(generator.uniform(*limits)) for limits in ((0.6, 4.0), (0.6, 2.2), (0.4, 1.8)))
    material = INDEX[str(generator.choice(["wall", "bark", "verge"]))]
    parts: list[Part] = [
        ellipsoid(
            (generator.uniform(-0.15, 0.15) * length, generator.uniform(-0.15, 0.15) * width, 0),
            (length * 0.5, width * 0.5, height * generator.uniform(0.6, 1.0)),
            material,
        )
        for _ in range(2)
    ]
    return Shape(parts, (length * 1.3, width * 1.3, height))


def furniture(generator: np.random.Generator) -> Shape:
    """Street furniture: about as large as people, single or in rows."""
    kind = generator.choice(["bench", "shelter", "cabinet", "bins", "bollards", "pillar", "sign", "lights", "booth"])
    metal, glass = INDEX["metal"], INDEX["glass"]
    if kind == "bench":
        length = float(generator.uniform(1.2, 2.2))
        parts: list[Part] = [
            block((-length / 2, -0.25, 0.4), (length / 2, 0.25, 0.48), INDEX["bark"]),
            block((-length / 2, -0.3, 0.48), (length / 2, -0.22, 0.9), INDEX["bark"]),
            *(block((x - 0.04, -0.25, 0), (x + 0.04, 0.25, 0.4), metal) for x in (-length / 2.5, length / 2.5)),
        ]
        return Shape(parts, (length, 0.6, 0.9))
    if kind == "shelter":
        length = float(generator.uniform(2.5, 4.5))
        parts = [
            block((-length / 2, -0.75, 2.2), (length / 2, 0.75, 2.35), metal),
            block((-length / 2, -0.72, 0.2), (length / 2, -0.68, 2.2), glass),
            *(cylinder((x, 0.6, 0), (x, 0.6, 2.2), 0.05, metal) for x in (-length / 2.1, length / 2.1)),
            block((length / 2 - 0.15, -0.7, 0.3), (length / 2, 0.6, 2.1), INDEX["plate"]),
        ]
        return Shape(parts, (length, 1.5, 2.35))
    if kind in ("bins", "bollards"):
        count, spacing = int(generator.integers(2, 6)), float(generator.uniform(0.65, 1.5))
        start = -(count - 1) * spacing / 2
        if kind == "bins":
            parts = [
                block((x - 0.28, -0.33, 0.05), (x + 0.28, 0.33, 1.08), INDEX["paint grey"])
                for x in start + spacing * np.arange(count)
            ]
            return Shape(parts, (count * spacing, 0.7, 1.08))
        height, radius = float(generator.uniform(0.7, 1.2)), float(generator.uniform(0.05, 0.15))
        parts = [cylinder((x, 0, 0), (x, 0, height), radius, metal) for x in start + spacing * np.arange(count)]
        return Shape(parts, (count * spacing, 2 * radius, height))
    if kind == "pillar":
        radius, height = float(generator.uniform(0.15, 0.7)), float(generator.uniform(1.0, 3.2))
        return Shape([cylinder((0, 0, 0), (0, 0, height), radius, INDEX["wall"])], (2 * radius, 2 * radius, height))
    if kind == "sign":
        width, foot = float(generator.uniform(0.6, 3.0)), float(generator.uniform(0.3, 2.0))
        parts = [
            block((-0.04, -width / 2, foot), (0.04, width / 2, foot + width * 0.6), INDEX["plate"]),
            *(cylinder((0, y, 0), (0, y, foot), 0.05, metal) for y in (-width / 3, width / 3)),
        ]
        return Shape(parts, (0.2, width, foot + width * 0.6))
    if kind == "lights":
        parts = [
            cylinder((0, 0, 0), (0, 0, 3.4), 0.07, metal),
            block((-0.15, -0.15, 2.3), (0.2, 0.15, 3.2), INDEX["paint black"]),
            block((-0.1, -0.12, 1.0), (0.15, 0.12, 1.3), INDEX["paint grey"]),
        ]
        return Shape(parts, (0.4, 0.4, 3.4))
    limits = ((0.5, 1.6), (0.3, 0.6), (0.9, 1.7)) if kind == "cabinet" else ((0.8, 1.3), (0.8, 1.3), (2.0, 2.5))
    length, width, height = (float(generator.uniform(*limit)) for limit in limits)
    return Shape(
        [block((-length / 2, -width / 2, 0), (length / 2, width / 2, height), INDEX["paint grey"])],
        (length, width, height),
    )


def two_wheeler(generator: np.random.Generator) -> Shape:
    """Bicycles in a stand, or a motorcycle, without riders."""
    rubber, metal = INDEX["rubber"], INDEX["metal"]
    motorcycle = generator.random() < 0.4
    count = 1 if motorcycle else int(generator.integers(1, 5))
    parts: list[Part] = []
    for y in 0.6 * (np.arange(count) - (count - 1) / 2):
        thick = 0.07 if motorcycle else 0.025
        parts += [
            cylinder((x, y - thick, 0.33), (x, y + thick, 0.33), 0.33, rubber, 0.0 if motorcycle else 0.45)
            for x in (-0.55, 0.55)
        ]
        parts.append(cylinder((0.45, y - 0.28, 1.0), (0.45, y + 0.28, 1.0), 0.03, metal))
        if motorcycle:
            parts.append(ellipsoid((0, y, 0.65), (0.55, 0.2, 0.28), INDEX["paint black"]))
        else:
            parts += [cylinder((-0.55, y, 0.33), (0.45, y, 0.85), 0.03, metal)]
    return Shape(parts, (1.8, 0.6 * count + 0.2, 1.05))


def own_vehicle(generator: np.random.Generator) -> Shape:
    """The vehicle that carries the sensors: the parts of its bonnet, roof and tail that beams can hit."""
    half, paint = float(generator.uniform(0.8, 0.95)), INDEX["paint silver"]
    front, rear = float(generator.uniform(1.7, 2.2)), float(generator.uniform(1.9, 2.5))
    parts: list[Part] = [
        block((-rear, -half, 0.2), (front, half, 1.0), paint),
        block((-rear + 0.5, -half + 0.12, 1.0), (0.6, half - 0.12, 1.45), paint),
    ]
    return Shape(parts, (2 * max(front, rear), 2 * half, 1.45))


def pole(generator: np.random.Generator) -> Shape:
    """A lamp post, a bollard, a traffic sign or a thin trunk."""
    radius, height = float(generator.uniform(0.03, 0.16)), float(generator.choice([0.9, 2.6, 6.0, 8.0]))
    parts: list[Part] = [cylinder((0, 0, 0), (0, 0, height), radius, INDEX["metal"])]
    half_size = radius
    if height == 2.6 or generator.random() < 0.3:
        half = float(generator.uniform(0.25, 0.45))
        parts.append(block((-0.02, -half, height - 2 * half), (0.02, half, height), INDEX["plate"]))
        half_size = half
    return Shape(parts, (2 * half_size, 2 * half_size, height))


def clutter(generator: np.random.Generator) -> Shape:
    """Bins, boxes, kiosks: about as large as the objects to detect."""
    length, width, height = (float(generator.uniform(*limits)) for limits in ((0.4, 2.2), (0.4, 1.4), (0.5, 2.4)))
    material = INDEX[str(generator.choice(["metal", "paint grey", "wall", "paint blue"]))]
    return Shape(
        [block((-length / 2, -width / 2, 0), (length / 2, width / 2, height), material)], (length, width, height)
    )
