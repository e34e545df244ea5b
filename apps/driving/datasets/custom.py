"""Custom sweeps with boxes, in the layout of OpenPCDet's and mmdet3d's custom data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from apps.driving.adapters import custom
from apps.driving.adapters.kitti_layouts import TEXTS, find_file
from apps.driving.adapters.point_files import SWEEPS
from apps.driving.datasets.frame_data import FrameData, Input, Split
from apps.driving.datasets.split import every_fifth, listing_digest, names_in
from apps.driving.types import BoxInput, CameraInput, Frame
from shared.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Custom(FrameData):
    """Your own sweeps with boxes, in the layout of OpenPCDet and mmdet3d.

    ``root`` holds ``points/ID.bin`` (float32 x, y, z, intensity), ``.npy`` or ``.pcd``, and ``labels/ID.txt`` with one
    row per object: x y z length width height yaw class. Metres in the LiDAR frame: x forward, y left, z up.

    The label file of a frame without objects is empty. ``ImageSets/train.txt`` and ``val.txt`` list the frame ids of
    each split, one per line; with one of them, all other frames are in the other split; with neither, every fifth frame
    is for validation. All classes in the labels are trained unless ``--data.classes`` lists fewer.

    box_origin   centre: z is that of the box's gravity centre (OpenPCDet); bottom: of the centre of its bottom face
    """

    root: Path
    box_origin: custom.BoxOrigin = "centre"
    description: ClassVar[str] = "sweeps of one's own with boxes"

    def __post_init__(self) -> None:
        # Labels are compared in lower case.
        object.__setattr__(self, "classes", tuple(name.lower() for name in self.classes))
        object.__setattr__(self, "merge", tuple((name.lower(), target.lower()) for name, target in self.merge))

    def frames(self, split: Split, input: Input | None = None) -> CustomFrames:
        if isinstance(input, CameraInput):
            raise InvalidInputError("custom data has sweeps but no images; train a LiDAR recipe (medium, full)")
        return CustomFrames(root=self.root, ids=tuple(self._ids(split)), origin=self.box_origin)

    def fit_input(self, input: Input) -> Input:
        """The input with the classes in the training labels: first the classes that the input has, in its order.

        The order allows training to start from weights that were trained on the recipe's classes.
        """
        pack = self.pack("train", input)
        if unknown := [name for name, _ in self.merge if name not in pack.names]:
            raise InvalidInputError(
                f"data.merge names {unknown[0]}, but no label has this class; the labels have "
                f"{', '.join(pack.names) or 'none'}"
            )
        if self.classes or isinstance(input, BoxInput):
            return FrameData.fit_input(self, input)
        names = self._tables(pack)
        if not names:
            raise InvalidInputError(f"no label file of {self.root} that is used for training has an object")
        known = [kind.name for kind in input.classes if kind.name in names]
        classes = (*known, *sorted(set(names) - set(known)))
        return FrameData.fit_input(replace(self, classes=classes), input)

    def _ids(self, split: Split) -> list[str]:
        found = custom.frame_ids(self.root)
        if not found:
            raise InvalidInputError(f"{self.root} has no sweep points/*.bin, .npy or .pcd")
        lists = {"train": self.root / "ImageSets" / "train.txt", "validation": self.root / "ImageSets" / "val.txt"}
        listed = {part: list(dict.fromkeys(names_in(file))) for part, file in lists.items() if file.is_file()}
        for part, names in listed.items():
            unknown = [name for name in names if name not in found]
            if unknown or not names:
                problem = f"lists {unknown[0]}, which is not in points" if unknown else "is empty"
                raise InvalidInputError(
                    f"{lists[part]} {problem}; list the ids of the frames in this split, one per line"
                )
        if split in listed:
            return listed[split]
        (other_split,) = listed.values() or [None]
        if other_split is None:
            return every_fifth(found, split)
        return [name for name in found if name not in other_split]


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomFrames:
    """Frames of such a folder by their ids."""

    root: Path
    ids: tuple[str, ...]
    origin: custom.BoxOrigin

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scenes(self) -> Sequence[str]:
        """The layout does not record drives, so every frame is a scene."""
        return [f"frame {frame_id}" for frame_id in self.ids]

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        frame = custom.read_frame(self.root, self.ids[index], origin=self.origin)
        if frame.truth is None:
            raise InvalidInputError(
                f"frame {self.ids[index]} has no labels/{self.ids[index]}.txt; add an empty file if it has no objects"
            )
        return frame

    def digest(self) -> str:
        files = []
        for frame_id in self.ids:
            for folder, suffixes in ((custom.POINTS, SWEEPS), (custom.LABELS, TEXTS)):
                file = find_file(self.root / folder, frame_id, suffixes)
                if file is None:
                    raise InvalidInputError(f"{self.root} has no {folder}/{frame_id} ({', '.join(suffixes)})")
                files.append(file)
        return listing_digest(self.root, files, f"custom {self.origin}")
