"""KITTI object detection: LiDAR, image, calibration and labels of a frame, read into ``Frame``.

Layout and formats are those of the benchmark's development kit (Geiger et al. 2012; readme.txt of devkit_object):
``velodyne/ID.bin`` float32 x y z intensity; ``image_2/ID.png``; ``calib/ID.txt`` with P2, R0_rect, Tr_velo_to_cam;
``label_2/ID.txt`` with 15 columns (16 with a score), boxes in the rectified reference camera: location of the bottom
centre, rotation_y about the downward axis; the tracking benchmark's labels have the frame and the track before them.
``Boxes3D`` holds the gravity centre and the yaw in the LiDAR frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from apps.driving.adapters.box_values import refuse_other_units
from apps.driving.adapters.calibration import RAW_MOUNTS, STARTS, Calibration, lines, read_calibration
from apps.driving.adapters.image_files import read_image, resized
from apps.driving.adapters.kitti_layouts import (
    FOLDERS,
    FOREIGN,
    IMAGES,
    TEXTS,
    FrameFiles,
    calibration_of,
    foreign,
    frame_root,
    frame_roots,
    layout_of,
)
from apps.driving.adapters.point_files import SWEEPS, read_sweep
from apps.driving.types import Boxes3D, Camera, Floats, Frame
from shared.data.archive import unpacked
from shared.errors import InvalidInputError

MAX_FRAMES = 200
_Id = TypeVar("_Id")
_LABEL_COLUMNS = (
    "type, truncated, occluded, alpha, left, top, right, bottom, height, width, length, x, y, z, rotation_y"
)


def read(path: Path) -> list[Frame]:
    """The frames of a KITTI object folder, of a zip of one, or the one frame of a sweep or an image alone."""
    return read_files([path])


def read_files(paths: Sequence[Path]) -> list[Frame]:
    """The frames in a folder, in a zip, or in loose files that belong together (by name, or because they are few)."""
    if not paths:
        raise InvalidInputError(
            "no file was given; give a KITTI folder, a zip of one, or a sweep (.bin, .pcd, .npy), with its image and "
            "calibration where it has them"
        )
    for path in paths:
        if not path.exists():
            raise InvalidInputError(f"{path.name}: no such file or folder")
    if len(paths) == 1:
        path = paths[0]
        if path.is_dir():
            return _read_folder(path)
        if path.suffix.lower() == ".zip":
            with unpacked(path) as folder:
                return _read_folder(folder)
    if _in_folders(paths):
        named = _by_frame(paths)
        whole = within_limit(sorted(named), f"what {paths[0].name} begins")
        return [_named_frame(root, frame_id, named[root, frame_id]) for root, frame_id in whole]
    return _read_loose(paths)


def read_frame(root: Path, frame_id: str, *, labelled: bool = True, device: str = "cpu") -> Frame:
    """One frame of a KITTI folder, by its id, with its labels or without; what it lacks stays empty.

    Its image is decoded by ``device``.
    """
    layout = layout_of(root)
    files = layout.files(frame_id)
    if files.points is None and files.image is None:
        raise InvalidInputError(
            f"there is no frame {frame_id} in {root.name}: neither "
            f"{layout.sweeps.relative_to(root)}/{frame_id}.bin nor an image of it"
        )
    return _frame(frame_id.replace("/", "_"), files if labelled else replace(files, labels=None), device)


def _in_folders(paths: Sequence[Path]) -> bool:
    """Whether they are sweeps and images in KITTI's folders."""
    return all(path.parent.name in FOLDERS and path.suffix.lower() in (*SWEEPS, *IMAGES) for path in paths)


def _by_frame(paths: Sequence[Path]) -> dict[tuple[Path, str], dict[str, Path]]:
    """The sweeps and images among KITTI's folders, by the frame that they belong to."""
    named: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in paths:
        frame, role = named.setdefault((path.parent.parent, path.stem), {}), _role(path)
        if frame.setdefault(role, path) != path:
            raise InvalidInputError(
                f"two files would be the {role} of {path.stem}: {frame[role].name} and {path.name}; name one"
            )
    return named


def _named_frame(root: Path, frame_id: str, named: dict[str, Path]) -> Frame:
    """A frame of the files that were named, and of nothing beside them but the calibration that an image needs."""
    image = named.get("image")
    calibration = calibration_of(root, frame_id) if image else None
    return _frame(frame_id, FrameFiles(points=named.get("points"), image=image, calibration=calibration, labels=None))


def frame_ids(root: Path) -> list[str]:
    """The ids of the frames in a KITTI folder, sorted; refuses sweeps that would be passed over."""
    return layout_of(root).frame_ids()


