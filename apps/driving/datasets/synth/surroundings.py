"""What a street holds that is not to be found: walls, houses, poles, signs, trees, bushes, fences, bins."""

from __future__ import annotations

import numpy as np

from apps.driving.datasets.synth.shapes import INDEX, Part, Shape, block, cylinder, ellipsoid


def house(length: float, depth: float, generator: np.random.Generator) -> Shape:
    """A facade of ``length`` with windows set back, a door, and often a ledge; x along the facade, +y to the street."""
    height = float(generator.uniform(3.0, 14.0))
    wall = INDEX[str(generator.choice(["wall", "brick"]))]
    parts: list[Part] = [block((-length / 2, -depth / 2, 0), (length / 2, depth / 2 - 0.25, height), wall)]
    # The facade's outer skin stands in pieces, so that windows lie behind it.
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
    """A trunk and a ragged crown."""
    trunk, radius = float(generator.uniform(1.6, 3.2)), float(generator.uniform(0.08, 0.28))
    spread, height = float(generator.uniform(1.0, 2.8)), float(generator.uniform(2.0, 4.5))
    parts: list[Part] = [cylinder((0, 0, 0), (0, 0, trunk + 0.6), radius, INDEX["bark"])]
    for _ in range(int(generator.integers(4, 8))):
        angle, away = generator.uniform(0, 2 * np.pi), spread * generator.uniform(0, 0.6)
        size = spread * generator.uniform(0.35, 0.6)
        parts.append(
            ellipsoid(
                (np.cos(angle) * away, np.sin(angle) * away, trunk + height * generator.uniform(0.15, 0.8)),
                (size, size, size * generator.uniform(0.6, 1.1)),
                INDEX["leaves"],
                float(generator.uniform(0.25, 0.55)),
            )
        )
    return Shape(parts, (2.4 * spread, 2.4 * spread, trunk + height * 1.3))


def bush(generator: np.random.Generator) -> Shape:
    """A low blob of leaves; some are of the size of a car or a person, as in life."""
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
    return Shape(parts, (length + 2.2, width * 1.7, height))


def pole(generator: np.random.Generator) -> Shape:
    """A lamp post, a bollard, a traffic sign or a thin trunk."""
    radius, height = float(generator.uniform(0.03, 0.16)), float(generator.choice([0.9, 2.6, 6.0, 8.0]))
    parts: list[Part] = [cylinder((0, 0, 0), (0, 0, height), radius, INDEX["metal"])]
    reach = radius
    if height == 2.6 or generator.random() < 0.3:
        half = float(generator.uniform(0.25, 0.45))
        parts.append(block((-0.02, -half, height - 2 * half), (0.02, half, height), INDEX["plate"]))
        reach = half
    return Shape(parts, (2 * reach, 2 * reach, height))


def clutter(generator: np.random.Generator) -> Shape:
    """Bins, boxes, kiosks: about as large as what is looked for."""
    length, width, height = (float(generator.uniform(*limits)) for limits in ((0.4, 2.2), (0.4, 1.4), (0.5, 2.4)))
    material = INDEX[str(generator.choice(["metal", "paint grey", "wall", "paint blue"]))]
    return Shape(
        [block((-length / 2, -width / 2, 0), (length / 2, width / 2, height), material)], (length, width, height)
    )
