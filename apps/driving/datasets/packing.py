"""Packs labelled frames once into memory-mapped files, using all processors.

A pack is a folder in the user's cache with parts of ``PART_FRAMES`` frames: sweeps for LiDAR networks, or images at one
focal length for camera networks. Its name is a digest of what determines its content: the frames and this file's
source. Worker processes import this module, so it must not import torch.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters import projection
from apps.driving.types import Boxes3D, Camera, Floats, Frame
from shared.data.build_cache import get_or_build, parallel_map
from shared.errors import InvalidInputError

PART_FRAMES = 32
COLUMNS = 15
"""The columns of an object table: box in the LiDAR frame (7: gravity centre, length, width, height, yaw), class,
returns, truncation, occlusion, 2D box (4: left, top, right, bottom); unknown is -1 or NaN."""
CLASS, RETURNS, TRUNCATION, OCCLUSION, BOX_2D = 7, 8, 9, 10, slice(11, 15)
ImageSample: TypeAlias = tuple[NDArray[np.uint8], Floats, Floats, Floats]
"""Image (H, W, 3), intrinsics (3, 3), LiDAR to camera (4, 4) and object table (M, 15)."""


class FrameList(Protocol):
    """The labelled frames of one split, read on request. Must be picklable: other processes read them too.

    ``scenes`` has the name of the drive, log or scene of each frame; ``digest`` identifies the content of all frames.
    """

    @property
    def scenes(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        """One frame with its ground truth. Without ``images`` its camera images may be black, in the right size."""
        ...

    def digest(self) -> str: ...


class Pack:
    """A pack of sweeps or, with ``focal_px``, of images at that focal length. Built on first use.

    In a pack of images, each camera of a frame is one sample.
    """

    def __init__(self, frames: FrameList, focal_px: float | None = None) -> None:
        if not len(frames):
            raise InvalidInputError("there are no labelled frames to train on")
        self.scenes = frames.scenes
        key = hashlib.sha256(f"{frames.digest()} {focal_px} {PART_FRAMES}".encode())
        for source in (inspect.getsource(inspect.getmodule(Pack) or Pack), inspect.getsource(projection)):
            key.update(source.encode())

        def make(folder: Path) -> None:
            parts = range(0, len(frames), PART_FRAMES)
            calls = ((frames, start, focal_px, folder) for start in parts)
            parallel_map(write_part, calls, f"packing {len(frames)} frames in parts of {PART_FRAMES}")

        self.folder = get_or_build(f"driving-{key.hexdigest()[:24]}", make)
        self._parts = sorted(part for part in self.folder.iterdir() if part.is_dir())
        self._tables = [dict(np.load(part / "index.npz")) for part in self._parts]
        bulk = "points.npy" if focal_px is None else "images.npy"
        self._bulk = [np.load(part / bulk, mmap_mode="r") for part in self._parts]
        self._first = np.cumsum([0] + [len(table["frame"]) for table in self._tables])
        if not len(self):
            raise InvalidInputError(
                "none of the labelled frames has a sweep" if focal_px is None else "the frames have no images"
            )

    def __len__(self) -> int:
        return int(self._first[-1])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all classes in the pack, sorted."""
        return tuple(sorted({str(name) for table in self._tables for name in table["names"]}))

    def frame(self, index: int) -> int:
        """The number of the frame of a sample."""
        part, row = self._locate(index)
        return int(self._tables[part]["frame"][row])

    def table(self, index: int) -> Floats:
        """The objects of one sample (M, 15); their class is an index into ``names``."""
        part, row = self._locate(index)
        part_table = self._tables[part]
        first, last = part_table["truth_offsets"][row : row + 2]
        table: Floats = part_table["truth"][first:last].copy()
        numbers = np.array([self.names.index(str(name)) for name in part_table["names"]], np.float32)
        if len(table):
            table[:, CLASS] = numbers[table[:, CLASS].astype(np.int64)]
        return table

    def points(self, index: int) -> Floats:
        """The sweep of one sample (N, 4)."""
        part, row = self._locate(index)
        start, stop = self._tables[part]["point_offsets"][row : row + 2]
        return np.array(self._bulk[part][start:stop])

    def image(self, index: int) -> ImageSample:
        """The image of one sample, its intrinsics and pose, and its objects."""
        part, row = self._locate(index)
        part_table = self._tables[part]
        start, stop = part_table["image_offsets"][row : row + 2]
        image = np.array(self._bulk[part][start:stop]).reshape(*part_table["image_sizes"][row], 3)
        return image, part_table["intrinsics"][row].copy(), part_table["lidar_to_camera"][row], self.table(index)

    def image_sizes(self) -> NDArray[np.int64]:
        """(N, 2): height and width of each image."""
        return np.concatenate([table["image_sizes"] for table in self._tables])

    def _locate(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._first, index, side="right")) - 1
        return part, int(index - self._first[part])