def read_labels(path: Path, camera: Calibration | Camera, frame: int | None = None) -> tuple[Boxes3D, Floats]:
    """The boxes of a label or result file in the LiDAR frame, and the 2D boxes (K, 4) of its DontCare regions.

    ``frame`` is the one that is read of the tracking benchmark's labels, which hold a whole sequence.
    """
    names: list[str] = []
    rows, ignored = [], []
    for number, line in enumerate(lines(path), 1):
        words = line.split()
        if frame is not None:
            if words[0] != str(frame):
                continue
            words = words[2:]
        if not words:
            raise InvalidInputError(f"{path.name}, line {number}: nothing follows the frame and the track")
        name, *values = words
        if len(values) not in (14, 15):
            raise InvalidInputError(
                f"{path.name}, line {number}: {len(values) + 1} columns instead of 15, or 16 with a score"
            )
        try:
            row = [float(value) for value in values]
        except ValueError as error:
            raise InvalidInputError(f"{path.name}, line {number}: {error}; columns are {_LABEL_COLUMNS}") from error
        if not np.isfinite(row).all():
            raise InvalidInputError(f"{path.name}, line {number}: a value is not a finite number")
        if name == "DontCare":
            ignored.append(row[3:7])
            continue
        if min(row[7:10]) <= 0:
            raise InvalidInputError(f"{path.name}, line {number}: {name} has a size that is not positive")
        if len(values) == 14:  # a detector may find what it likes
            refuse_other_units(name, row[9:6:-1], row[10:13], f"{path.name}, line {number}")
        names.append(name.lower())
        rows.append(row + [np.nan] * (15 - len(row)))
    table = np.array(rows, np.float64).reshape(-1, 15)
    without = int(np.isnan(table[:, 14]).sum())
    if 0 < without < len(table):
        raise InvalidInputError(
            f"{path.name}: {without} of {len(table)} rows have no score (column 16); all need one, or none"
        )
    centre, yaw = from_rectified(table[:, 10:13], table[:, 7], table[:, 13], camera)
    boxes = Boxes3D(
        centre_lidar_m=centre,
        size_m=table[:, [9, 8, 7]].astype(np.float32),
        yaw=yaw,
        names=tuple(names),
        scores=table[:, 14].astype(np.float32) if len(table) and not without else None,
        truncation=table[:, 0].astype(np.float32),
        occlusion=table[:, 1].astype(np.int64),
        box_2d=table[:, 3:7].astype(np.float32),
    )
    return boxes, np.array(ignored, np.float32).reshape(-1, 4)


def from_rectified(
    location_N3: np.ndarray, height_N: np.ndarray, rotation_N: np.ndarray, camera: Calibration | Camera
) -> tuple[Floats, Floats]:
    """Gravity centre (N, 3) and yaw (N,) in the LiDAR frame, of boxes given by bottom centre and rotation_y."""
    centre = location_N3 - np.stack([0 * height_N, height_N / 2, 0 * height_N], axis=-1) + camera.reference_offset_m
    turn, move = camera.lidar_to_camera[:3, :3].astype(np.float64), camera.lidar_to_camera[:3, 3]
    yaw = _wrap(_forward_yaw(camera) - rotation_N - np.pi / 2)
    return ((centre - move) @ turn).astype(np.float32), yaw.astype(np.float32)


def to_rectified(boxes: Boxes3D, camera: Calibration | Camera) -> tuple[np.ndarray, np.ndarray]:
    """Bottom centre (N, 3) and rotation_y (N,) in the frame of KITTI's labels: the inverse of ``from_rectified``."""
    turn, move = camera.lidar_to_camera[:3, :3].astype(np.float64), camera.lidar_to_camera[:3, 3]
    centre = boxes.centre_lidar_m @ turn.T + move - camera.reference_offset_m
    location = centre + boxes.size_m[:, 2:] / 2 * np.array([0.0, 1.0, 0.0])
    return location, _wrap(_forward_yaw(camera) - boxes.yaw.astype(np.float64) - np.pi / 2)


def _forward_yaw(camera: Calibration | Camera) -> float:
    # The boxes stand upright in both frames; what the frames differ by is a turn about the vertical.
    ahead = camera.lidar_to_camera[2, :3]
    return float(np.arctan2(ahead[1], ahead[0]))


