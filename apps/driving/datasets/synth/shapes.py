"""Materials, and the convex parts from which all objects in a street are built.

A shape is at the origin of its own frame: x forward, y left, z up from the ground, metres; ``place`` rotates and
translates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from apps.driving.datasets.synth.casting import Polytope, Quadric, Solid

# Index into MATERIALS. Reflectivity at 905 nm; fraction of rays without a return; colour (RGB).
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
Part = Polytope | Quadric


@dataclass(frozen=True, slots=True)
class Shape:
    """Parts in the shape's own frame, and its size (length, width, height) in metres; ``name`` is the class or None.

    ``footprint`` (length, width) is the area that other objects must not overlap: smaller than the size if a crown
    overhangs them.
    """

    parts: Sequence[Part]
    size: tuple[float, float, float]
    name: str | None = None
    footprint: tuple[float, float] | None = None


def prism(
    profile: Sequence[tuple[float, float]],
    materials: Sequence[int],
    half_width: float,
    side: int,
    taper: float = 0.0,
    pivot: float = 0.0,
    porosity: float = 0.0,
) -> Polytope:
    """A convex profile of points (x, z), in order around it, extruded along y to ``half_width`` on both sides.

    ``materials`` are those of the faces of the profile's edges, ``side`` that of both sides. ``taper`` is how much each
    side narrows per metre above ``pivot``.
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
    extent = half_width + taper * pivot
    scale = np.hypot(1, taper)
    return Polytope(
        np.concatenate([outward / length[:, None], sides / scale]).astype(np.float32),
        np.concatenate([offsets / length, [extent / scale] * 2]).astype(np.float32),
        np.array([*materials, side, side], np.int16),
        porosity,
    )


def with_rounded_ends(part: Polytope, half_width: float, front_m: float, rear_m: float, power: float = 3.0) -> Polytope:
    """The part with front and rear rounded in BEV; it is at most 2 ``half_width`` wide.

    At the sides the front is ``front_m`` behind its centre, with |y|^power in between, and the rear is ``rear_m`` ahead
    of its centre. Each face that points forward or backward is replaced by seven that are tangent to that curve.
    """
    normals, offsets, materials = [part.normals], [part.offsets], [part.materials]
    for direction, depth in ((1.0, front_m), (-1.0, rear_m)):
        facing = direction * part.normals[:, 0] > 0.35
        ahead = np.abs(part.normals[facing, 0])
        for fraction in (0.5, 0.8, 1.0):
            aside = ahead * depth * power * fraction ** (power - 1) / half_width
            shifted = part.offsets[facing] + ahead * depth * (power - 1) * fraction**power
            length = np.sqrt(1 + aside**2)
            for side in (1.0, -1.0):
                rotated = part.normals[facing].copy()
                rotated[:, 1] += side * aside
                normals.append(rotated / length[:, None])
                offsets.append(shifted / length)
                materials.append(part.materials[facing])
    return Polytope(
        np.concatenate(normals).astype(np.float32),
        np.concatenate(offsets).astype(np.float32),
        np.concatenate(materials),
        part.porosity,
    )


def with_tucked_sides(part: Polytope, half_width: float, below_m: float, inset: float) -> Polytope:
    """The part with sides that narrow by ``inset`` metres per metre below the height ``below_m``."""
    sides = np.array([[0, 1, -inset], [0, -1, -inset]]) / np.hypot(1, inset)
    extent = (half_width - inset * below_m) / np.hypot(1, inset)
    side = np.nonzero(np.abs(part.normals[:, 1]) > 0.5)[0][0]
    return replace(
        part,
        normals=np.concatenate([part.normals, sides]).astype(np.float32),
        offsets=np.append(part.offsets, [extent] * 2).astype(np.float32),
        materials=np.append(part.materials, [part.materials[side]] * 2),
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
    """An ellipsoid with axes parallel to those of the frame."""
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
    """The shape at (x, y, z) in the LiDAR frame, rotated by ``yaw``."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], np.float32)
    translation = np.array([x, y, z], np.float32)
    parts: list[Part] = []
    for part in shape.parts:
        if isinstance(part, Polytope):
            normals: NDArray[np.float32] = part.normals @ rotation.T
            offsets: NDArray[np.float32] = part.offsets + normals @ translation
            parts.append(replace(part, normals=normals, offsets=offsets))
        else:
            parts.append(replace(part, matrix=part.matrix @ rotation.T, centre=rotation @ part.centre + translation))
    length, width, height = shape.size
    corners = np.array([[i * length / 2, j * width / 2, k * height] for i in (-1, 1) for j in (-1, 1) for k in (0, 1)])
    return Solid(
        tuple(parts), (corners.astype(np.float32) @ rotation.T + translation), instance, shape.name is not None
    )
