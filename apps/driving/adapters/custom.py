"""Custom sweeps with boxes in text files: the layout of OpenPCDet's and mmdet3d's custom data sets.

``points/ID.bin`` (float32 x, y, z, intensity), ``.npy`` or ``.pcd``; ``labels/ID.txt`` with one row per object: x, y,
z, length, width, height, yaw and class (OpenPCDet, CUSTOM_DATASET_TUTORIAL; mmdet3d, customize_dataset). Metres in the
LiDAR frame: x forward, y left, z up; yaw about z, counter-clockwise from x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from apps.driving.adapters.box_values import box_numbers, check_units
from apps.driving.adapters.calibration import read_text_file
from apps.driving.adapters.kitti_layouts import TEXTS, UNSUPPORTED_SUFFIXES, find_file, unsupported_message
from apps.driving.adapters.point_files import SWEEPS, read_sweep
from apps.driving.types import Boxes3D, Frame, wrap_angle
from shared.errors import InvalidInputError

POINTS, LABELS = "points", "labels"
BoxOrigin: TypeAlias = Literal["centre", "bottom"]
"""Whether z of a label is that of the box's gravity centre (OpenPCDet) or of the centre of its bottom face."""
_MAX_YAW = 2 * np.pi + 0.01
_COLUMNS = ("x", "y", "z", "length", "width", "height", "yaw")


def folders(files: Sequence[Path]) -> list[Path]:
    """The folders with this layout in the single given folder, including that folder itself."""
    if len(files) != 1 or not files[0].is_dir():
        return []
    found = [folder.parent for folder in files[0].rglob(POINTS) if folder.is_dir()]
    return sorted(root for root in found if not (root / "velodyne").is_dir() and frame_ids(root))


def frame_ids(root: Path) -> list[str]:
    """The sorted ids of the sweeps. Raises ``InvalidInputError`` as ``sweep_ids`` does."""
    return sweep_ids(root / POINTS)


def sweep_ids(folder: Path) -> list[str]:
    """The sorted names of the sweeps in a folder, without suffixes. Raises ``InvalidInputError`` if a sweep would be
    skipped: in a subfolder, in an unsupported format, or with the same name as another."""
    files = [file for file in sorted(folder.glob("*")) if not file.name.startswith(".")]
    sweeps: dict[str, Path] = {}
    for file in files:
        if file.is_dir() and any(inside.suffix.lower() in SWEEPS for inside in file.iterdir()):
            raise InvalidInputError(
                f"{folder.name} has the subfolder {file.name} with sweeps; move them into {folder.name} itself"
            )
        if file.suffix.lower() in UNSUPPORTED_SUFFIXES:
            raise InvalidInputError(unsupported_message(file))
        if file.suffix.lower() in SWEEPS and sweeps.setdefault(file.stem, file) != file:
            raise InvalidInputError(
                f"two files could be the sweep {file.stem}: {sweeps[file.stem].name} and {file.name}; keep one"
            )
    return sorted(sweeps)


def read_frame(
    root: Path, frame_id: str, *, labelled: bool = True, origin: BoxOrigin = "centre", device: str = "cpu"
) -> Frame:
    """One frame by its id, with its labels if it has any and ``labelled`` is set.

    ``device`` is not used: there is nothing to decode. Raises ``InvalidInputError``.
    """
    frame = read_unlabelled(root / POINTS, frame_id)
    labels = find_file(root / LABELS, frame_id, TEXTS) if labelled else None
    if labels is None:
        return frame
    truth, points = read_labels(labels, origin), frame.points_lidar_m
    assert points is not None
    return replace(frame, truth=replace(truth, point_counts=truth.inside(points).sum(axis=1)))


def read_unlabelled(folder: Path, frame_id: str) -> Frame:
    """The frame of a sweep in a folder, by its name without the suffix. Raises ``InvalidInputError``."""
    sweep = find_file(folder, frame_id, SWEEPS)
    if sweep is None:
        raise InvalidInputError(f"{folder.parent.name} has no sweep {folder.name}/{frame_id} (.bin, .npy, .pcd)")
    points, remarks = read_sweep(sweep)
    return Frame(name=frame_id, points_lidar_m=points, cameras={}, remarks=remarks)


def read_labels(path: Path, origin: BoxOrigin = "centre") -> Boxes3D:
    """The boxes of a label file; an empty file means that there are no objects."""
    rows, names = [], []
    for number, line in enumerate(read_text_file(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != len(_COLUMNS) + 1:
            kitti = (
                "; these are KITTI labels, which belong in label_2 beside velodyne and calib"
                if len(words) == 15
                else ""
            )
            raise InvalidInputError(
                f"{path.name}, line {number}: {len(words)} columns; expected {', '.join(_COLUMNS)}, class (one word)"
                f"{kitti}"
            )
        try:
            row = [float(word) for word in words[:-1]]
        except ValueError as error:
            raise InvalidInputError(
                f"{path.name}, line {number}: {error}; columns are {', '.join(_COLUMNS)}, class"
            ) from error
        rows.append(box_numbers(row, f"{path.name}, line {number}"))
        if min(row[3:6]) <= 0:
            raise InvalidInputError(f"{path.name}, line {number}: the size of {words[-1]} is not positive")
        if abs(row[6]) > _MAX_YAW:
            raise InvalidInputError(f"{path.name}, line {number}: yaw is {row[6]:g}; expected radians, not degrees")
        check_units(words[-1], row[3:6], row[:3], f"{path.name}, line {number}")
        names.append(words[-1].lower())
    table = np.array(rows, np.float64).reshape(-1, len(_COLUMNS))
    if origin == "bottom":
        table[:, 2] += table[:, 5] / 2
    return Boxes3D(
        centre_lidar_m=table[:, :3].astype(np.float32),
        size_m=table[:, 3:6].astype(np.float32),
        yaw=wrap_angle(table[:, 6]).astype(np.float32),
        names=tuple(names),
    )
