"""Synthetic scenes, made once by all processors and packed into memory-mapped files. No torch here: workers import it.

A pack is a directory of parts of ``PART`` scenes. Its name is the digest of what decides its content: the settings and
the source of the generator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.driving.types import Boxes3D
from shared.data.build_cache import get_or_build, parallel_map

PART = 32
_KINDS = {"car": "car", "van": "car", "pedestrian": "pedestrian", "cyclist": "cyclist"}
"""What is learnt as what. KITTI's protocol counts a van found as a car neither for nor against."""
LABELS = ("pedestrian", "cyclist", "car")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """``count`` scenes of ``seed``: points, or with ``image_scale`` images of that fraction of KITTI's size instead.

    Scenes of different ``split`` never coincide.
    """

    count: int
    seed: int
    split: str
    field_of_view_deg: float = 180.0
    image_scale: float = 0.0

    def parts(self) -> list[Path]:
        """The parts, made first where they are not in the user's cache yet."""
        home = get_or_build(f"driving-{self._digest()}", self._make)
        return sorted(part for part in home.iterdir() if part.is_dir())

    def _digest(self) -> str:
        hasher = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        here = Path(__file__).parent
        for source in [
            Path(__file__),
            here.parent / "adapters" / "projection.py",
            *sorted((here / "synth").glob("*.py")),
        ]:
            hasher.update(source.read_bytes())
        return hasher.hexdigest()[:24]

    def _make(self, folder: Path) -> None:
        parallel_map(write_part, ((self, start, folder) for start in range(0, self.count, PART)))


def write_part(pack: Pack, start: int, folder: Path) -> None:
    """Makes the scenes from number ``start`` on and writes them as one part."""
    from apps.driving.datasets.synth.scenes import Sensors, scene

    # What a camera sees does not depend on the beams; a coarse turn of them costs little.
    step = 1.0 if pack.image_scale else Sensors().azimuth_step_deg
    sensors = Sensors(field_of_view_deg=pack.field_of_view_deg, image_scale=pack.image_scale, azimuth_step_deg=step)
    points, images, truths, intrinsics, mounts = [], [], [], [], []
    for number in range(start, min(start + PART, pack.count)):
        split = int.from_bytes(pack.split.encode(), "little")
        generator = np.random.default_rng((pack.seed, split, number))
        frame = scene(generator, sensors=sensors)
        assert frame.truth is not None and frame.points_lidar_m is not None
        truths.append(rows(frame.truth))
        if pack.image_scale:
            camera = next(iter(frame.cameras.values()))
            images.append(camera.image_HWC)
            intrinsics.append(camera.intrinsics)
            mounts.append(camera.lidar_to_camera)
        else:
            points.append(frame.points_lidar_m.astype(np.float32))
    part = folder / f"{start:07d}"
    part.mkdir()
    arrays: dict[str, Any] = {"truth": np.concatenate(truths), "truth_offsets": _offsets(truths)}
    if pack.image_scale:
        np.save(part / "images.npy", np.stack(images))
        arrays |= {"intrinsics": np.stack(intrinsics), "lidar_to_camera": np.stack(mounts)}
    else:
        np.save(part / "points.npy", np.concatenate(points))
        arrays["point_offsets"] = _offsets(points)
    np.savez(part / "index.npz", **arrays)


def rows(truth: Boxes3D) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """(N, 15) of what is learnt: box (7), label, returns, truncation, occlusion, 2D box (4); unknown is -1 or NaN."""
    count = len(truth)
    labels = np.array([LABELS.index(_KINDS[name]) if name in _KINDS else -1 for name in truth.names], np.float32)
    unknown = np.full(count, -1.0, np.float32)
    returns = unknown if truth.point_counts is None else truth.point_counts
    truncation = unknown if truth.truncation is None else truth.truncation
    occlusion = unknown if truth.occlusion is None else truth.occlusion
    box_2d = np.full((count, 4), np.nan, np.float32) if truth.box_2d is None else truth.box_2d
    table = np.concatenate([truth.array, np.stack([labels, returns, truncation, occlusion], 1), box_2d], axis=1)
    return table[labels >= 0].astype(np.float32)


def _offsets(parts: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
