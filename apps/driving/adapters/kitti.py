"""KITTI object detection: reads LiDAR, image, calibration and labels of a frame into ``Frame``.

The layout and the formats are those of the benchmark's development kit (Geiger et al. 2012; readme.txt of
devkit_object): ``velodyne/ID.bin`` float32 x y z intensity; ``image_2/ID.png``; ``calib/ID.txt`` with P2, R0_rect,
Tr_velo_to_cam; ``label_2/ID.txt`` with 15 columns (16 with a score) and boxes in the rectified reference camera: the
bottom centre as location, rotation_y about the downward axis. Labels of the tracking benchmark have the frame and the
track first. ``Boxes3D`` holds the gravity centre and the yaw in the LiDAR frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from apps.driving.adapters.box_values import check_units
from apps.driving.adapters.calibration import (
    CALIBRATION_LINE_STARTS,
    RAW_EXTRINSICS_FILES,
    Calibration,
    nonblank_lines,
    read_calibration,
)
from apps.driving.adapters.image_files import read_image, resize_remarks
from apps.driving.adapters.kitti_layouts import (
    FOLDERS,
    IMAGES,
    TEXTS,
    UNSUPPORTED_SUFFIXES,
    FrameFiles,
    calibration_of,
    frame_root,
    frame_roots,
    layout_of,
    unsupported_message,
)
from apps.driving.adapters.point_files import SWEEPS, read_sweep
from apps.driving.types import Boxes3D, Camera, Floats, Frame, wrap_angle
from shared.data.archive import unpacked
from shared.errors import InvalidInputError

MAX_FRAMES = 200
_Id = TypeVar("_Id")
_LABEL_COLUMNS = (
    "type, truncated, occluded, alpha, left, top, right, bottom, height, width, length, x, y, z, rotation_y"
)


def read(path: Path) -> list[Frame]:
    """The frames of a KITTI object folder or a zip of one, or the single frame of a sweep or image file."""
    return read_files([path])


def read_files(paths: Sequence[Path]) -> list[Frame]:
    """The frames in a folder, a zip, or single files. Single files are grouped by name; if there is at most one of each
    kind, they are one frame."""
    if not paths:
        raise InvalidInputError(
            "no file was given; give a KITTI folder, a zip of one, or a sweep (.bin, .pcd, .npy), optionally with its "
            "image and calibration"
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
        by_frame = _by_frame(paths)
        frames = within_limit(sorted(by_frame), f"the list that starts with {paths[0].name}")
        return [_frame_of_files(root, frame_id, by_frame[root, frame_id]) for root, frame_id in frames]
    return _read_single_files(paths)


def read_frame(root: Path, frame_id: str, *, labelled: bool = True, device: str = "cpu") -> Frame:
    """One frame of a KITTI folder by its id, with or without its labels; missing sensors stay empty.

    ``device`` decodes the image.
    """
    layout = layout_of(root)
    files = layout.files(frame_id)
    if files.points is None and files.image is None:
        raise InvalidInputError(
            f"{root.name} has no frame {frame_id}: neither "
            f"{layout.sweeps.relative_to(root)}/{frame_id}.bin nor an image of it"
        )
    return _frame(frame_id.replace("/", "_"), files if labelled else replace(files, labels=None), device)


def _in_folders(paths: Sequence[Path]) -> bool:
    """Whether all paths are sweeps and images in KITTI's folders."""
    return all(path.parent.name in FOLDERS and path.suffix.lower() in (*SWEEPS, *IMAGES) for path in paths)


def _by_frame(paths: Sequence[Path]) -> dict[tuple[Path, str], dict[str, Path]]:
    """Groups sweeps and images in KITTI's folders by their frame."""
    frames: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in paths:
        frame, role = frames.setdefault((path.parent.parent, path.stem), {}), _role(path)
        if frame.setdefault(role, path) != path:
            raise InvalidInputError(
                f"two files could be the {role} of {path.stem}: {frame[role].name} and {path.name}; give one"
            )
    return frames


