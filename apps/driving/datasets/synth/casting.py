"""Casts rays at convex solids and a ground analytically: exact surfaces, no meshes.

Solids are sets of convex polytopes (half-spaces) and quadrics (ellipsoids, cylinders) in the LiDAR frame, in metres.
A ray x = o + t d enters a convex polytope at the largest t of the planes that it crosses inwards and leaves it at the
smallest t of those that it crosses outwards (Cyrus and Beck 1978). Only the window of rays that can hit a solid's
bounding box is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Window = tuple[slice, slice]

GROUND, NOTHING = -1, -2
_FAR = np.float32(1e9)


@dataclass(frozen=True, slots=True)
class Polytope:
    """The points x with ``normals`` (K, 3) . x <= ``offsets`` (K,); each face has a material."""

    normals: Floats
    offsets: Floats
    materials: NDArray[np.int16]
    porosity: float = 0.0


@dataclass(frozen=True, slots=True)
class Quadric:
    """The unit sphere, or unit cylinder |xy| <= 1, |z| <= 1, in coordinates ``matrix`` (3, 3) @ (x - ``centre``).

    A porous one (foliage, a fence, spokes) lets the fraction ``porosity`` of rays pass; others return from inside.
    """

    matrix: Floats
    centre: Floats
    material: int
    cylinder: bool = False
    porosity: float = 0.0


@dataclass(frozen=True, slots=True)
class Solid:
    """One object: its parts, the corners (8, 3) of its bounding box, and the instance number that its hits carry.

    If ``counted``, the rays that would hit it without occlusion are recorded too.
    """

    parts: Sequence[Polytope | Quadric]
    corners: Floats
    instance: int
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Rays:
    """``directions`` (R, C, 3) of unit length from one ``origin`` (3,).

    ``window`` returns the rows and columns that can hit something within given corners (8, 3), in one or more patches.
    """

    origin: Floats
    directions: Floats
    window: Callable[[Floats], list[Window]]


@dataclass(slots=True)
class Hits:
    """The nearest surface on each ray (R, C): distance in metres, instance, material, unit normal.

    ``unoccluded`` maps an instance to the (patch, mask) pairs of the rays that would hit it without occlusion.
    """

    distance: Floats
    instance: NDArray[np.int16]
    material: NDArray[np.int16]
    normal: Floats
    unoccluded: dict[int, list[tuple[Window, NDArray[np.bool_]]]]


@dataclass(frozen=True, slots=True)
class Bank:
    """Ground that rises by ``rise`` metres with ``slope``, from ``start`` metres beside the road axis, then level.

    ``side`` is 1 on the left and -1 on the right.
    """

    side: int
    start: float
    slope: float
    rise: float


@dataclass(frozen=True, slots=True)
class Ground:
    """A road on a plane z = ``height`` + slope . (x, y), with raised sides beyond ``half_width`` from its axis.

    The road has the direction ``heading`` (radians); its axis passes the LiDAR at the lateral ``offset``. ``waves`` (K,
    4) are undulations: wave numbers kx, ky (1/m), phase, amplitude (m). ``banks``, at most one per side, are where the
    ground rises beside the road.
    """

    height: float
    slope: tuple[float, float]
    heading: float
    offset: float
    half_width: float
    kerb: float
    waves: Floats
    banks: tuple[Bank, ...] = ()

    def lateral(self, x: Floats, y: Floats) -> Floats:
        """Metres to the left of the road axis."""
        return np.float32(np.cos(self.heading)) * y - np.float32(np.sin(self.heading)) * x - np.float32(self.offset)

    def along(self, x: Floats, y: Floats) -> Floats:
        """Metres along the road axis."""
        return np.float32(np.cos(self.heading)) * x + np.float32(np.sin(self.heading)) * y

    def road(self, x: Floats, y: Floats) -> Floats:
        """Height of the road surface, extended to its sides."""
        z: NDArray[Any] = np.float32(self.height) + np.float32(self.slope[0]) * x + np.float32(self.slope[1]) * y
        for kx, ky, phase, amplitude in self.waves:
            z = z + amplitude * np.sin(kx * x + ky * y + phase)
        return z

    def elevation(self, x: Floats, y: Floats) -> Floats:
        """Height of the ground, including kerb and banks."""
        lateral = self.lateral(x, y)
        z: NDArray[Any] = self.road(x, y) + np.float32(self.kerb) * (np.abs(lateral) > self.half_width)
        for bank in self.banks:
            z = z + np.clip((bank.side * lateral - bank.start) * bank.slope, 0, bank.rise).astype(np.float32)
        return z


def cast(rays: Rays, ground: Ground, solids: Sequence[Solid], generator: np.random.Generator, max_range: float) -> Hits:
    """The nearest hit of each ray within ``max_range`` metres; ``generator`` decides which rays pass porous parts."""
    shape = rays.directions.shape[:2]
    hits = Hits(
        np.full(shape, _FAR, np.float32),
        np.full(shape, NOTHING, np.int16),
        np.zeros(shape, np.int16),
        np.zeros((*shape, 3), np.float32),
        {},
    )
    _cast_ground(rays, ground, hits, max_range)
    # From near to far, so that most occluded solids need no detailed test.
    for solid in sorted(solids, key=lambda item: float(np.hypot(*item.corners[:, :2].T).min())):
        for window in rays.window(solid.corners):
            directions = rays.directions[window]
            if directions.size:
                _cast_solid(rays.origin, directions, solid, window, hits, generator)
    beyond = hits.distance > max_range
    hits.instance[beyond] = NOTHING
    return hits


def _cast_ground(rays: Rays, ground: Ground, hits: Hits, max_range: float) -> None:
    d = rays.directions
    x0, y0, z0 = rays.origin
    sink = ground.slope[0] * d[..., 0] + ground.slope[1] * d[..., 1] - d[..., 2]
    above = z0 - ground.height - ground.slope[0] * x0 - ground.slope[1] * y0
    down = sink > above / (1.3 * max_range)
    sink = np.where(down, sink, 1)
    t = above / sink
    for _ in range(2):
        # A Newton step towards the undulating surface, whose own slope is small compared to that of all but far rays.
        x, y = x0 + t * d[..., 0], y0 + t * d[..., 1]
        error = z0 + t * d[..., 2] - ground.road(x, y)
        t = np.clip(t + error / sink, 0.6 * t, 1.6 * t)
    raised = t - ground.kerb / sink
    aside = np.abs(ground.lateral(x0 + raised * d[..., 0], y0 + raised * d[..., 1])) > ground.half_width
    beside = np.abs(ground.lateral(x0 + t * d[..., 0], y0 + t * d[..., 1])) > ground.half_width
    # Between the two is the face of the kerb.
    face = beside & ~aside
    t = np.where(aside, raised, np.where(face, (t + raised) / 2, t)).astype(np.float32)
    hits.distance[down] = t[down]
    hits.instance[down] = GROUND
    hits.material[down] = np.where(aside | face, 1, 0)[down]
    up = np.array([-ground.slope[0], -ground.slope[1], 1], np.float32)
    hits.normal[down] = up / np.linalg.norm(up)
    for bank in ground.banks:
        _cast_bank(rays, ground, bank, hits, max_range)


def _cast_bank(rays: Rays, ground: Ground, bank: Bank, hits: Hits, max_range: float) -> None:
    """The slope, and the level ground above it: two planes plus the undulations. The ray starts above the ground."""
    d = rays.directions
    x0, y0, z0 = rays.origin
    across = np.array([-np.sin(ground.heading), np.cos(ground.heading)], np.float32) * np.float32(bank.side)
    start = np.float32(bank.side * ground.lateral(x0, y0) - bank.start)
    outward = across[0] * d[..., 0] + across[1] * d[..., 1]
    covered = (hits.instance == GROUND) & (start + hits.distance * outward > 0)
    hits.distance[covered], hits.instance[covered] = _FAR, NOTHING
    sink = ground.slope[0] * d[..., 0] + ground.slope[1] * d[..., 1] - d[..., 2]
    above = z0 - ground.height - ground.slope[0] * x0 - ground.slope[1] * y0 - ground.kerb
    foot = bank.rise / bank.slope
    for slope, base, low, high in ((bank.slope, 0.0, 0.0, foot), (0.0, bank.rise, foot, np.inf)):
        speed = sink + np.float32(slope) * outward
        down = speed > (above - base - slope * start) / (1.3 * max_range)
        speed = np.where(down, speed, 1)
        t = (above - base - slope * start) / speed
        x, y = x0 + t * d[..., 0], y0 + t * d[..., 1]
        waves = ground.road(x, y) - (ground.height + ground.slope[0] * x + ground.slope[1] * y)
        t = np.clip(t - waves / speed, 0.6 * t, 1.6 * t).astype(np.float32)
        beside = start + t * outward
        hit = down & (t > 0) & (beside > low) & (beside <= high) & (t < hits.distance)
        hits.distance[hit], hits.instance[hit], hits.material[hit] = t[hit], GROUND, 1
        normal = np.array([-ground.slope[0], -ground.slope[1], 1], np.float32)
        normal[:2] -= np.float32(slope) * across
        hits.normal[hit] = normal / np.linalg.norm(normal)


def _cast_solid(
    origin: Floats, directions: Floats, solid: Solid, window: Window, hits: Hits, generator: np.random.Generator
) -> None:
    shape = directions.shape[:2]
    all_rays = np.ascontiguousarray(directions.reshape(-1, 3).T)
    hull = _hull(solid.corners)
    if (hull.normals @ origin <= hull.offsets).all():
        near = np.arange(all_rays.shape[1])
    else:
        within, _ = _cross_polytope(origin, all_rays, hull)
        near = np.nonzero(within < (_FAR if solid.counted else hits.distance[window].reshape(-1)))[0]
    if not len(near):
        return
    rays = all_rays[:, near]
    nearest = np.full(len(near), _FAR, np.float32)
    material = np.zeros(len(near), np.int16)
    normal = np.zeros((3, len(near)), np.float32)
    for part in solid.parts:
        enter, leave = (
            _cross_polytope(origin, rays, part) if isinstance(part, Polytope) else _cross_quadric(origin, rays, part)
        )
        hit = np.nonzero(enter < nearest)[0]
        if part.porosity and len(hit):
            hit = hit[generator.random(len(hit), np.float32) >= part.porosity]
            depth = generator.random(len(hit), np.float32) ** 2 * (leave[hit] - enter[hit])
            enter[hit] += depth
            hit = hit[enter[hit] < nearest[hit]]
        if not len(hit):
            continue
        nearest[hit] = enter[hit]
        if isinstance(part, Polytope):
            face = _entered_face(origin, rays[:, hit], part)
            material[hit] = part.materials[face]
            normal[:, hit] = part.normals[face].T
        else:
            material[hit] = part.material
            normal[:, hit] = _normals(origin + (rays[:, hit] * enter[hit]).T, part).T
    covered = nearest < _FAR
    mask = np.zeros(all_rays.shape[1], bool)
    mask[near[covered]] = True
    if solid.counted:
        hits.unoccluded.setdefault(solid.instance, []).append((window, mask.reshape(shape)))
    ahead = covered & (nearest < hits.distance[window].reshape(-1)[near])
    row, column = np.unravel_index(near[ahead], shape)
    hits.distance[window][row, column] = nearest[ahead]
    hits.material[window][row, column] = material[ahead]
    hits.instance[window][row, column] = solid.instance
    hits.normal[window][row, column] = normal[:, ahead].T


def _hull(corners: Floats) -> Polytope:
    """The bounding box with the corners that ``place`` returns, enlarged by 1 mm."""
    low = corners[0]
    axes = corners[[4, 2, 1]] - low
    normals = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    offsets = np.concatenate([normals @ corners[7], -normals @ low]) + np.float32(1e-3)
    return Polytope(np.concatenate([normals, -normals]), offsets, np.zeros(6, np.int16))


def _crossings(origin: Floats, rays: Floats, part: Polytope) -> tuple[Floats, Floats]:
    """The speed (K, n) along each outward normal, and the distance (K, n) at which each plane is crossed."""
    speed = part.normals @ rays
    speed[np.abs(speed) < 1e-9] = 1e-9
    return speed, (part.offsets - part.normals @ origin)[:, None] / speed


def _cross_polytope(origin: Floats, rays: Floats, part: Polytope) -> tuple[Floats, Floats]:
    speed, t = _crossings(origin, rays, part)
    inwards = speed < 0
    enter = np.where(inwards, t, -_FAR).max(axis=0)
    leave = np.where(inwards, _FAR, t).min(axis=0)
    return np.where((enter <= leave) & (enter > 0), enter, _FAR), leave


def _entered_face(origin: Floats, rays: Floats, part: Polytope) -> NDArray[np.int64]:
    speed, t = _crossings(origin, rays, part)
    last: NDArray[np.int64] = np.where(speed < 0, t, -_FAR).argmax(axis=0)
    return last


def _cross_quadric(origin: Floats, rays: Floats, part: Quadric) -> tuple[Floats, Floats]:
    o = part.matrix @ (origin - part.centre)
    d = part.matrix @ rays
    round_axes = slice(0, 2) if part.cylinder else slice(0, 3)
    a = (d[round_axes] ** 2).sum(0) + np.float32(1e-12)
    b = o[round_axes] @ d[round_axes]
    root = b * b - a * ((o[round_axes] ** 2).sum() - 1)
    crossed = root > 0
    root = np.sqrt(np.where(crossed, root, 0))
    enter, leave = (-b - root) / a, (-b + root) / a
    if part.cylinder:
        dz = np.where(np.abs(d[2]) < 1e-9, np.float32(1e-9), d[2])
        low, high = (-1 - o[2]) / dz, (1 - o[2]) / dz
        enter, leave = np.maximum(enter, np.minimum(low, high)), np.minimum(leave, np.maximum(low, high))
    return np.where(crossed & (enter < leave) & (enter > 0), enter, _FAR), leave


def _normals(points: Floats, part: Quadric) -> Floats:
    """Unit normals (n, 3) at points (n, 3) on the surface."""
    local = (points - part.centre) @ part.matrix.T
    if part.cylinder:
        cap = np.abs(local[:, 2:]) > 0.999
        local = local * np.where(cap, np.array([0, 0, 1], np.float32), np.array([1, 1, 0], np.float32))
    world = local @ part.matrix
    unit: Floats = world / (np.linalg.norm(world, axis=1, keepdims=True) + np.float32(1e-9))
    return unit
