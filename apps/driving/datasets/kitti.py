"""KITTI object detection as published: ``training/{velodyne,image_2,calib,label_2}``, ``ImageSets/*.txt``.

Geiger, Lenz and Urtasun 2012. ImageSets/train.txt and val.txt, if present, split the 7,481 training frames (Chen et al.
2015, as used by mmdet3d and OpenPCDet); otherwise every fifth frame is for validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from apps.driving.adapters import kitti
from apps.driving.adapters.kitti_layouts import IMAGES
from apps.driving.adapters.point_files import SWEEPS
from apps.driving.adapters.projection import to_camera, to_pixels
from apps.driving.datasets.frame_data import FrameData, Input, Split
from apps.driving.datasets.sampling import SweepSampling
from apps.driving.datasets.split import every_fifth, listing_digest, names_in
from apps.driving.types import Camera, Floats, Frame, LidarInput
from shared.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Kitti(FrameData):
    """KITTI object detection: sweeps and images with boxes.

    ``root`` holds ``training``, or the folders in it. DontCare regions are not used as objects.

    KITTI labels only what its camera sees, so sweeps are cropped to the camera's view. Vans are trained as cars,
    because the benchmark ignores them; an empty ``--data.merge`` turns that off and makes vans background, as in
    mmdet3d's configuration. As there, objects are pasted from other sweeps: up to 15 of each class.
    """

    root: Path
    merge: tuple[tuple[str, str], ...] = (("van", "car"),)
    sweeps: SweepSampling = field(default_factory=lambda: SweepSampling(paste=15, lift_m=0.0, most_lost=0.0))
    protocol: ClassVar[Literal["kitti", "centre"]] = "kitti"
    default_classes: ClassVar[tuple[str, ...]] = ("pedestrian", "cyclist", "car")
    description: ClassVar[str] = "KITTI object frames"

    def frames(self, split: Split, input: Input | None = None) -> KittiFrames:
        return KittiFrames(frames_root=self._frames_root(), ids=tuple(self._ids(split)))

    def facts(self, input: Input) -> dict[str, Any]:
        """As ``FrameData.facts``, and how many sweeps cannot be cropped, because the size of their image is unknown."""
        facts = FrameData.facts(self, input)
        training = KittiFrames(frames_root=self._frames_root(), ids=tuple(self._ids("train")))
        if isinstance(input, LidarInput) and (count := training.without_image()):
            facts["without image_2"] = (
                f"{count} of {len(training)} training frames: their sweeps are not cropped to the camera's view, and "
                "what KITTI does not label outside of it is trained as background; add the images, unless your labels "
                "cover all of the sweep"
            )
        return facts

    def _frames_root(self) -> Path:
        for frames_root in (self.root / "training", self.root):
            if (frames_root / "label_2").is_dir():
                return frames_root
        raise InvalidInputError(
            f"{self.root} has no folder training/label_2; set --data.root to the folder with KITTI's unpacked zips"
        )

    def _ids(self, split: Split) -> list[str]:
        frames_root = self._frames_root()
        for place in (frames_root, frames_root.parent):
            listed = place / "ImageSets" / ("train.txt" if split == "train" else "val.txt")
            if listed.is_file():
                return names_in(listed)
        return every_fifth([file.stem for file in (frames_root / "label_2").glob("*.txt")], split)


@dataclass(frozen=True, kw_only=True)
class KittiFrames:
    """Frames of a KITTI folder by their ids."""

    frames_root: Path
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def scenes(self) -> Sequence[str]:
        """KITTI's object frames do not record drives, so every frame is a scene."""
        return [f"frame {frame_id}" for frame_id in self.ids]

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        frame = kitti.read_frame(self.frames_root, self.ids[index])
        camera = next(iter(frame.cameras.values()), None)
        if frame.truth is None:
            raise InvalidInputError(
                f"frame {self.ids[index]} of {self.frames_root} has no label_2/{self.ids[index]}.txt"
            )
        if frame.points_lidar_m is not None and camera is not None:
            frame = replace(frame, points_lidar_m=in_view(frame.points_lidar_m, camera))
        return frame

    def without_image(self) -> int:
        """The number of frames without a file in image_2."""
        return sum(not self._files(frame_id, "image_2", IMAGES) for frame_id in self.ids)

    def _files(self, frame_id: str, part: str, suffixes: Sequence[str]) -> list[Path]:
        files = (self.frames_root / part / f"{frame_id}{suffix}" for suffix in suffixes)
        return [file for file in files if file.is_file()]

    def digest(self) -> str:
        files = [
            file
            for frame_id in self.ids
            for part, suffixes in (("velodyne", SWEEPS), ("image_2", IMAGES), ("calib", (".txt",)))
            for file in self._files(frame_id, part, suffixes)
        ]
        labels = [self.frames_root / "label_2" / f"{frame_id}.txt" for frame_id in self.ids]
        return listing_digest(self.frames_root, [*files, *labels], "kitti")


def in_view(points_N4: Floats, camera: Camera) -> Floats:
    """The points (M, 4) that are visible in a camera's image."""
    in_camera = to_camera(points_N4[:, :3], camera.lidar_to_camera)
    ahead = in_camera[:, 2] > 0
    pixels = to_pixels(in_camera[ahead], camera.intrinsics)
    height, width = camera.image_HWC.shape[:2]
    visible = np.zeros(len(points_N4), bool)
    visible[ahead] = ((pixels >= 0) & (pixels < (width, height))).all(axis=1)
    return points_N4[visible]
