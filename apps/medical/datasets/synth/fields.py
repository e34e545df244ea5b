"""Smooth random fields, signed depths of simple shapes, and soft masks, of which phantoms consist.

Coordinates are in mm, and arrays are indexed (x, y, z). A grid is three coordinate arrays that broadcast, with shapes
(X, 1, 1), (1, Y, 1) and (1, 1, Z).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Coordinates = tuple[Array, Array, Array]


def open_grid(x_mm: NDArray[np.floating], y_mm: NDArray[np.floating], z_mm: NDArray[np.floating]) -> Coordinates:
    """The grid over three axes."""
    x, y, z = (np.asarray(axis, np.float32) for axis in (x_mm, y_mm, z_mm))
    return x[:, None, None], y[None, :, None], z[None, None, :]


def soft_mask(depth_mm: Array, width_mm: float) -> Array:
    """The fraction of each point inside a shape, from 0 to 1, for its signed depth and an edge of the given width."""
    return np.asarray(np.clip(depth_mm * np.float32(1 / width_mm) + np.float32(0.5), 0, 1))


@dataclass(frozen=True, slots=True)
class Waves:
    """A smooth random field of zero mean: a sum of plane waves, evaluated anywhere without a stored grid.

    wave_vectors  (N, 3), radians per mm;  phases  (N,);  amplitudes  (N,)
    """

    wave_vectors: Array
    phases: Array
    amplitudes: Array

    @classmethod
    def draw(
        cls,
        random: np.random.Generator,
        *,
        deviation: float,
        wavelengths_mm: tuple[float, float],
        count: int = 10,
    ) -> Waves:
        """A random field with the given standard deviation and wavelengths, which are distributed log-uniformly."""
        direction = random.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        shortest, longest = np.log(wavelengths_mm)
        wavelength = np.exp(random.uniform(shortest, longest, size=(count, 1)))
        amplitude = random.uniform(0.5, 1, count)
        amplitude *= deviation * np.sqrt(2 / np.sum(amplitude**2))
        phases = random.uniform(0, 2 * np.pi, count)
        vectors = direction * (2 * np.pi / wavelength)
        return cls(vectors.astype(np.float32), phases.astype(np.float32), amplitude.astype(np.float32))

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """The field on a grid, or at points given by three arrays of equal shape."""
        if x.ndim == 3 and x.shape[1:] == (1, 1):
            return self._on_grid(x.ravel(), y.ravel(), z.ravel())
        angle = self.phases + np.stack([x, y, z], -1).astype(np.float32) @ self.wave_vectors.T
        return np.asarray(np.sin(angle) @ self.amplitudes)

    def _on_grid(self, x: Array, y: Array, z: Array) -> Array:
        # exp(i k p) is separable over the axes, so the sum over waves is one matrix product.
        k = self.wave_vectors
        along_x = self.amplitudes[:, None] * np.exp(1j * (self.phases[:, None] + k[:, :1] * x))
        along_yz = (np.exp(1j * k[:, 1:2] * y)[:, :, None] * np.exp(1j * k[:, 2:] * z)[:, None, :]).reshape(len(k), -1)
        left = np.concatenate([along_x.imag, along_x.real]).astype(np.float32)
        right = np.concatenate([along_yz.real, along_yz.imag]).astype(np.float32)
        return (left.T @ right).reshape(len(x), len(y), len(z))


def smooth_min(a: Array, b: Array, width_mm: float) -> Array:
    """The minimum of two depths, smoothed where they differ by less than ``width_mm``, so that shapes meet in a fillet.

    The polynomial form of Quilez, "smooth minimum" (iquilezles.org).
    """
    closeness = np.maximum(np.float32(width_mm) - np.abs(a - b), 0)
    return np.asarray(np.minimum(a, b) - closeness * closeness * np.float32(0.25 / width_mm), np.float32)


def ellipsoid_depth(x: Array, y: Array, z: Array, centre: Sequence[float], half_axes: Sequence[float]) -> Array:
    """Depth inside an ellipsoid, exact on its shortest axis."""
    dx, dy, dz = ((axis - c) / np.float32(h) for axis, c, h in zip((x, y, z), centre, half_axes, strict=True))
    return np.asarray((1 - np.sqrt(dx * dx + dy * dy + dz * dz)) * np.float32(min(half_axes)), np.float32)


def capsule_depth(x: Array, y: Array, z: Array, start: Sequence[float], end: Sequence[float], radius: float) -> Array:
    """Depth inside a capsule: a tube with round ends."""
    axis = np.subtract(end, start).astype(np.float32)
    dx, dy, dz = x - np.float32(start[0]), y - np.float32(start[1]), z - np.float32(start[2])
    position = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / np.float32(axis @ axis), 0, 1)
    dx, dy, dz = dx - position * axis[0], dy - position * axis[1], dz - position * axis[2]
    return np.asarray(np.float32(radius) - np.sqrt(dx * dx + dy * dy + dz * dz), np.float32)


def interpolate_on_grid(
    function: Callable[[Array, Array, Array], Array], grid: Coordinates, step_mm: float = 2.6
) -> Array:
    """A smooth function of position on a grid, computed every ``step_mm`` and interpolated linearly in between."""
    axes = [axis.ravel() for axis in grid]
    counts = [max(2, int(np.ceil((axis[-1] - axis[0]) / step_mm)) + 1) for axis in axes]
    coarse = [np.linspace(axis[0], axis[-1], n, dtype=np.float32) for axis, n in zip(axes, counts, strict=True)]
    values = np.broadcast_to(function(*open_grid(*coarse)), counts)
    for axis in (2, 1, 0):
        at = (axes[axis] - axes[axis][0]) * ((counts[axis] - 1) / max(axes[axis][-1] - axes[axis][0], 1e-6))
        lower = np.minimum(at.astype(int), counts[axis] - 2)
        weights = np.zeros((counts[axis], len(at)), np.float32)
        index = np.arange(len(at))
        weights[lower, index], weights[lower + 1, index] = 1 - (at - lower), at - lower
        values = np.moveaxis(np.tensordot(values, weights, (axis, 0)), -1, axis)
    return np.ascontiguousarray(values, np.float32)