def _frame_of_files(root: Path, frame_id: str, files: dict[str, Path]) -> Frame:
    """A frame of exactly the given files, plus the calibration that an image needs."""
    image = files.get("image")
    calibration = calibration_of(root, frame_id) if image else None
    return _frame(frame_id, FrameFiles(points=files.get("points"), image=image, calibration=calibration, labels=None))


def frame_ids(root: Path) -> list[str]:
    """The sorted frame ids of a KITTI folder. Raises ``InvalidInputError`` if a sweep is in an unsupported format."""
    return layout_of(root).frame_ids()


def read_labels(path: Path, camera: Calibration | Camera, frame: int | None = None) -> tuple[Boxes3D, Floats]:
    """The boxes of a label or result file in the LiDAR frame, and the 2D boxes (K, 4) of its DontCare regions.

    ``frame`` is the frame to read from labels of the tracking benchmark, which hold a whole sequence.
    """
    names: list[str] = []
    rows, ignored = [], []
    for number, line in enumerate(nonblank_lines(path), 1):
        words = line.split()
        if frame is not None:
            if words[0] != str(frame):
                continue
            words = words[2:]
        if not words:
            raise InvalidInputError(f"{path.name}, line {number}: there are no columns after the frame and the track")
        name, *values = words
        if len(values) not in (14, 15):
            raise InvalidInputError(
                f"{path.name}, line {number}: {len(values) + 1} columns; expected 15, or 16 with a score"
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
            raise InvalidInputError(f"{path.name}, line {number}: the size of {name} is not positive")
        if len(values) == 14:  # boxes with a score come from a detector, which may output any size
            check_units(name, row[9:6:-1], row[10:13], f"{path.name}, line {number}")
        names.append(name.lower())
        rows.append(row + [np.nan] * (15 - len(row)))
    table = np.array(rows, np.float64).reshape(-1, 15)
    unscored = int(np.isnan(table[:, 14]).sum())
    if 0 < unscored < len(table):
        raise InvalidInputError(
            f"{path.name}: {unscored} of {len(table)} rows have no score (column 16); give all rows a score, or none"
        )
    centre, yaw = from_rectified(table[:, 10:13], table[:, 7], table[:, 13], camera)
    boxes = Boxes3D(
        centre_lidar_m=centre,
        size_m=table[:, [9, 8, 7]].astype(np.float32),
        yaw=yaw,
        names=tuple(names),
        scores=table[:, 14].astype(np.float32) if len(table) and not unscored else None,
        truncation=table[:, 0].astype(np.float32),
        occlusion=table[:, 1].astype(np.int64),
        box_2d=table[:, 3:7].astype(np.float32),
    )
    return boxes, np.array(ignored, np.float32).reshape(-1, 4)


def from_rectified(
    location_N3: np.ndarray, height_N: np.ndarray, rotation_N: np.ndarray, camera: Calibration | Camera
) -> tuple[Floats, Floats]:
    """Gravity centre (N, 3) and yaw (N,) in the LiDAR frame of boxes given by bottom centre and rotation_y."""
    centre = location_N3 - np.stack([0 * height_N, height_N / 2, 0 * height_N], axis=-1) + camera.reference_offset_m
    rotation, translation = camera.lidar_to_camera[:3, :3].astype(np.float64), camera.lidar_to_camera[:3, 3]
    yaw = wrap_angle(_forward_yaw(camera) - rotation_N - np.pi / 2)
    return ((centre - translation) @ rotation).astype(np.float32), yaw.astype(np.float32)


def to_rectified(boxes: Boxes3D, camera: Calibration | Camera) -> tuple[np.ndarray, np.ndarray]:
    """Bottom centre (N, 3) and rotation_y (N,) in KITTI's label frame: the inverse of ``from_rectified``."""
    rotation, translation = camera.lidar_to_camera[:3, :3].astype(np.float64), camera.lidar_to_camera[:3, 3]
    centre = boxes.centre_lidar_m @ rotation.T + translation - camera.reference_offset_m
    location = centre + boxes.size_m[:, 2:] / 2 * np.array([0.0, 1.0, 0.0])
    return location, wrap_angle(_forward_yaw(camera) - boxes.yaw.astype(np.float64) - np.pi / 2)


def _forward_yaw(camera: Calibration | Camera) -> float:
    # Boxes are upright in both frames, so the frames differ in yaw only.
    ahead = camera.lidar_to_camera[2, :3]
    return float(np.arctan2(ahead[1], ahead[0]))


def _frame(name: str, files: FrameFiles, device: str = "cpu") -> Frame:
    calibration = read_calibration(files.calibration) if files.calibration else None
    if calibration is None and (missing := files.image or files.labels):
        problem = f"{missing.name} has no calibration"
        if files.labels and files.labels.parent.name not in ("label_2", "label_02"):
            content = "has no row P2, R0_rect or Tr_velo_to_cam" if nonblank_lines(files.labels) else "is empty"
            problem = f"{files.labels.name} {content}, so it is not the calibration that images and labels need"
        without = f", or leave {missing.name} out: a sweep needs no calibration" if files.points else ""
        raise InvalidInputError(f"{problem}; add calib/{name}.txt (P2, R0_rect, Tr_velo_to_cam){without}")
    cameras: dict[str, Camera] = {}
    remarks: tuple[str, ...] = ()
    if files.image and calibration:
        pixels = read_image(files.image, device)
        height, width = pixels.shape[:2]
        across, down = calibration.intrinsics[:2, 2]
        if not (0 <= across < width and 0 <= down < height):
            assert files.calibration is not None
            raise InvalidInputError(
                f"{files.calibration.name}: P2 has its principal point at ({across:.0f}, {down:.0f}), outside the "
                f"image of {width} x {height}; is it the calibration for another image size?"
            )
        remarks = resize_remarks(files.image.name, pixels.shape, calibration.intrinsics)
        cameras["image_2"] = Camera(
            image_HWC=pixels,
            intrinsics=calibration.intrinsics,
            lidar_to_camera=calibration.lidar_to_camera,
            reference_offset_m=calibration.reference_offset_m,
        )
    truth, ignored = None, np.zeros((0, 4), np.float32)
    if files.labels and calibration:
        truth, ignored = read_labels(files.labels, calibration, files.row)
    points = None
    if files.points:
        points, sweep_remarks = read_sweep(files.points)
        remarks += sweep_remarks
    if truth is not None and points is not None:
        truth = replace(truth, point_counts=truth.inside(points).sum(axis=1))
    return Frame(
        name=name,
        points_lidar_m=points,
        cameras=cameras,
        truth=truth,
        ignore_boxes_2d={"image_2": ignored} if len(ignored) else {},
        remarks=remarks,
    )


def _read_folder(folder: Path) -> list[Frame]:
    if not frame_roots(folder):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if not files:
            raise InvalidInputError(f"{folder.name} is empty: it contains no files")
        inside = [folder.absolute() / file.relative_to(folder) for file in files]
        return read_files(inside) if _in_folders(inside) else _read_single_files(files)
    root = frame_root(folder)
    return [read_frame(root, frame_id) for frame_id in within_limit(frame_ids(root), root.name)]


def within_limit(ids: list[_Id], name: str) -> list[_Id]:
    """Returns the ids. Raises ``InvalidInputError`` if ``name`` holds more frames than may be in memory at once."""
    check_frame_count(len(ids), name)
    return ids


def check_frame_count(count: int, name: str) -> None:
    """Raises ``InvalidInputError`` if there are more frames than may be in memory at once."""
    if count > MAX_FRAMES:
        raise InvalidInputError(
            f"{name} holds {count} frames; at most {MAX_FRAMES} are accepted at a time, since all stay in memory. "
            "To process any number one by one, use the command line: trivium predict driving PATH --each --out DIR"
        )


def _read_single_files(paths: Sequence[Path]) -> list[Frame]:
    """Single files: recognised by their content, grouped into frames by name."""
    roles: dict[str, dict[str, Path]] = {"points": {}, "image": {}, "calibration": {}, "labels": {}}
    for path in paths:
        if path.name in RAW_EXTRINSICS_FILES and len(paths) > 1:
            continue
        role = _role(path)
        if path.stem in roles[role]:
            raise InvalidInputError(
                f"two files could be the {role} of {path.stem}: {roles[role][path.stem].name} and {path.name}; give one"
            )
        roles[role][path.stem] = path
    stems = within_limit(sorted({*roles["points"], *roles["image"]}), "the input")
    if not stems:
        raise InvalidInputError(
            f"{paths[0].name}: the files include neither a LiDAR sweep (.bin, .pcd, .npy, a ROS bag) nor an image"
        )
    if all(len(found) <= 1 for found in roles.values()):
        # With one file of each kind, the files belong together whatever their names, unless these contain the numbers
        # of different frames.
        _check_same_frame([path for found in roles.values() for path in found.values()])
        files = {stems[0]: _frame_files({role: next(iter(found.values()), None) for role, found in roles.items()})}
    else:
        files = {stem: _frame_files({role: found.get(stem) for role, found in roles.items()}) for stem in stems}
    needed = {one.calibration for one in files.values() if one.image or one.labels}
    unused = [path for path in roles["calibration"].values() if path not in needed]
    return [
        _with_remarks(_frame(stem, one), [path for path in unused if path.stem == stem or path.stem not in files])
        for stem, one in files.items()
    ]


def _with_remarks(frame: Frame, unused: Sequence[Path]) -> Frame:
    """The frame with a remark for each of the ``unused`` calibrations."""
    remarks = (f"{path.name} is not used: no image was given that it could be the calibration of." for path in unused)
    return replace(frame, remarks=(*frame.remarks, *remarks))


def _frame_files(roles: Mapping[str, Path | None]) -> FrameFiles:
    return FrameFiles(
        points=roles["points"], image=roles["image"], calibration=roles["calibration"], labels=roles["labels"]
    )


def _check_same_frame(paths: Sequence[Path]) -> None:
    """Raises ``InvalidInputError`` if names differ only in their numbers, or end in different frame numbers."""
    for number, path in enumerate(paths):
        for other in paths[:number]:
            alike = re.sub(r"\d+", "#", path.stem) == re.sub(r"\d+", "#", other.stem)
            mine, theirs = _frame_number(path), _frame_number(other)
            numbered = len(mine) == len(theirs) and mine != theirs
            if numbered or (alike and path.stem != other.stem):
                raise InvalidInputError(
                    f"{other.name} and {path.name} have the names of different frames; give them the same name if they "
                    "belong together, or add both files of each frame"
                )


def _frame_number(path: Path) -> str:
    """The digits at the end of the name if there are as many as in a frame number (4 to 10), else an empty string."""
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
        return (
            "calibration"
            if any(line.startswith(CALIBRATION_LINE_STARTS) for line in nonblank_lines(path))
            else "labels"
        )
    if suffix in UNSUPPORTED_SUFFIXES:
        raise InvalidInputError(unsupported_message(path))
    if suffix in (".json", ".pkl"):
        raise InvalidInputError(
            f"{path.name}: for nuScenes, give a folder with one key frame: sample.json in OpenMMLab's info layout, "
            "with its sweep and images beside it; the data set's tables and pickled infos are not read"
        )
    raise InvalidInputError(
        f"{path.name} has an unsupported type; supported: .bin, .pcd, .npy, .png, .jpg, .txt, .zip, .bag, .mcap, .db3"
    )
