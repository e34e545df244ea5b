"""Draws the nodules of a phantom, of 3 to 80 mm, and places them free in the lung, at the pleura, or at a vessel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.medical.datasets.synth.anatomy import Anatomy
from apps.medical.datasets.synth.fields import Array
from apps.medical.datasets.synth.frame import Frame
from apps.medical.datasets.synth.nodules import MASS_MM, PlacedNodule, draw_nodule, move_nodule

MIN_CAVITY_MM, MIN_CONSOLIDATION_MM = 9.0, 12.0
"""Minimum diameters of these kinds."""

MAX_SUBSOLID_MM = 45.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NoduleSpec:
    """The diameter in mm and the kind of a nodule to place. If one is None, it is that of an outline in LIDC-IDRI."""

    diameter_mm: float | None
    kind: str | None


def draw_scan_nodules(random: np.random.Generator, nodules: int = 5) -> list[NoduleSpec]:
    """The nodules of a whole phantom: ``nodules`` of 3 to 30 mm, and in two of three phantoms a mass of 30 to 80 mm."""
    specs = [_draw_spec(random, 3.0, MASS_MM) for _ in range(nodules)]
    return [_draw_spec(random, MASS_MM, 80.0), *specs] if random.random() < 2 / 3 else specs


def draw_patch_nodules(random: np.random.Generator, coarse: int) -> list[NoduleSpec]:
    """The nodules of a training patch: none to three, with diameters of about 4 to 80 voxels."""
    count = int(random.choice([0, 1, 2, 3], p=[0.2, 0.4, 0.27, 0.13]))
    specs = []
    for _ in range(count):
        if coarse == 1 and random.random() < 0.3:
            specs.append(NoduleSpec(diameter_mm=None, kind=None))
        else:
            specs.append(_draw_spec(random, 3.0, 55.0) if coarse == 1 else _draw_spec(random, 6.5, 85.0))
    return sorted(specs, key=lambda spec: -(spec.diameter_mm or 10.0))


def _draw_spec(random: np.random.Generator, min_mm: float, max_mm: float) -> NoduleSpec:
    """Draws a diameter log-uniformly, and a kind that occurs at that size."""
    diameter = float(np.exp(random.uniform(np.log(min_mm), np.log(max_mm))))
    probabilities = {
        "solid": 0.5,
        "calcified": 0.07 if diameter < MASS_MM else 0.0,
        "part-solid": 0.13 if 5 < diameter < MAX_SUBSOLID_MM else 0.0,
        "ground glass": 0.14 if 4 < diameter < MAX_SUBSOLID_MM else 0.0,
        "cavity": 0.12 if diameter > MIN_CAVITY_MM else 0.0,
        "consolidation": 0.12 if diameter > MIN_CONSOLIDATION_MM else 0.0,
    }
    weights = np.array(list(probabilities.values()))
    return NoduleSpec(diameter_mm=diameter, kind=str(random.choice(list(probabilities), p=weights / weights.sum())))


def place_nodules(
    random: np.random.Generator,
    anatomy: Anatomy,
    frame: Frame,
    low_mm: Array,
    high_mm: Array,
    specs: Sequence[NoduleSpec],
) -> list[PlacedNodule]:
    """Places nodules without overlap, with their centres in a box of ``frame``; leaves out those that find no room."""
    placed: list[PlacedNodule] = []
    points = np.asarray(random.uniform(low_mm, high_mm, size=(500, 3)), np.float32)
    depth = frame.lung_depth(anatomy, *points.T)
    vessel_ends = frame.from_chest(anatomy.arteries.end)
    for spec in specs:
        nodule = draw_nodule(random, np.zeros(3, np.float32), spec.diameter_mm, spec.kind)
        radius = nodule.shape.diameter_mm / 2 / np.cbrt(np.abs(np.linalg.det(nodule.matrix)))
        placement = random.random()
        if radius > MASS_MM / 2 or nodule.kind == "consolidation":
            # A mass usually touches pleura or mediastinum; more than half of it is in the lung.
            is_suitable = depth > 0.35 * radius
        elif placement < 0.5:
            is_suitable = depth > radius * 0.9 + 1
        elif placement < 0.75:
            is_suitable = (depth > 0.15 * radius) & (depth < 0.8 * radius + 0.5)
        else:
            is_suitable = depth > 2
        for index in random.permutation(np.nonzero(is_suitable)[0])[:12]:
            centre = points[index]
            if placement >= 0.75 and radius <= MASS_MM / 2:
                centre = _move_to_vessel(random, anatomy, frame, vessel_ends, centre, float(radius))
            is_free = all(
                np.linalg.norm(centre - other.centre_mm) > nodule.radius_mm + other.radius_mm + 4 for other in placed
            )
            if is_free:
                placed.append(move_nodule(nodule, centre))
                break
    return placed


def _move_to_vessel(
    random: np.random.Generator, anatomy: Anatomy, frame: Frame, vessel_ends: Array, centre: Array, radius: float
) -> Array:
    """A position beside the nearest end of a vessel; ``centre`` if no vessel is near or the lung has no room there."""
    near = vessel_ends[np.abs(vessel_ends - centre).max(axis=1) < 25]
    if not len(near):
        return centre
    nearest = near[np.argmin(((near - centre) ** 2).sum(axis=1))]
    shift = random.normal(size=3)
    position = np.asarray(nearest + shift * (0.8 * radius / np.linalg.norm(shift)), np.float32)
    return position if frame.lung_depth(anatomy, *position[:, None])[0] > 0.5 * radius else centre