def write_part(frames: FrameList, start: int, focal_px: float | None, folder: Path) -> None:
    """Reads ``PART_FRAMES`` frames from number ``start`` on and writes them as one part."""
    names: list[str] = []
    bulk: list[NDArray[Any]] = []
    tables, numbers, cameras = [], [], []
    for number in range(start, min(start + PART_FRAMES, len(frames))):
        frame = frames.read(number, images=focal_px is not None, points=focal_px is None)
        truth = frame.truth if frame.truth is not None else Boxes3D.empty()
        if focal_px is not None:
            for camera in frame.cameras.values():
                image, resized, visible = at_focal_length(camera, truth, focal_px, own=len(frame.cameras) == 1)
                bulk.append(image.reshape(-1))
                cameras.append((image.shape[:2], resized.intrinsics, resized.lidar_to_camera))
                tables.append(object_table(visible, names))
                numbers.append(number)
        elif frame.points_lidar_m is not None:
            bulk.append(frame.points_lidar_m.astype(np.float32))
            tables.append(object_table(truth, names))
            numbers.append(number)
    part = folder / f"{start:09d}"
    part.mkdir()
    arrays: dict[str, Any] = {
        "frame": np.array(numbers, np.int64),
        "names": np.array(names, np.str_),
        "truth": np.concatenate([np.zeros((0, COLUMNS), np.float32), *tables]),
        "truth_offsets": _offsets(tables),
    }
    if focal_px is None:
        np.save(part / "points.npy", np.concatenate([np.zeros((0, 4), np.float32), *bulk]))
        arrays["point_offsets"] = _offsets(bulk)
    else:
        np.save(part / "images.npy", np.concatenate([np.zeros(0, np.uint8), *bulk]))
        sizes, intrinsics, poses = zip(*cameras, strict=True) if cameras else ((), (), ())
        arrays |= {
            "image_offsets": _offsets(bulk),
            "image_sizes": np.array(sizes, np.int64).reshape(-1, 2),
            "intrinsics": np.array(intrinsics, np.float32).reshape(-1, 3, 3),
            "lidar_to_camera": np.array(poses, np.float32).reshape(-1, 4, 4),
        }
    np.savez(part / "index.npz", **arrays)


def at_focal_length(
    camera: Camera, truth: Boxes3D, focal_px: float, *, own: bool
) -> tuple[NDArray[np.uint8], Camera, Boxes3D]:
    """The image resized to a focal length, its camera, and the boxes with 2D boxes and truncation in that image.

    ``own``: the 2D boxes and the truncation in ``truth`` refer to this camera.
    """
    image, (across, down) = projection.bring_to_focal_length(camera, focal_px)
    scale = np.array([[across], [down], [1]], np.float32)
    resized = replace(camera, image_HWC=image, intrinsics=camera.intrinsics * scale)
    if own and truth.box_2d is not None and truth.truncation is not None:
        return image, resized, replace(truth, box_2d=truth.box_2d * np.array([across, down, across, down], np.float32))
    height, width = image.shape[:2]
    box_2d, truncation = projection.image_boxes(truth, resized.intrinsics, resized.lidar_to_camera, (height, width))
    return image, resized, replace(truth, box_2d=box_2d, truncation=truncation)


def object_table(truth: Boxes3D, names: list[str]) -> Floats:
    """The table (M, 15) of objects; the class is an index into ``names``, to which new names are appended."""
    count = len(truth)
    names.extend(name for name in dict.fromkeys(truth.names) if name not in names)
    labels = np.array([names.index(name) for name in truth.names], np.float32)
    unknown = np.full(count, -1.0, np.float32)
    returns = unknown if truth.point_counts is None else truth.point_counts
    truncation = unknown if truth.truncation is None else truth.truncation
    occlusion = unknown if truth.occlusion is None else truth.occlusion
    box_2d = np.full((count, 4), np.nan, np.float32) if truth.box_2d is None else truth.box_2d
    table = np.concatenate([truth.array, np.stack([labels, returns, truncation, occlusion], 1), box_2d], axis=1)
    return table.astype(np.float32)


def _offsets(parts: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.cumsum([0] + [len(part) for part in parts]).astype(np.int64)
