"""The bony thorax: curved ribs with cartilage, sternum, clavicles, spine with osteophytes, and shoulder blades.

Frame and units are those of ``anatomy``. Cartilage beside the sternum, the ends of the first ribs and osteophytes bulge
into the lung. They are not nodules, but a detector easily mistakes them for nodules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apps.medical.datasets.synth.fields import Array, capsule_depth, ellipsoid_depth, soft_mask

if TYPE_CHECKING:
    from apps.medical.datasets.synth.anatomy import Anatomy

DISC_PITCH_MM = 24.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """One person's bones. Lengths are in mm.

    pitch, phase       distance between ribs along z, and its offset
    drop               how far a rib descends from the spine to its cartilage
    rise               how far the cartilage rises again to the sternum
    thick              thickness of the ribs relative to the average
    indent             how far cartilage bulges into the lung at the front, right and left
    first_rib          radius of the ends of the first ribs, right and left
    first_rib_at       their distance from the midline and their height above the carina
    osteophytes        (N, 4): side, height, and half axes across and along z
    cartilage_calcium  amount of calcification of the cartilage, 0 to 1
    sternum_y, spine_y, manubrium   y of sternum and spine, z of the manubrium
    """

    pitch: float
    phase: float
    drop: float
    rise: float
    thick: float
    indent: tuple[float, float]
    first_rib: tuple[float, float]
    first_rib_at: tuple[float, float]
    osteophytes: tuple[tuple[float, float, float, float], ...]
    cartilage_calcium: float
    sternum_width: float
    sternum_y: float
    spine_y: float
    manubrium: float

    @classmethod
    def draw(
        cls, random: np.random.Generator, half_width: float, half_depth: float, base: float, spine_y: float
    ) -> Skeleton:
        uniform = random.uniform
        count = int(random.integers(0, 6))
        return cls(
            pitch=uniform(21, 28),
            phase=uniform(0, 28),
            drop=uniform(55, 95),
            rise=uniform(20, 45),
            thick=uniform(0.85, 1.2),
            indent=(uniform(0, 5), uniform(0, 5)),
            first_rib=(uniform(4, 11), uniform(4, 11)),
            first_rib_at=(uniform(32, 46), uniform(43, 67)),
            osteophytes=tuple(
                (float(random.choice([-1, -1, 1])), base + 20 + DISC_PITCH_MM * int(random.integers(0, 7)), *pair)
                for pair in uniform((3, 3), (8, 7), size=(count, 2)).tolist()
            ),
            cartilage_calcium=uniform(0, 1) if random.random() < 0.6 else 0.0,
            sternum_width=uniform(14, 22),
            sternum_y=-half_depth - uniform(4, 8),
            spine_y=spine_y,
            manubrium=uniform(45, 75),
        )

    def _rib_offset(self, x: Array, y: Array, z: Array, half_depth: float) -> Array:
        """Signed distance along z to the centre line of the nearest rib."""
        front = np.clip((half_depth - y) / (2 * half_depth), 0, 1.1)
        height = z + self.drop * front - self.rise * np.exp(-((x / 42) ** 2)) * (front > 0.5)
        return np.asarray(np.mod(height - self.phase, self.pitch) - self.pitch / 2, np.float32)

    def bulge(self, x: Array, y: Array, z: Array, anatomy: Anatomy) -> Array:
        """Depth inside the bulges into the lung: cartilage at the front, ends of the first ribs, osteophytes."""
        cavity = anatomy.cavity_depth(x, y, z)
        offset = self._rib_offset(x, y, z, anatomy.half_depth)
        front = np.exp(-(((np.abs(x) - 34) / 26) ** 2)) / (1 + np.exp((y + 0.45 * anatomy.half_depth) / 5))
        indent = np.where(x < 0, *self.indent) * front * np.clip(1 - (offset / 8.5) ** 2, 0, 1)
        # Every rib indents the pleura slightly.
        depth = indent + 0.8 * np.clip(1 - (offset / 9) ** 2, 0, 1) - 0.4 - cavity
        for at, radius in self._first_ribs(anatomy):
            depth = np.maximum(depth, ellipsoid_depth(x, y, z, at, (radius * 1.4, radius, radius * 1.1)))
        for side, height, half_width, half_height in self.osteophytes:
            at = (side * 17, self.spine_y - 10, height)
            half_axes = (half_width + 3, half_width + 3, half_height)
            depth = np.maximum(depth, ellipsoid_depth(x, y, z, at, half_axes))
        return np.asarray(depth, np.float32)

    def _first_ribs(self, anatomy: Anatomy) -> Iterator[tuple[tuple[float, float, float], float]]:
        """Centre and radius of the ends of the first ribs, which are in the front wall."""
        for side, radius in zip((-1, 1), self.first_rib, strict=True):
            x, z = side * self.first_rib_at[0], anatomy.carina + self.first_rib_at[1]
            line = np.arange(-1.3 * anatomy.half_depth, 0, 0.5, dtype=np.float32)
            depth = anatomy.cavity_depth(np.full_like(line, x), line, np.full_like(line, z))
            yield (x, float(line[min(int(np.searchsorted(depth, 0.3 * radius)), len(line) - 1)]), z), radius

    def bone_depth(self, x: Array, y: Array, z: Array, anatomy: Anatomy) -> Array:
        """Depth inside bone: ribs, sternum, clavicles, first ribs, shoulder blades, vertebrae."""
        outward = -anatomy.cavity_depth(x, y, z)
        offset = self._rib_offset(x, y, z, anatomy.half_depth)
        rib = (1 - np.sqrt((offset / (6.0 * self.thick)) ** 2 + ((outward - 6.5) / (3.9 * self.thick)) ** 2)) * 4
        rib = np.where(self._cartilage(x, y, z, anatomy) > 0.5, -4, rib)
        # Shoulder blades, thick in the centre and thin at the edges.
        extent = 1 - ((np.abs(x) - 96) / 46) ** 2 - ((y - 46) / 46) ** 2 - ((z - anatomy.carina - 12) / 72) ** 2
        blade = 3.4 * np.clip(extent, -1, 0.8) - np.abs(outward - 21 - 5 * np.sin(z / 38))
        bone = np.maximum(rib, blade)
        above_manubrium = z - self.manubrium
        width = self.sternum_width * (1 + 0.6 * np.clip(above_manubrium / 40, 0, 1)) * (0.85 + 0.15 * np.cos(z / 9))
        lean = anatomy.lean * np.clip((z - anatomy.base) / (max(anatomy.top) - anatomy.base), 0, 1.2) ** 2
        plate = 1 - np.sqrt((x / width) ** 2 + ((y - lean - self.sternum_y) / 6.5) ** 4)
        bone = np.maximum(bone, np.minimum(np.minimum(plate * 7, self.manubrium + 35 - z), z - anatomy.base - 20))
        for at, radius in self._first_ribs(anatomy):
            bone = np.maximum(bone, ellipsoid_depth(x, y, z, at, (radius * 1.25, radius * 0.8, radius * 0.9)))
        for sign in (-1, 1):
            start = (sign * 22, self.sternum_y + 22, self.manubrium + 30)
            end = (sign * 130, self.sternum_y + 45, self.manubrium + 62)
            bone = np.maximum(bone, capsule_depth(x, y, z, start, end, 6.0))
        for side, height, half_width, half_height in self.osteophytes:
            at = (side * 17, self.spine_y - 10, height)
            bone = np.maximum(bone, ellipsoid_depth(x, y, z, at, (half_width, half_width, half_height)))
        return np.asarray(np.maximum(bone, self._vertebrae(x, y, z)), np.float32)

    def _vertebrae(self, x: Array, y: Array, z: Array) -> Array:
        level = np.mod(z - 4, DISC_PITCH_MM) - DISC_PITCH_MM / 2
        waist = 15.5 + 2.5 * np.clip(np.abs(level) / 10, 0, 1)
        body = (1 - np.sqrt((x / waist) ** 2 + ((y - self.spine_y) / (waist * 0.92)) ** 2)) * 14
        body = np.where(np.abs(np.abs(level) - DISC_PITCH_MM / 2) < 2.2, -3, body)
        pedicle = np.minimum(3.5 - np.abs(np.abs(x) - 12), 9 - np.abs(y - self.spine_y - 18))
        wings = np.minimum(4.5 - np.abs(y - self.spine_y - 24 - 0.25 * np.abs(x)), 32 - np.abs(x))
        spinous = np.minimum(3.5 - np.abs(x), np.minimum(y - self.spine_y - 24, self.spine_y + 52 - y))
        arch = np.maximum(np.maximum(pedicle, wings), spinous)
        return np.asarray(np.maximum(body, np.where(np.abs(level) < 6.5, arch, -4)), np.float32)

    def _cartilage(self, x: Array, y: Array, z: Array, anatomy: Anatomy) -> Array:
        """1 where ribs are cartilage, at the front; in lower ribs it extends further from the sternum."""
        max_x = 38 + 0.35 * np.clip(60 - z, 0, 150)
        return np.asarray((np.abs(x) < max_x) & (y < -0.35 * anatomy.half_depth) & (np.abs(x) > 12), np.float32)

    def cartilage_depth(self, x: Array, y: Array, z: Array, anatomy: Anatomy) -> Array:
        """Depth inside costal cartilage, which is thicker than bone."""
        outward = -anatomy.cavity_depth(x, y, z)
        offset = self._rib_offset(x, y, z, anatomy.half_depth)
        depth = (1 - np.sqrt((offset / 8.0) ** 2 + ((outward - 5) / 6.0) ** 2)) * 6
        return np.asarray(np.where(self._cartilage(x, y, z, anatomy) > 0.5, depth, -4), np.float32)


def paint_bone(image: Array, depth: Array, texture: Array) -> Array:
    """Paints bone with a cortex of about 2 mm around marrow into ``image`` (HU), and returns the result."""
    density = 170 + 45 * texture + 560 * soft_mask(1.7 - np.abs(depth - 0.8), 1.2)
    return np.asarray(image + soft_mask(depth, 1.2) * (density - image), np.float32)


def paint_cartilage(image: Array, depth: Array, texture: Array, calcium: float) -> Array:
    """Paints cartilage of about 100 HU, with a rim and clumps of ``calcium``, and returns the result."""
    rim = soft_mask(1.1 - np.abs(depth - 1.0), 1.0) * np.clip(texture + 2 * calcium - 1, 0, 1)
    clumps = np.clip(texture - 2.2 + 1.6 * calcium, 0, 1) * soft_mask(depth - 1.5, 1.5)
    density = 95 + 12 * texture + calcium * (420 * rim + 380 * clumps)
    return np.asarray(image + soft_mask(depth, 1.2) * (density - image), np.float32)
