"""Casts rays at convex solids and a ground, analytically: exact surfaces, no meshes.

Solids are sets of convex polytopes (half-spaces) and quadrics (ellipsoids, cylinders) in the LiDAR frame, metres.
A ray x = o + t d enters a convex polytope at the largest t of the planes that it crosses inwards and leaves it at the
smallest t of those that it crosses outwards (Cyrus and Beck 1978). Only the window of rays that can meet a solid's
bounding box is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Window = tuple[slice, slice]

GROUND, NOTHING = -1, -2
_FAR = np.float32(1e9)


@dataclass(frozen=True, slots=True)
class Polytope:
    """Points x with ``normals`` (K, 3) . x <= ``offsets`` (K,); each face has a material."""

    normals: Floats
    offsets: Floats
    materials: NDArray[np.int16]
    porosity: float = 0.0


@dataclass(frozen=True, slots=True)
class Quadric:
    """The unit sphere, or the unit cylinder |xy| <= 1, |z| <= 1, of coordinates ``matrix`` (3, 3) @ (x - ``centre``).

    A porous one (foliage, a fence, spokes) lets the share ``porosity`` of rays through, and returns others from within.
    """

    matrix: Floats
    centre: Floats
    material: int
    cylinder: bool = False
    porosity: float = 0.0


@dataclass(frozen=True, slots=True)
class Solid:
    """One object: its parts, the corners (8, 3) of a box around them, and the number that its hits carry."""

    parts: Sequence[Polytope | Quadric]
    corners: Floats
    instance: int


@dataclass(frozen=True, slots=True)
class Rays:
    """``directions`` (R, C, 3) of unit length from one ``origin`` (3,).

    ``window`` says which rows and columns can meet something within given corners (8, 3); possibly more than one patch.
    """

    origin: Floats
    directions: Floats
    window: Callable[[Floats], list[Window]]


@dataclass(slots=True)
class Hits:
    """The nearest surface on each ray (R, C): distance in metres, instance, material, unit normal.

    ``alone`` maps an instance to the (patch, mask) pairs that it would cover if nothing stood before it.
    """

    distance: Floats
    instance: NDArray[np.int16]
    material: NDArray[np.int16]
    normal: Floats
    alone: dict[int, list[tuple[Window, NDArray[np.bool_]]]]


@dataclass(frozen=True, slots=True)
class Ground:
    """A road on a plane z = ``height`` + slope . (x, y), with raised sides beyond ``half_width`` of its axis.

    The road runs along ``heading`` (radians); its axis passes the LiDAR at the lateral ``offset``. ``waves`` (K, 4) are
    undulations: wave numbers kx, ky (1/m), phase, amplitude (m).
    """

    height: float
    slope: tuple[float, float]
    heading: float
    offset: float
    half_width: float
    kerb: float
    waves: Floats

    def lateral(self, x: Floats, y: Floats) -> Floats:
        """Metres to the left of the road's axis."""
        return np.float32(np.cos(self.heading)) * y - np.float32(np.sin(self.heading)) * x - np.float32(self.offset)

    def along(self, x: Floats, y: Floats) -> Floats:
        """Metres along the road's axis."""
        return np.float32(np.cos(self.heading)) * x + np.float32(np.sin(self.heading)) * y

    def road(self, x: Floats, y: Floats) -> Floats:
        """Height of the road surface, continued to its sides."""
        z = np.float32(self.height) + np.float32(self.slope[0]) * x + np.float32(self.slope[1]) * y
        for kx, ky, phase, amplitude in self.waves:
            z = z + amplitude * np.sin(kx * x + ky * y + phase)
        return z

    def elevation(self, x: Floats, y: Floats) -> Floats:
        """Height of the surface, kerb included."""
        return self.road(x, y) + np.float32(self.kerb) * (np.abs(self.lateral(x, y)) > self.half_width)


def cast(rays: Rays, ground: Ground, solids: Sequence[Solid], generator: np.random.Generator, reach: float) -> Hits:
    """The nearest hit of every ray within ``reach`` metres; ``generator`` decides what porous parts let through."""
    shape = rays.directions.shape[:2]
    hits = Hits(
        np.full(shape, _FAR, np.float32),
        np.full(shape, NOTHING, np.int16),
        np.zeros(shape, np.int16),
        np.zeros((*shape, 3), np.float32),
        {},
    )
    _cast_ground(rays, ground, hits, reach)
    for solid in solids:
        for window in rays.window(solid.corners):
            directions = rays.directions[window]
            if directions.size:
                _cast_solid(rays.origin, directions, solid, window, hits, generator)
    beyond = hits.distance > reach
    hits.instance[beyond] = NOTHING
    return hits


