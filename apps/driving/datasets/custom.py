"""Sweeps of one's own with boxes, in the layout of OpenPCDet's and mmdet3d's custom data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from apps.driving.adapters import custom
from apps.driving.adapters.kitti_layouts import TEXTS, named
from apps.driving.adapters.point_files import SWEEPS
from apps.driving.datasets.frame_data import FrameData, Input, Split
from apps.driving.datasets.split import every_fifth, listing_digest, names_in
from apps.driving.types import BoxInput, CameraInput, Frame
from shared.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Custom(FrameData):
    """Sweeps of your own with boxes, as OpenPCDet and mmdet3d take them.

    ``root`` holds ``points/ID.bin`` (float32 x, y, z, intensity), ``.npy`` or ``.pcd``, and ``labels/ID.txt`` with a
    row for each object: x y z length width height yaw class. Metres in the LiDAR's frame, x forward, y left, z up.

    Where a frame has no object its label file is empty. ``ImageSets/train.txt`` and ``val.txt`` name the frames of
    each part, one id a line; of one alone all others are the other part, and without them every fifth frame validates.
    All classes of the labels are learnt but for those that ``--data.classes`` leaves out.

    box_origin   centre: z is that of the box's gravity centre (OpenPCDet); bottom: that of the middle of its bottom
    """

    root: Path
    box_origin: custom.BoxOrigin = "centre"
    called: ClassVar[str] = "sweeps of one's own with boxes"

    def __post_init__(self) -> None:
        # The labels' names are compared in small letters.
        object.__setattr__(self, "classes", tuple(name.lower() for name in self.classes))
        object.__setattr__(self, "merge", tuple((one.lower(), other.lower()) for one, other in self.merge))

    def frames(self, split: Split, input: Input | None = None) -> OwnFrames:
        if isinstance(input, CameraInput):
            raise InvalidInputError("custom data holds sweeps and no images; train a recipe for LiDAR (medium, full)")
        return OwnFrames(root=self.root, ids=tuple(self._ids(split)), origin=self.box_origin)

    def fit_input(self, input: Input) -> Input:
        """The input with the classes of the labels that are learnt from: those that it has first, in its order.

        So weights that learnt the recipe's classes can be begun from.
        """
        pack = self.pack("train", input)
        if unknown := [name for name, _ in self.merge if name not in pack.names]:
            raise InvalidInputError(
                f"data.merge names {unknown[0]}, of which there is no label; there are "
                f"{', '.join(pack.names) or 'none'}"
            )
        if self.classes or isinstance(input, BoxInput):
            return FrameData.fit_input(self, input)
        names = self._tables(pack)
        if not names:
            raise InvalidInputError(f"no label file of {self.root} that is learnt from holds an object")
        known = [kind.name for kind in input.classes if kind.name in names]
        classes = (*known, *sorted(set(names) - set(known)))
        return FrameData.fit_input(replace(self, classes=classes), input)

    def _ids(self, split: Split) -> list[str]:
        found = custom.frame_ids(self.root)
        if not found:
            raise InvalidInputError(f"{self.root} holds no sweep points/*.bin, .npy or .pcd")
        lists = {"train": self.root / "ImageSets" / "train.txt", "validation": self.root / "ImageSets" / "val.txt"}
        listed = {part: list(dict.fromkeys(names_in(file))) for part, file in lists.items() if file.is_file()}
        for part, names in listed.items():
            unknown = [name for name in names if name not in found]
            if unknown or not names:
                what = f"names {unknown[0]}, which points does not hold" if unknown else "is empty"
                raise InvalidInputError(
                    f"{lists[part]} {what}; it lists the frames of its part by their ids, one a line"
                )
        if split in listed:
            return listed[split]
        (other,) = listed.values() or [None]
        if other is None:
            return every_fifth(found, split)
        return [name for name in found if name not in other]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnFrames:
    """Frames of such a folder by their ids."""

    root: Path
    ids: tuple[str, ...]
    origin: custom.BoxOrigin

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scenes(self) -> Sequence[str]:
        """The layout does not say which drive a frame is from."""
        return [f"frame {frame_id}" for frame_id in self.ids]

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        frame = custom.read_frame(self.root, self.ids[index], origin=self.origin)
        if frame.truth is None:
            raise InvalidInputError(
                f"frame {self.ids[index]} has no labels/{self.ids[index]}.txt; an empty file says that it has no object"
            )
        return frame

    def digest(self) -> str:
        files = []
        for frame_id in self.ids:
            for folder, suffixes in ((custom.POINTS, SWEEPS), (custom.LABELS, TEXTS)):
                file = named(self.root / folder, frame_id, suffixes)
                if file is None:
                    raise InvalidInputError(f"{self.root} holds no {folder}/{frame_id} ({', '.join(suffixes)})")
                files.append(file)
        return listing_digest(self.root, files, f"custom {self.origin}")
