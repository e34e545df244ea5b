"""Synthetic street scenes with exact truth, made on the spot: ray-cast sweeps, rendered images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from apps.driving.adapters import projection
from apps.driving.datasets.frame_data import FrameData, Input, Split
from apps.driving.types import CameraInput, Frame
from shared.errors import InvalidInputError

KITTI_FOCAL_PX = 721.54
"""Focal length of the synthetic camera at full size."""
_CAMERA_FIELD_DEG = 90.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic(FrameData):
    """Synthetic street scenes with exact boxes.

    ``scenes`` to learn from and ``validation_scenes`` others, drawn from ``seed``.

    Sweeps cover ``field_of_view_deg`` about the forward direction. They are those of ``lidars`` (``LIDARS`` in
    ``synth/sensors.py``), of one after the other; a name may stand there several times. KITTI's protocol counts a van
    found as a car neither for nor against; it is learnt as one.
    """

    scenes: int = 4000
    validation_scenes: int = 128
    seed: int = 7
    field_of_view_deg: float = 180.0
    lidars: tuple[str, ...] = ("hdl64e",)
    merge: tuple[tuple[str, str], ...] = (("van", "car"),)
    protocol: ClassVar[Literal["kitti", "centre"]] = "kitti"

    def frames(self, split: Split, input: Input | None = None) -> SyntheticFrames:
        """For a camera network images at its focal length and no sweeps; for a LiDAR network no images; else both."""
        return SyntheticFrames(
            count=self.scenes if split == "train" else self.validation_scenes,
            seed=self.seed,
            split=split,
            lidars=("hdl64e",) if isinstance(input, CameraInput) else self.lidars,
            field_of_view_deg=_CAMERA_FIELD_DEG if isinstance(input, CameraInput) else self.field_of_view_deg,
            image_scale=(
                input.training_focal_px / KITTI_FOCAL_PX if isinstance(input, CameraInput) else float(input is None)
            ),
        )

    def fingerprint(self) -> dict[str, Any]:
        return {
            "description": f"{self.scenes} synthetic scenes (ray-cast or rendered, exact boxes); "
            f"{self.validation_scenes} others for validation",
            "synthetic": True,
            "scenes": self.scenes,
            "seed": self.seed,
            "lidars": list(self.lidars),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticFrames:
    """Scenes of one split; those of different splits never coincide. ``image_scale`` is a share of KITTI's size."""

    count: int
    seed: int
    split: str
    lidars: tuple[str, ...] = ("hdl64e",)
    field_of_view_deg: float = 180.0
    image_scale: float = 0.0

    def __len__(self) -> int:
        return self.count

    @property
    def scenes(self) -> Sequence[str]:
        """Every scene stands by itself."""
        return [f"{self.split}-{number:06d}" for number in range(self.count)]

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        """Makes a scene; what a camera sees does not depend on the beams, and a coarse turn of them costs little."""
        from apps.driving.datasets.synth.scenes import scene
        from apps.driving.datasets.synth.sensors import LIDARS

        generator = np.random.default_rng((self.seed, int.from_bytes(self.split.encode(), "little"), index))
        name = self.lidars[index % len(self.lidars)]
        if name not in LIDARS:
            raise InvalidInputError(f"data.lidars names {name}; there are {', '.join(LIDARS)}")
        sensors = replace(
            LIDARS[name],
            field_of_view_deg=self.field_of_view_deg,
            image_scale=self.image_scale if images else 0.0,
            azimuth_step_deg=LIDARS[name].azimuth_step_deg if points else 1.0,
        )
        return scene(generator, sensors=sensors, name=f"{index:06d}")

    def digest(self) -> str:
        """Of the settings and the source of what makes scenes."""
        hasher = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        here = Path(__file__).parent
        for source in (Path(str(projection.__file__)), *sorted((here / "synth").glob("*.py"))):
            hasher.update(source.read_bytes())
        return hasher.hexdigest()
