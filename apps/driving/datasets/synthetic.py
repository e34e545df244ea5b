"""Synthetic street scenes with exact ground truth, generated on the fly: ray-cast sweeps, rendered images."""

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
"""Focal length of the synthetic camera at full image size."""
_CAMERA_FIELD_DEG = 90.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic(FrameData):
    """Synthetic street scenes with exact boxes.

    ``scenes`` for training and ``validation_scenes`` others, generated from ``seed``.

    Sweeps cover ``field_of_view_deg`` around the forward direction. They use the ``lidars`` (named in ``LIDARS`` in
    ``synth/sensors.py``) in turn; a name may occur several times. Vans are trained as cars, because KITTI's protocol
    ignores a van that is detected as a car.
    """

    scenes: int = 4000
    validation_scenes: int = 128
    seed: int = 7
    field_of_view_deg: float = 180.0
    lidars: tuple[str, ...] = ("hdl64e",)
    merge: tuple[tuple[str, str], ...] = (("van", "car"),)
    protocol: ClassVar[Literal["kitti", "centre"]] = "kitti"

    def frames(self, split: Split, input: Input | None = None) -> SyntheticFrames:
        """For a camera network, images at its focal length; for a LiDAR network, sweeps; without an input, both."""
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
    """The scenes of one split; different splits never share a scene. ``image_scale`` is a fraction of KITTI's size."""

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
        """Each frame is its own scene."""
        return [f"{self.split}-{number:06d}" for number in range(self.count)]

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        """Generates a scene. Without points, a coarse azimuth step saves time; it does not affect the image."""
        from apps.driving.datasets.synth.scenes import scene
        from apps.driving.datasets.synth.sensors import LIDARS

        generator = np.random.default_rng((self.seed, int.from_bytes(self.split.encode(), "little"), index))
        name = self.lidars[index % len(self.lidars)]
        if name not in LIDARS:
            raise InvalidInputError(f"data.lidars names {name}; available: {', '.join(LIDARS)}")
        sensors = replace(
            LIDARS[name],
            field_of_view_deg=self.field_of_view_deg,
            image_scale=self.image_scale if images else 0.0,
            azimuth_step_deg=LIDARS[name].azimuth_step_deg if points else 1.0,
        )
        return scene(generator, sensors=sensors, name=f"{index:06d}")

    def digest(self) -> str:
        """A digest of the settings and of the source code that generates scenes."""
        hasher = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        here = Path(__file__).parent
        for source in (Path(str(projection.__file__)), *sorted((here / "synth").glob("*.py"))):
            hasher.update(source.read_bytes())
        return hasher.hexdigest()