def _cast_ground(rays: Rays, ground: Ground, hits: Hits, reach: float) -> None:
    d = rays.directions
    x0, y0, z0 = rays.origin
    sink = ground.slope[0] * d[..., 0] + ground.slope[1] * d[..., 1] - d[..., 2]
    above = z0 - ground.height - ground.slope[0] * x0 - ground.slope[1] * y0
    down = sink > above / (1.3 * reach)
    sink = np.where(down, sink, 1)
    t = above / sink
    for _ in range(2):
        # A Newton step towards the undulating surface; its own slope is small against that of all but the far rays.
        x, y = x0 + t * d[..., 0], y0 + t * d[..., 1]
        error = z0 + t * d[..., 2] - ground.road(x, y)
        t = np.clip(t + error / sink, 0.6 * t, 1.6 * t)
    raised = t - ground.kerb / sink
    aside = np.abs(ground.lateral(x0 + raised * d[..., 0], y0 + raised * d[..., 1])) > ground.half_width
    beside = np.abs(ground.lateral(x0 + t * d[..., 0], y0 + t * d[..., 1])) > ground.half_width
    # Between the two lies the face of the kerb.
    face = beside & ~aside
    t = np.where(aside, raised, np.where(face, (t + raised) / 2, t)).astype(np.float32)
    hits.distance[down] = t[down]
    hits.instance[down] = GROUND
    hits.material[down] = np.where(aside | face, 1, 0)[down]
    up = np.array([-ground.slope[0], -ground.slope[1], 1], np.float32)
    hits.normal[down] = up / np.linalg.norm(up)


def _cast_solid(
    origin: Floats, directions: Floats, solid: Solid, window: Window, hits: Hits, generator: np.random.Generator
) -> None:
    shape = directions.shape[:2]
    flat = directions.reshape(-1, 3)
    nearest = np.full(len(flat), _FAR, np.float32)
    material = np.zeros(len(flat), np.int16)
    normal = np.zeros_like(flat)
    for part in solid.parts:
        t, leave, which, normals = (
            _polytope(origin, flat, part) if isinstance(part, Polytope) else _quadric(origin, flat, part)
        )
        hit = np.nonzero(t < nearest)[0]
        if part.porosity and len(hit):
            hit = hit[generator.random(len(hit), np.float32) >= part.porosity]
            if isinstance(part, Quadric):
                depth = generator.random(len(hit), np.float32) ** 2 * (leave[hit] - t[hit])
                t[hit] += depth
                hit = hit[t[hit] < nearest[hit]]
        if len(hit) == 0:
            continue
        nearest[hit] = t[hit]
        if isinstance(part, Polytope):
            material[hit] = part.materials[which[hit]]
            normal[hit] = normals[which[hit]]
        else:
            material[hit] = part.material
            normal[hit] = normals(hit, t[hit])
    covered = nearest < _FAR
    hits.alone.setdefault(solid.instance, []).append((window, covered.reshape(shape)))
    ahead = covered & (nearest < hits.distance[window].reshape(-1))
    ahead_RC = ahead.reshape(shape)
    for target, value in (
        (hits.distance, nearest),
        (hits.material, material),
        (hits.instance, np.int16(solid.instance)),
    ):
        target[window][ahead_RC] = value[ahead] if isinstance(value, np.ndarray) and value.ndim else value
    hits.normal[window][ahead_RC] = normal[ahead]


def _polytope(origin: Floats, directions: Floats, part: Polytope) -> tuple[Floats, Floats, NDArray[np.int64], Floats]:
    gap = part.offsets - part.normals @ origin
    speed = directions @ part.normals.T
    speed = np.where(np.abs(speed) < 1e-9, np.float32(1e-9), speed)
    t = gap / speed
    entering = np.where(speed < 0, t, -_FAR)
    leave = np.where(speed > 0, t, _FAR).min(axis=1)
    which = entering.argmax(axis=1)
    enter = np.take_along_axis(entering, which[:, None], 1)[:, 0]
    return np.where((enter <= leave) & (enter > 0), enter, _FAR), leave, which, part.normals


def _quadric(
    origin: Floats, directions: Floats, part: Quadric
) -> tuple[Floats, Floats, None, Callable[[NDArray[np.int64], Floats], Floats]]:
    o = part.matrix @ (origin - part.centre)
    d = directions @ part.matrix.T
    axes = slice(0, 2) if part.cylinder else slice(0, 3)
    a = (d[:, axes] ** 2).sum(1) + np.float32(1e-12)
    b = d[:, axes] @ o[axes]
    root = b * b - a * ((o[axes] ** 2).sum() - 1)
    crossed = root > 0
    root = np.sqrt(np.where(crossed, root, 0))
    enter, leave = (-b - root) / a, (-b + root) / a
    if part.cylinder:
        dz = np.where(np.abs(d[:, 2]) < 1e-9, np.float32(1e-9), d[:, 2])
        low, high = (-1 - o[2]) / dz, (1 - o[2]) / dz
        enter, leave = np.maximum(enter, np.minimum(low, high)), np.minimum(leave, np.maximum(low, high))
    t = np.where(crossed & (enter < leave) & (enter > 0), enter, _FAR).astype(np.float32)

    def normals(hit: NDArray[np.int64], distance: Floats) -> Floats:
        local = o + distance[:, None] * d[hit]
        if part.cylinder:
            cap = np.abs(local[:, 2]) > 0.999
            local = np.where(
                cap[:, None], local * np.array([0, 0, 1], np.float32), local * np.array([1, 1, 0], np.float32)
            )
        world = local @ part.matrix
        unit: Floats = world / (np.linalg.norm(world, axis=1, keepdims=True) + np.float32(1e-9))
        return unit

    return t, leave.astype(np.float32), None, normals
