"""Branching trees that fill a lung: arteries and veins, and bronchi beside the arteries.

Each tree grows outwards from the hilum. Targets all over the lung are connected, nearest first, to the point of the
tree that minimises the new length plus a fraction of the path to the hilum (Cuntz et al., One Rule to Grow Them All,
PLoS Comput. Biol. 6(8), 2010). Radii follow Murray's law (Proc. Natl. Acad. Sci. 12, 1926): r_parent^n = sum r_child^n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.medical.datasets.synth.fields import Array, Coordinates, soft_mask

DepthFunction = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True, slots=True)
class Tubes:
    """Straight tube segments: ``start`` and ``end`` (N, 3) in mm, ``radius`` at both ends (N, 2) in mm."""

    start: Array
    end: Array
    radius: Array

    def overlapping(self, low_mm: NDArray[np.floating], high_mm: NDArray[np.floating]) -> Tubes:
        """The segments that may reach into a box."""
        reach = self.radius.max(axis=1, keepdims=True) + 2
        kept = np.all((np.minimum(self.start, self.end) - reach < high_mm), axis=1)
        kept &= np.all((np.maximum(self.start, self.end) + reach > low_mm), axis=1)
        return Tubes(self.start[kept], self.end[kept], self.radius[kept])

    def paint(self, occupancy: Array, grid: Coordinates, edge_mm: float, extra_radius_mm: float = 0.0) -> None:
        """Adds the tubes, widened by ``extra_radius_mm``, to ``occupancy`` (0 to 1), by the maximum of both."""
        axes = [axis.ravel() for axis in grid]
        low = np.array([axis[0] for axis in axes])
        step = np.array([axis[1] - axis[0] for axis in axes])
        margin = (self.radius.max(axis=1) + extra_radius_mm + edge_mm)[:, None]
        first = np.floor((np.minimum(self.start, self.end) - margin - low) / step).astype(int).clip(0)
        last = np.ceil((np.maximum(self.start, self.end) + margin - low) / step).astype(int) + 1
        axis = self.end - self.start
        squared_length = np.maximum((axis**2).sum(axis=1), 1e-6)
        for n in range(len(self.start)):
            window = tuple(slice(a, b) for a, b in zip(first[n], last[n], strict=True))
            x, y, z = grid[0][window[0]], grid[1][:, window[1]], grid[2][:, :, window[2]]
            if not (x.size and y.size and z.size):
                continue
            dx, dy, dz = x - self.start[n, 0], y - self.start[n, 1], z - self.start[n, 2]
            ux, uy, uz = axis[n] / squared_length[n]
            position = np.clip(dx * ux + dy * uy + dz * uz, 0, 1)
            squared_distance = (dx - position * axis[n, 0]) ** 2
            squared_distance = squared_distance + (dy - position * axis[n, 1]) ** 2
            squared_distance += (dz - position * axis[n, 2]) ** 2
            radius = self.radius[n, 0] + extra_radius_mm + position * (self.radius[n, 1] - self.radius[n, 0])
            # A tube that is thinner than the edge fills it only partially.
            fraction = np.minimum(1, 2 * radius / edge_mm)
            filled = soft_mask(radius - np.sqrt(squared_distance), edge_mm) * fraction
            target = occupancy[window]
            np.maximum(target, filled, out=target)


def concatenate(parts: list[Tubes]) -> Tubes:
    """The segments of several sets."""
    return Tubes(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("start", "end", "radius")))


def grow_tree(
    random: np.random.Generator,
    depth_mm: DepthFunction,
    root_mm: Array,
    hilum_mm: Array,
    targets_mm: Array,
    *,
    leaf_radius_mm: float,
    exponent: float,
    segment_mm: float = 6.5,
    balance: float = 0.35,
) -> Tubes:
    """Grows a tree from the root through the hilum to the targets (N, 3); segments are about ``segment_mm`` long.

    ``depth_mm`` is the depth in the lung, positive inside. Branches that end outside the lung are cut off.
    """
    order = np.argsort(np.linalg.norm(targets_mm - hilum_mm, axis=1))
    capacity = 2 + 16 * len(targets_mm)
    node = np.empty((capacity, 3), np.float32)
    parent = np.full(capacity, -1)
    path = np.zeros(capacity, np.float32)
    node[0], node[1], parent[1], count = root_mm, hilum_mm, 0, 2
    for target in targets_mm[order]:
        offset = target - node[1:count]
        distance = np.einsum("ij,ij->i", offset, offset)
        # The path to the hilum counts besides the new length, so that vessels radiate from the hilum.
        nearest = 1 + int(np.argmin(np.sqrt(distance) + balance * path[1:count]))
        segments = min(int(np.sqrt(distance[nearest - 1]) // segment_mm) + 1, 14)
        begin, length = node[nearest].copy(), np.sqrt(distance[nearest - 1])
        bend = random.normal(size=3).astype(np.float32) * 0.09 * length
        previous = nearest
        for n in range(1, segments + 1):
            fraction = n / segments
            node[count] = begin + fraction * (target - begin) + bend * (4 * fraction * (1 - fraction)) * (segments > 1)
            path[count] = path[previous] + length / segments
            parent[count], previous, count = previous, count, count + 1
    node, parent = node[:count], parent[:count]
    power = np.zeros(count)
    children = np.bincount(parent[1:], minlength=count)
    power[children == 0] = (leaf_radius_mm * random.uniform(0.7, 1.4, int((children == 0).sum()))) ** exponent
    for n in range(count - 1, 0, -1):
        power[parent[n]] += power[n]
    radius = np.minimum(power ** (1 / exponent), 9.0).astype(np.float32)
    start, end = node[parent[1:]], node[1:]
    kept = depth_mm(node[:, 0], node[:, 1], node[:, 2]) > -1.0
    kept[:2] = True
    # The ancestors of a kept node are kept too, so that the tree has no gaps.
    for n in range(count - 1, 1, -1):
        kept[parent[n]] |= kept[n]
    # A segment starts with its own radius and tapers towards that of its thickest child.
    thickest = np.zeros(count, np.float32)
    np.maximum.at(thickest, parent[1:], radius[1:])
    ends = np.where(thickest[1:] > 0, np.maximum(0.5 * (radius[1:] + thickest[1:]), 0.3), 0.7 * radius[1:])
    return Tubes(start[kept[1:]], end[kept[1:]], np.stack([radius[1:], ends], 1).astype(np.float32)[kept[1:]])


def bronchi(random: np.random.Generator, arteries: Tubes, min_radius_mm: float) -> Tubes:
    """Airways beside the arteries that have at least ``min_radius_mm``; the radii are those of the lumen."""
    thick = arteries.radius[:, 0] > min_radius_mm
    start, end, radius = arteries.start[thick], arteries.end[thick], arteries.radius[thick]
    side = random.normal(size=3)
    side /= np.linalg.norm(side)
    shift = (side * (2.1 * radius[:, :1] + 0.8)).astype(np.float32)
    lumen = radius * np.float32(random.uniform(0.7, 1.0))
    return Tubes(start + shift, end + shift, lumen)


def tube(start: object, end: object, radius: float) -> Tubes:
    """A single segment of constant radius."""
    first, last = (np.asarray(point, np.float32)[None] for point in (start, end))
    return Tubes(first, last, np.full((1, 2), radius, np.float32))
