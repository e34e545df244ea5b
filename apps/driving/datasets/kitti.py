"""KITTI object detection as it is published: ``training/{velodyne,image_2,calib,label_2}``, ``ImageSets/*.txt``.

Geiger, Lenz and Urtasun 2012. The 7,481 training frames are parted by ImageSets/train.txt and val.txt where those are
there (Chen et al. 2015, as mmdet3d and OpenPCDet use them); otherwise every fifth frame validates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from apps.driving.adapters import kitti
from apps.driving.adapters.projection import to_camera, to_pixels
from apps.driving.datasets.frame_data import FrameData, Input, Split
from apps.driving.datasets.sampling import SweepSampling
from apps.driving.datasets.split import every_fifth, listing_digest, names_in
from apps.driving.types import Camera, Floats, Frame
from shared.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Kitti(FrameData):
    """KITTI object detection: sweeps and images with boxes.

    ``root`` holds ``training``, or its folders themselves. Boxes of DontCare regions are no objects.

    KITTI labels what its camera sees: sweeps are cut to that. A van is learnt as a car, since the benchmark counts it
    neither for nor against; ``--data.merge`` without words turns that off, and vans are background then, as in
    mmdet3d's configuration. Objects are pasted from other sweeps as there: up to 15 of each class.
    """

    root: Path
    merge: tuple[tuple[str, str], ...] = (("van", "car"),)
    sweeps: SweepSampling = field(default_factory=lambda: SweepSampling(paste=15, lift_m=0.0, most_lost=0.0))
    protocol: ClassVar[Literal["kitti", "centre"]] = "kitti"
    usual: ClassVar[tuple[str, ...]] = ("pedestrian", "cyclist", "car")
    called: ClassVar[str] = "KITTI object frames"

    def frames(self, split: Split, input: Input | None = None) -> KittiFrames:
        return KittiFrames(home=self._home(), ids=tuple(self._ids(split)))

    def _home(self) -> Path:
        for home in (self.root / "training", self.root):
            if (home / "label_2").is_dir():
                return home
        raise InvalidInputError(
            f"{self.root} has no folder training/label_2; --data.root is the folder in which KITTI's zips were unpacked"
        )

    def _ids(self, split: Split) -> list[str]:
        home = self._home()
        for place in (home, home.parent):
            listed = place / "ImageSets" / ("train.txt" if split == "train" else "val.txt")
            if listed.is_file():
                return names_in(listed)
        return every_fifth([file.stem for file in (home / "label_2").glob("*.txt")], split)


@dataclass(frozen=True, kw_only=True)
class KittiFrames:
    """Frames of a KITTI folder by their numbers."""

    home: Path
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def scenes(self) -> Sequence[str]:
        """KITTI's object frames do not say which drive they are from."""
        return [f"frame {frame_id}" for frame_id in self.ids]

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        frame = kitti.read_frame(self.home, self.ids[index])
        camera = next(iter(frame.cameras.values()), None)
        if frame.truth is None:
            raise InvalidInputError(f"frame {self.ids[index]} of {self.home} has no label_2/{self.ids[index]}.txt")
        if frame.points_lidar_m is not None and camera is not None:
            frame = replace(frame, points_lidar_m=in_view(frame.points_lidar_m, camera))
        return frame

    def digest(self) -> str:
        files = [
            file
            for frame_id in self.ids
            for part, suffixes in (("velodyne", ("bin",)), ("image_2", ("png", "jpg")), ("calib", ("txt",)))
            for suffix in suffixes
            if (file := self.home / part / f"{frame_id}.{suffix}").is_file()
        ]
        labels = [self.home / "label_2" / f"{frame_id}.txt" for frame_id in self.ids]
        return listing_digest(self.home, [*files, *labels], "kitti")


def in_view(points_N4: Floats, camera: Camera) -> Floats:
    """The points (M, 4) that a camera's image shows."""
    there = to_camera(points_N4[:, :3], camera.lidar_to_camera)
    ahead = there[:, 2] > 0
    pixels = to_pixels(there[ahead], camera.intrinsics)
    height, width = camera.image_HWC.shape[:2]
    seen = np.zeros(len(points_N4), bool)
    seen[ahead] = ((pixels >= 0) & (pixels < (width, height))).all(axis=1)
    return points_N4[seen]
