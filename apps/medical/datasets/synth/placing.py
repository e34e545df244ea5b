"""Which nodules a phantom has, and where: free in the lung, at the pleura, or at a vessel; sizes of 3 to 80 mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.medical.datasets.synth.anatomy import Anatomy
from apps.medical.datasets.synth.fields import Array
from apps.medical.datasets.synth.frame import Frame
from apps.medical.datasets.synth.nodules import MASS_MM, Placed, moved, place

CAVITY_MM, CONSOLIDATION_MM = 9.0, 12.0
"""The least sizes of these."""

SUBSOLID_MM = 45.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NoduleSpec:
    """A nodule that is to be placed: its diameter in mm, and its kind; None leaves either to LIDC-IDRI's outlines."""

    diameter_mm: float | None
    kind: str | None


def scan_nodules(random: np.random.Generator, nodules: int = 5) -> list[NoduleSpec]:
    """What a whole phantom has: ``nodules`` of 3 to 30 mm, and in two of three a mass of 30 to 80 mm."""
    specs = [_sized(random, 3.0, MASS_MM) for _ in range(nodules)]
    return [_sized(random, MASS_MM, 80.0), *specs] if random.random() < 2 / 3 else specs


def patch_nodules(random: np.random.Generator, coarse: int) -> list[NoduleSpec]:
    """What a training patch has: none to three, of about 4 to 80 voxels across."""
    count = int(random.choice([0, 1, 2, 3], p=[0.2, 0.4, 0.27, 0.13]))
    specs = []
    for _ in range(count):
        if coarse == 1 and random.random() < 0.3:
            specs.append(NoduleSpec(diameter_mm=None, kind=None))
        else:
            specs.append(_sized(random, 3.0, 55.0) if coarse == 1 else _sized(random, 6.5, 85.0))
    return sorted(specs, key=lambda spec: -(spec.diameter_mm or 10.0))


def _sized(random: np.random.Generator, least_mm: float, most_mm: float) -> NoduleSpec:
    """Evenly spread over the logarithm of the diameter; of a kind that comes in that size."""
    diameter = float(np.exp(random.uniform(np.log(least_mm), np.log(most_mm))))
    shares = {
        "solid": 0.5,
        "calcified": 0.07 if diameter < MASS_MM else 0.0,
        "part-solid": 0.13 if 5 < diameter < SUBSOLID_MM else 0.0,
        "ground glass": 0.14 if 4 < diameter < SUBSOLID_MM else 0.0,
        "cavity": 0.12 if diameter > CAVITY_MM else 0.0,
        "consolidation": 0.12 if diameter > CONSOLIDATION_MM else 0.0,
    }
    weights = np.array(list(shares.values()))
    return NoduleSpec(diameter_mm=diameter, kind=str(random.choice(list(shares), p=weights / weights.sum())))


def put_nodules(
    random: np.random.Generator,
    anatomy: Anatomy,
    frame: Frame,
    low_mm: Array,
    high_mm: Array,
    specs: Sequence[NoduleSpec],
) -> list[Placed]:
    """Those of ``specs`` that find room with their centres in the box of ``frame``, apart from each other."""
    placed: list[Placed] = []
    tries = np.asarray(random.uniform(low_mm, high_mm, size=(500, 3)), np.float32)
    depth = frame.lung_depth(anatomy, *tries.T)
    ends = frame.from_chest(anatomy.arteries.end)
    for spec in specs:
        nodule = place(random, np.zeros(3, np.float32), spec.diameter_mm, spec.kind)
        radius = nodule.shape.diameter_mm / 2 / np.cbrt(np.abs(np.linalg.det(nodule.turn)))
        where = random.random()
        if radius > MASS_MM / 2 or nodule.kind == "consolidation":
            # A mass seldom keeps clear of pleura and mediastinum; more than half of it is in the lung.
            fitting = depth > 0.35 * radius
        elif where < 0.5:
            fitting = depth > radius * 0.9 + 1
        elif where < 0.75:
            fitting = (depth > 0.15 * radius) & (depth < 0.8 * radius + 0.5)
        else:
            fitting = depth > 2
        for index in random.permutation(np.nonzero(fitting)[0])[:12]:
            centre = tries[index]
            if where >= 0.75 and radius <= MASS_MM / 2:
                centre = _at_a_vessel(random, anatomy, frame, ends, centre, float(radius))
            apart = all(
                np.linalg.norm(centre - other.centre_mm) > nodule.radius_mm + other.radius_mm + 4 for other in placed
            )
            if apart:
                placed.append(moved(nodule, centre))
                break
    return placed


def _at_a_vessel(
    random: np.random.Generator, anatomy: Anatomy, frame: Frame, ends: Array, centre: Array, radius: float
) -> Array:
    """Beside the nearest end of a vessel, where one is near and the lung has room."""
    near = ends[np.abs(ends - centre).max(axis=1) < 25]
    if not len(near):
        return centre
    nearest = near[np.argmin(((near - centre) ** 2).sum(axis=1))]
    shift = random.normal(size=3)
    there = np.asarray(nearest + shift * (0.8 * radius / np.linalg.norm(shift)), np.float32)
    return there if frame.lung_depth(anatomy, *there[:, None])[0] > 0.5 * radius else centre
