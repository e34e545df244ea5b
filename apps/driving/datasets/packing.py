"""Labelled frames packed once into memory-mapped files, by all processors. No torch here: workers import it.

A pack is a folder of parts of ``PART`` frames in the user's cache: sweeps for LiDAR networks, or images at one focal
length for camera networks. Its name is the digest of what decides its content: the frames and the source of this file.
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

PART = 32
COLUMNS = 15
"""Of a table of objects: box in the LiDAR frame (7: gravity centre, length, width, height, yaw), class, returns,
truncation, occlusion, 2D box (4: left, top, right, bottom); unknown is -1 or NaN."""
CLASS, RETURNS, TRUNCATION, OCCLUSION, BOX_2D = 7, 8, 9, 10, slice(11, 15)
ImageSample: TypeAlias = tuple[NDArray[np.uint8], Floats, Floats, Floats]
"""Image (H, W, 3), intrinsics (3, 3), LiDAR to camera (4, 4) and table (M, 15)."""


class FrameList(Protocol):
    """The labelled frames of one split, read when they are asked for. Picklable: other processes read them too.

    ``scenes`` names the drive, log or scene that each frame is from; ``digest`` says what decides all their content.
    """

    @property
    def scenes(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        """One frame with its truth. Without ``images`` its cameras may be black, in the right size."""
        ...

    def digest(self) -> str: ...


class Pack:
    """A pack of sweeps, or with ``focal_px`` of images at that focal length; made first where it is not there yet.

    A frame of several cameras is several samples of a pack of images.
    """

    def __init__(self, frames: FrameList, focal_px: float | None = None) -> None:
        if not len(frames):
            raise InvalidInputError("there is no labelled frame to learn from")
        self.scenes = frames.scenes
        key = hashlib.sha256(f"{frames.digest()} {focal_px} {PART}".encode())
        for source in (inspect.getsource(inspect.getmodule(Pack) or Pack), inspect.getsource(projection)):
            key.update(source.encode())

        def make(folder: Path) -> None:
            parts = range(0, len(frames), PART)
            calls = ((frames, start, focal_px, folder) for start in parts)
            parallel_map(write_part, calls, f"packing {len(frames)} frames, by {PART}")

        self.folder = get_or_build(f"driving-{key.hexdigest()[:24]}", make)
        self._parts = sorted(part for part in self.folder.iterdir() if part.is_dir())
        self._tables = [dict(np.load(part / "index.npz")) for part in self._parts]
        bulk = "points.npy" if focal_px is None else "images.npy"
        self._bulk = [np.load(part / bulk, mmap_mode="r") for part in self._parts]
        self._first = np.cumsum([0] + [len(table["frame"]) for table in self._tables])
        if not len(self):
            raise InvalidInputError("none of the labelled frames has a sweep" if focal_px is None else "no image found")

    def __len__(self) -> int:
        return int(self._first[-1])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the classes that occur, in alphabetical order."""
        return tuple(sorted({str(name) for table in self._tables for name in table["names"]}))

    def frame(self, index: int) -> int:
        """The number of the frame that a sample is from."""
        part, place = self._place(index)
        return int(self._tables[part]["frame"][place])

    def table(self, index: int) -> Floats:
        """The objects of one sample (M, 15); their class is a number among ``names``."""
        part, place = self._place(index)
        content = self._tables[part]
        first, last = content["truth_offsets"][place : place + 2]
        table: Floats = content["truth"][first:last].copy()
        numbers = np.array([self.names.index(str(name)) for name in content["names"]], np.float32)
        if len(table):
            table[:, CLASS] = numbers[table[:, CLASS].astype(np.int64)]
        return table

    def points(self, index: int) -> Floats:
        """The sweep of one sample (N, 4)."""
        part, place = self._place(index)
        start, stop = self._tables[part]["point_offsets"][place : place + 2]
        return np.array(self._bulk[part][start:stop])

    def image(self, index: int) -> ImageSample:
        """The image of one sample, how it was taken, and its objects."""
        part, place = self._place(index)
        content = self._tables[part]
        start, stop = content["image_offsets"][place : place + 2]
        image = np.array(self._bulk[part][start:stop]).reshape(*content["image_sizes"][place], 3)
        return image, content["intrinsics"][place].copy(), content["lidar_to_camera"][place], self.table(index)

    def image_sizes(self) -> NDArray[np.int64]:
        """(N, 2): height and width of every image."""
        return np.concatenate([table["image_sizes"] for table in self._tables])

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._first, index, side="right")) - 1
        return part, int(index - self._first[part])


def write_part(frames: FrameList, start: int, focal_px: float | None, folder: Path) -> None:
    """Reads the frames from number ``start`` on and writes them as one part."""
    names: list[str] = []
    bulk: list[NDArray[Any]] = []
    tables, numbers, cameras = [], [], []
    for number in range(start, min(start + PART, len(frames))):
        frame = frames.read(number, images=focal_px is not None, points=focal_px is None)
        truth = frame.truth if frame.truth is not None else Boxes3D.empty()
        if focal_px is not None:
            for camera in frame.cameras.values():
                image, near, seen = at_focal_length(camera, truth, focal_px, own=len(frame.cameras) == 1)
                bulk.append(image.reshape(-1))
                cameras.append((image.shape[:2], near.intrinsics, near.lidar_to_camera))
                tables.append(rows(seen, names))
                numbers.append(number)
        elif frame.points_lidar_m is not None:
            bulk.append(frame.points_lidar_m.astype(np.float32))
            tables.append(rows(truth, names))
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
        sizes, intrinsics, mounts = zip(*cameras, strict=True) if cameras else ((), (), ())
        arrays |= {
            "image_offsets": _offsets(bulk),
            "image_sizes": np.array(sizes, np.int64).reshape(-1, 2),
            "intrinsics": np.array(intrinsics, np.float32).reshape(-1, 3, 3),
            "lidar_to_camera": np.array(mounts, np.float32).reshape(-1, 4, 4),
        }
    np.savez(part / "index.npz", **arrays)


def at_focal_length(
    camera: Camera, truth: Boxes3D, focal_px: float, *, own: bool
) -> tuple[NDArray[np.uint8], Camera, Boxes3D]:
    """The image at a focal length, its camera, and the boxes with what it shows of them.

    ``own``: 2D boxes and truncation that the truth brings are this camera's.
    """
    image, (across, down) = projection.bring_to_focal_length(camera, focal_px)
    scale = np.array([[across], [down], [1]], np.float32)
    near = replace(camera, image_HWC=image, intrinsics=camera.intrinsics * scale)
    if own and truth.box_2d is not None and truth.truncation is not None:
        return image, near, replace(truth, box_2d=truth.box_2d * np.array([across, down, across, down], np.float32))
    height, width = image.shape[:2]
    box_2d, cut = projection.image_boxes(truth, near.intrinsics, near.lidar_to_camera, (height, width))
    return image, near, replace(truth, box_2d=box_2d, truncation=cut)


def rows(truth: Boxes3D, names: list[str]) -> Floats:
    """The table (M, 15) of objects; the class is a number among ``names``, which grows by the names that are new."""
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
