"""Casts rays at convex solids and a ground, analytically: exact surfaces, no meshes.

Solids are sets of convex polytopes (half-spaces) and quadrics (ellipsoids, cylinders) in the LiDAR frame, metres.
A ray x = o + t d enters a convex polytope at the largest t of the planes that it crosses inwards and leaves it at the
smallest t of those that it crosses outwards (Cyrus and Beck 1978). Only the window of rays that can meet a solid's
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
    """One object: its parts, the corners (8, 3) of a box around them, and the number that its hits carry.

    Of a ``counted`` one it is also found out what it would cover if nothing stood before it.
    """

    parts: Sequence[Polytope | Quadric]
    corners: Floats
    instance: int
    counted: bool = True


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
class Bank:
    """Land that rises by ``rise`` metres at ``slope`` from ``start`` metres beside the road's axis, then is level.

    ``side`` is 1 on the left and -1 on the right.
    """

    side: int
    start: float
    slope: float
    rise: float


@dataclass(frozen=True, slots=True)
class Ground:
    """A road on a plane z = ``height`` + slope . (x, y), with raised sides beyond ``half_width`` of its axis.

    The road runs along ``heading`` (radians); its axis passes the LiDAR at the lateral ``offset``. ``waves`` (K, 4) are
    undulations: wave numbers kx, ky (1/m), phase, amplitude (m). ``banks``, at most one a side, say where the land
    rises beside the road.
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
        """Metres to the left of the road's axis."""
        return np.float32(np.cos(self.heading)) * y - np.float32(np.sin(self.heading)) * x - np.float32(self.offset)

    def along(self, x: Floats, y: Floats) -> Floats:
        """Metres along the road's axis."""
        return np.float32(np.cos(self.heading)) * x + np.float32(np.sin(self.heading)) * y

    def road(self, x: Floats, y: Floats) -> Floats:
        """Height of the road surface, continued to its sides."""
        z: NDArray[Any] = np.float32(self.height) + np.float32(self.slope[0]) * x + np.float32(self.slope[1]) * y
        for kx, ky, phase, amplitude in self.waves:
            z = z + amplitude * np.sin(kx * x + ky * y + phase)
        return z

    def elevation(self, x: Floats, y: Floats) -> Floats:
        """Height of the surface, kerb and banks included."""
        lateral = self.lateral(x, y)
        z: NDArray[Any] = self.road(x, y) + np.float32(self.kerb) * (np.abs(lateral) > self.half_width)
        for bank in self.banks:
            z = z + np.clip((bank.side * lateral - bank.start) * bank.slope, 0, bank.rise).astype(np.float32)
        return z


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
    # From near to far, so that much of what is hidden need not be looked at closely.
    for solid in sorted(solids, key=lambda item: float(np.hypot(*item.corners[:, :2].T).min())):
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
    for bank in ground.banks:
        _cast_bank(rays, ground, bank, hits, reach)


def _cast_bank(rays: Rays, ground: Ground, bank: Bank, hits: Hits, reach: float) -> None:
    """The slope, and the level land above it: two planes, but for the undulations. The ray begins above the land."""
    d = rays.directions
    x0, y0, z0 = rays.origin
    across = np.array([-np.sin(ground.heading), np.cos(ground.heading)], np.float32) * np.float32(bank.side)
    start = np.float32(bank.side * ground.lateral(x0, y0) - bank.start)
    outward = across[0] * d[..., 0] + across[1] * d[..., 1]
    beneath = (hits.instance == GROUND) & (start + hits.distance * outward > 0)
    hits.distance[beneath], hits.instance[beneath] = _FAR, NOTHING
    sink = ground.slope[0] * d[..., 0] + ground.slope[1] * d[..., 1] - d[..., 2]
    above = z0 - ground.height - ground.slope[0] * x0 - ground.slope[1] * y0 - ground.kerb
    foot = bank.rise / bank.slope
    for slope, base, low, high in ((bank.slope, 0.0, 0.0, foot), (0.0, bank.rise, foot, np.inf)):
        speed = sink + np.float32(slope) * outward
        down = speed > (above - base - slope * start) / (1.3 * reach)
        speed = np.where(down, speed, 1)
        t = (above - base - slope * start) / speed
        x, y = x0 + t * d[..., 0], y0 + t * d[..., 1]
        waves = ground.road(x, y) - (ground.height + ground.slope[0] * x + ground.slope[1] * y)
        t = np.clip(t - waves / speed, 0.6 * t, 1.6 * t).astype(np.float32)
        beside = start + t * outward
        met = down & (t > 0) & (beside > low) & (beside <= high) & (t < hits.distance)
        hits.distance[met], hits.instance[met], hits.material[met] = t[met], GROUND, 1
        normal = np.array([-ground.slope[0], -ground.slope[1], 1], np.float32)
        normal[:2] -= np.float32(slope) * across
        hits.normal[met] = normal / np.linalg.norm(normal)


