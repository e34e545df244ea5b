"""Where a piece of a phantom lies in the chest: its middle, and how it is turned and resized."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from apps.medical.datasets.synth.anatomy import Anatomy
from apps.medical.datasets.synth.fields import Array


@dataclass(frozen=True, slots=True)
class Frame:
    """``turn`` takes offsets from the middle in the piece (mm) to offsets in the chest (mm)."""

    middle_mm: Array
    turn: Array = field(default_factory=lambda: np.eye(3, dtype=np.float32))

    @classmethod
    def draw(cls, random: np.random.Generator, middle_mm: Array) -> Frame:
        """Half of all upright; the others turned by some degrees about each axis, and resized by up to a fifth."""
        if random.random() < 0.5:
            return cls(middle_mm)
        a, b, c = random.normal(size=3) * (0.2, 0.1, 0.1)
        about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        about_y = np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
        zoom = np.exp(random.uniform(np.log(0.82), np.log(1.22))) * np.exp(random.normal(size=3) * 0.03)
        return cls(middle_mm, (about_z @ about_x @ about_y @ np.diag(zoom)).astype(np.float32))

    @property
    def upright(self) -> bool:
        return bool(np.array_equal(self.turn, np.eye(3)))

    def to_chest(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Positions in the chest of positions in the piece; arrays that broadcast, or of one shape."""
        rows = [self.turn[n, 0] * x + self.turn[n, 1] * y + self.turn[n, 2] * z + self.middle_mm[n] for n in range(3)]
        return rows[0], rows[1], rows[2]

    def from_chest(self, points_mm: Array) -> Array:
        """Positions (n, 3) in the piece of positions in the chest."""
        return np.asarray((points_mm - self.middle_mm) @ np.linalg.inv(self.turn).T, np.float32)

    def lung_depth(self, anatomy: Anatomy, x: Array, y: Array, z: Array) -> Array:
        """Depth in the lung, in mm of the chest, at positions in the piece."""
        if self.upright:
            return anatomy.lung_depth(x + self.middle_mm[0], y + self.middle_mm[1], z + self.middle_mm[2])
        return anatomy.lung_depth(*self.to_chest(x, y, z))