def _wrap(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _frame(name: str, files: FrameFiles, device: str = "cpu") -> Frame:
    known = read_calibration(files.calibration) if files.calibration else None
    if known is None and (missing := files.image or files.labels):
        lacks = f"{missing.name} has no calibration beside it"
        if files.labels and files.labels.parent.name not in ("label_2", "label_02"):
            held = "has no row P2, R0_rect or Tr_velo_to_cam" if lines(files.labels) else "is empty"
            lacks = f"{files.labels.name} {held}: it is no calibration, which images and labels need"
        raise InvalidInputError(f"{lacks}; add calib/{name}.txt (P2, R0_rect, Tr_velo_to_cam)")
    cameras: dict[str, Camera] = {}
    remarks: tuple[str, ...] = ()
    if files.image and known:
        pixels = read_image(files.image, device)
        height, width = pixels.shape[:2]
        across, down = known.intrinsics[:2, 2]
        if not (0 <= across < width and 0 <= down < height):
            assert files.calibration is not None
            raise InvalidInputError(
                f"{files.calibration.name}: P2 has its centre at ({across:.0f}, {down:.0f}), outside of the image of "
                f"{width} x {height}; is it the calibration of another size?"
            )
        remarks = resized(files.image.name, pixels.shape, known.intrinsics)
        cameras["image_2"] = Camera(
            image_HWC=pixels,
            intrinsics=known.intrinsics,
            lidar_to_camera=known.lidar_to_camera,
            reference_offset_m=known.reference_offset_m,
        )
    truth, ignored = None, np.zeros((0, 4), np.float32)
    if files.labels and known:
        truth, ignored = read_labels(files.labels, known, files.row)
    cloud = None
    if files.points:
        cloud, said = read_sweep(files.points)
        remarks += said
    if truth is not None and cloud is not None:
        truth = replace(truth, point_counts=truth.inside(cloud).sum(axis=1))
    return Frame(
        name=name,
        points_lidar_m=cloud,
        cameras=cameras,
        truth=truth,
        ignore_boxes_2d={"image_2": ignored} if len(ignored) else {},
        remarks=remarks,
    )


def _read_folder(folder: Path) -> list[Frame]:
    if not frame_roots(folder):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if not files:
            raise InvalidInputError(f"{folder.name} holds no files")
        inside = [folder.absolute() / file.relative_to(folder) for file in files]
        return read_files(inside) if _in_folders(inside) else _read_loose(files)
    root = frame_root(folder)
    return [read_frame(root, frame_id) for frame_id in within_limit(frame_ids(root), root.name)]


def within_limit(ids: list[_Id], name: str) -> list[_Id]:
    """The ids, where they are no more than are held in memory at once; refuses more of what ``name`` holds."""
    refuse_many(len(ids), name)
    return ids


def refuse_many(count: int, name: str) -> None:
    """Refuses more frames than are held in memory at once."""
    if count > MAX_FRAMES:
        raise InvalidInputError(
            f"{name} holds {count} frames; at most {MAX_FRAMES} are taken at a time, since all stay in memory. "
            "The command line takes any number, one after the other: trivium predict driving PATH --each --out DIR"
        )


def _read_loose(paths: Sequence[Path]) -> list[Frame]:
    """Files without folders: told apart by what they hold, put together by name."""
    roles: dict[str, dict[str, Path]] = {"points": {}, "image": {}, "calibration": {}, "labels": {}}
    for path in paths:
        if path.name in RAW_MOUNTS and len(paths) > 1:
            continue
        role = _role(path)
        if path.stem in roles[role]:
            raise InvalidInputError(
                f"two files would be the {role} of {path.stem}: {roles[role][path.stem].name} and {path.name}"
            )
        roles[role][path.stem] = path
    stems = within_limit(sorted({*roles["points"], *roles["image"]}), "what was handed in")
    if not stems:
        raise InvalidInputError(
            f"{paths[0].name}: neither a LiDAR sweep (.bin, .pcd, .npy, a ROS bag) nor an image is among the files"
        )
    if all(len(found) <= 1 for found in roles.values()):
        # One file of each kind belongs together, whatever they are called, but for the numbers of different frames.
        _refuse_different_frames([path for found in roles.values() for path in found.values()])
        return [_frame(stems[0], _files({role: next(iter(found.values()), None) for role, found in roles.items()}))]
    return [_frame(stem, _files({role: found.get(stem) for role, found in roles.items()})) for stem in stems]


def _files(roles: Mapping[str, Path | None]) -> FrameFiles:
    return FrameFiles(
        points=roles["points"], image=roles["image"], calibration=roles["calibration"], labels=roles["labels"]
    )


def _refuse_different_frames(paths: Sequence[Path]) -> None:
    """Refuses files whose names differ in their numbers alone, or end in different numbers of a frame."""
    for number, path in enumerate(paths):
        for other in paths[:number]:
            alike = re.sub(r"\d+", "#", path.stem) == re.sub(r"\d+", "#", other.stem)
            mine, theirs = _frame_number(path), _frame_number(other)
            numbered = len(mine) == len(theirs) and mine != theirs
            if numbered or (alike and path.stem != other.stem):
                raise InvalidInputError(
                    f"{other.name} and {path.name} are named as different frames; give them one name if they belong "
                    "together, or hand in both files of each frame"
                )


def _frame_number(path: Path) -> str:
    """The digits that the name ends in, where they are as many as a frame's number has; none otherwise."""
    found = re.search(r"(?<!\d)\d{4,10}$", path.stem)
    return found[0] if found else ""


def _role(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in TEXTS and path.parent.name == "calib":
        return "calibration"
    if suffix in SWEEPS:
        return "points"
    if suffix in IMAGES:
        return "image"
    if suffix == ".txt":
        return "calibration" if any(line.startswith(STARTS) for line in lines(path)) else "labels"
    if suffix in FOREIGN:
        raise InvalidInputError(foreign(path))
    if suffix in (".json", ".pkl"):
        raise InvalidInputError(
            f"{path.name}: of nuScenes a folder is read that holds one key frame: sample.json in OpenMMLab's info "
            "layout with its sweep and images beside it; the data set's tables and pickled infos are not"
        )
    raise InvalidInputError(
        f"{path.name} is no file of a frame; .bin, .pcd, .npy, .png, .jpg, .txt, .zip, .bag, .mcap and .db3 are read"
    )