def _cast_solid(
    origin: Floats, directions: Floats, solid: Solid, window: Window, hits: Hits, generator: np.random.Generator
) -> None:
    shape = directions.shape[:2]
    everywhere = np.ascontiguousarray(directions.reshape(-1, 3).T)
    hull = _hull(solid.corners)
    if (hull.normals @ origin <= hull.offsets).all():
        near = np.arange(everywhere.shape[1])
    else:
        within, _ = _polytope(origin, everywhere, hull)
        near = np.nonzero(within < (_FAR if solid.counted else hits.distance[window].reshape(-1)))[0]
    if not len(near):
        return
    rays = everywhere[:, near]
    nearest = np.full(len(near), _FAR, np.float32)
    material = np.zeros(len(near), np.int16)
    normal = np.zeros((3, len(near)), np.float32)
    for part in solid.parts:
        enter, leave = _polytope(origin, rays, part) if isinstance(part, Polytope) else _quadric(origin, rays, part)
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
            face = _entered(origin, rays[:, hit], part)
            material[hit] = part.materials[face]
            normal[:, hit] = part.normals[face].T
        else:
            material[hit] = part.material
            normal[:, hit] = _outward(origin + (rays[:, hit] * enter[hit]).T, part).T
    covered = nearest < _FAR
    mask = np.zeros(everywhere.shape[1], bool)
    mask[near[covered]] = True
    if solid.counted:
        hits.alone.setdefault(solid.instance, []).append((window, mask.reshape(shape)))
    ahead = covered & (nearest < hits.distance[window].reshape(-1)[near])
    row, column = np.unravel_index(near[ahead], shape)
    hits.distance[window][row, column] = nearest[ahead]
    hits.material[window][row, column] = material[ahead]
    hits.instance[window][row, column] = solid.instance
    hits.normal[window][row, column] = normal[:, ahead].T


def _hull(corners: Floats) -> Polytope:
    """The box around ``place``'s corners, grown by a millimetre."""
    low = corners[0]
    axes = corners[[4, 2, 1]] - low
    normals = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    offsets = np.concatenate([normals @ corners[7], -normals @ low]) + np.float32(1e-3)
    return Polytope(np.concatenate([normals, -normals]), offsets, np.zeros(6, np.int16))


def _crossings(origin: Floats, rays: Floats, part: Polytope) -> tuple[Floats, Floats]:
    """Speed (K, n) along each outward normal, and the distance (K, n) at which each plane is crossed."""
    speed = part.normals @ rays
    speed[np.abs(speed) < 1e-9] = 1e-9
    return speed, (part.offsets - part.normals @ origin)[:, None] / speed


def _polytope(origin: Floats, rays: Floats, part: Polytope) -> tuple[Floats, Floats]:
    speed, t = _crossings(origin, rays, part)
    inwards = speed < 0
    enter = np.where(inwards, t, -_FAR).max(axis=0)
    leave = np.where(inwards, _FAR, t).min(axis=0)
    return np.where((enter <= leave) & (enter > 0), enter, _FAR), leave


def _entered(origin: Floats, rays: Floats, part: Polytope) -> NDArray[np.int64]:
    speed, t = _crossings(origin, rays, part)
    last: NDArray[np.int64] = np.where(speed < 0, t, -_FAR).argmax(axis=0)
    return last


def _quadric(origin: Floats, rays: Floats, part: Quadric) -> tuple[Floats, Floats]:
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


def _outward(points: Floats, part: Quadric) -> Floats:
    """Unit normals (n, 3) at points (n, 3) on the surface."""
    local = (points - part.centre) @ part.matrix.T
    if part.cylinder:
        cap = np.abs(local[:, 2:]) > 0.999
        local = local * np.where(cap, np.array([0, 0, 1], np.float32), np.array([1, 1, 0], np.float32))
    world = local @ part.matrix
    unit: Floats = world / (np.linalg.norm(world, axis=1, keepdims=True) + np.float32(1e-9))
    return unit
