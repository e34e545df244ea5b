"""The position of an image in a chest: its centre, rotation and scale."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from apps.medical.datasets.synth.anatomy import Anatomy
from apps.medical.datasets.synth.fields import Array


@dataclass(frozen=True, slots=True)
class Frame:
    """``matrix`` maps offsets (mm) from the image's centre to offsets (mm) in the chest."""

    centre_mm: Array
    matrix: Array = field(default_factory=lambda: np.eye(3, dtype=np.float32))

    @classmethod
    def draw(cls, random: np.random.Generator, centre_mm: Array) -> Frame:
        """Half of the frames are upright, the others rotated by a few degrees per axis and scaled by about a fifth."""
        if random.random() < 0.5:
            return cls(centre_mm)
        a, b, c = random.normal(size=3) * (0.2, 0.1, 0.1)
        about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        about_y = np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
        zoom = np.exp(random.uniform(np.log(0.82), np.log(1.22))) * np.exp(random.normal(size=3) * 0.03)
        return cls(centre_mm, (about_z @ about_x @ about_y @ np.diag(zoom)).astype(np.float32))

    @property
    def is_upright(self) -> bool:
        return bool(np.array_equal(self.matrix, np.eye(3)))

    def to_chest(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Maps positions in the image to positions in the chest; arrays that broadcast, or of equal shape."""
        rows = [
            self.matrix[n, 0] * x + self.matrix[n, 1] * y + self.matrix[n, 2] * z + self.centre_mm[n] for n in range(3)
        ]
        return rows[0], rows[1], rows[2]

    def from_chest(self, points_mm: Array) -> Array:
        """Maps positions (N, 3) in the chest to positions in the image."""
        return np.asarray((points_mm - self.centre_mm) @ np.linalg.inv(self.matrix).T, np.float32)

    def lung_depth(self, anatomy: Anatomy, x: Array, y: Array, z: Array) -> Array:
        """Depth inside the lung, in mm of the chest, at positions in the image."""
        if self.is_upright:
            return anatomy.lung_depth(x + self.centre_mm[0], y + self.centre_mm[1], z + self.centre_mm[2])
        return anatomy.lung_depth(*self.to_chest(x, y, z))
