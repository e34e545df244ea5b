"""KITTI object detection: LiDAR, image, calibration and labels of a frame, read into ``Frame``.

Layout and formats are those of the benchmark's development kit (Geiger et al. 2012; readme.txt of devkit_object):
``velodyne/ID.bin`` float32 x y z intensity; ``image_2/ID.png``; ``calib/ID.txt`` with P2, R0_rect, Tr_velo_to_cam;
``label_2/ID.txt`` with 15 columns (16 with a score), boxes in the rectified reference camera: location of the bottom
centre, rotation_y about the downward axis. ``Boxes3D`` holds the gravity centre and the yaw in the LiDAR frame.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from apps.driving.adapters.calibration import RAW_MOUNTS, STARTS, Calibration, lines, read_calibration
from apps.driving.types import Boxes3D, Camera, Floats, Frame
from shared.data.archive import unpacked
from shared.errors import InvalidInputError

SWEEPS, IMAGES, TEXTS = (".bin",), (".png", ".jpg", ".jpeg"), (".txt",)
FOLDERS = ("velodyne", "image_2", "calib", "label_2")
FOREIGN = (".pcd", ".ply", ".las", ".laz", ".npy", ".npz", ".xyz")
"""Files of points that are not read."""
MOST_POINTS = 2_000_000
MOST_PIXELS = 40_000_000
MOST_FRAMES = 200
_Id = TypeVar("_Id")
_LABEL_COLUMNS = (
    "type, truncated, occluded, alpha, left, top, right, bottom, height, width, length, x, y, z, rotation_y"
)


def read(path: Path) -> list[Frame]:
    """The frames of a KITTI object folder, of a zip of one, or the one frame of a .bin or an image alone."""
    return read_files([path])


def read_files(paths: Sequence[Path]) -> list[Frame]:
    """The frames in a folder, in a zip, or in loose files that belong together (by name, or because they are few)."""
    if not paths:
        raise InvalidInputError(
            "no file was given; give a KITTI folder, a zip of one, or a .bin with its image and calibration"
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
    if all(path.parent.name in FOLDERS and path.suffix.lower() in (*SWEEPS, *IMAGES) for path in paths):
        named = _by_frame(paths)
        whole = _few(sorted(named), f"what {paths[0].name} begins")
        return [_named_frame(root, frame_id, named[root, frame_id]) for root, frame_id in whole]
    return _read_loose(paths)


def read_frame(root: Path, frame_id: str, *, labelled: bool = True) -> Frame:
    """One frame of a KITTI object folder, by its number, with its labels or without; what it lacks stays empty."""
    points, image, labels = (
        _named(root / folder, frame_id, suffixes)
        for folder, suffixes in (("velodyne", SWEEPS), ("image_2", IMAGES), ("label_2", TEXTS))
    )
    if points is None and image is None:
        raise InvalidInputError(
            f"there is no frame {frame_id} in {root.name}: neither velodyne/{frame_id}.bin nor an image of it"
        )
    return _frame(frame_id, points, image, _calibration_of(root, frame_id), labels if labelled else None)


def _calibration_of(root: Path, frame_id: str) -> Path | None:
    # Odometry has one calibration for a whole sequence.
    return _named(root / "calib", frame_id, TEXTS) or _named(root, "calib", TEXTS)


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
    calibration = _calibration_of(root, frame_id) if image else None
    return _frame(frame_id, named.get("points"), image, calibration, None)


def frame_ids(root: Path) -> list[str]:
    """The numbers of the frames in a KITTI object folder, sorted; refuses sweeps that would be passed over."""
    for file in sorted((root / "velodyne").glob("*")):
        if file.suffix.lower() in FOREIGN and not file.with_suffix(".bin").exists():
            raise InvalidInputError(_foreign(file))
    return sorted(
        {
            file.stem
            for folder, suffixes in (("velodyne", SWEEPS), ("image_2", IMAGES))
            for file in (root / folder).glob("*")
            if file.suffix.lower() in suffixes
        }
    )


def _named(folder: Path, stem: str, suffixes: Sequence[str]) -> Path | None:
    """The file of that name, its ending in small letters or in capitals."""
    endings = [ending for suffix in suffixes for ending in (suffix, suffix.upper())]
    return next((found for ending in endings if (found := folder / f"{stem}{ending}").is_file()), None)


def read_points(path: Path) -> Floats:
    """(N, 4) x, y, z, intensity; refuses truncated, non-finite and otherwise laid out files."""
    content = path.read_bytes()
    if path.name.lower().endswith(".pcd.bin"):
        raise InvalidInputError(
            f"{path.name} is a sweep of nuScenes (x right, y ahead; five columns): name the folder with its "
            "sample.json, or write x = y, y = -x, z and intensity / 255 as float32 into a .bin"
        )
    if not content:
        raise InvalidInputError(f"{path.name} is empty; a LiDAR sweep holds 16 bytes a point")
    if len(content) % 16:
        hint = " It may have five columns, as nuScenes does." if len(content) % 20 == 0 else " It may be truncated."
        raise InvalidInputError(
            f"{path.name} has {len(content)} bytes, not a multiple of 16 (float32 x, y, z, intensity).{hint}"
        )
    points = np.frombuffer(content, "<f4").reshape(-1, 4).astype(np.float32)
    if len(points) > MOST_POINTS:
        raise InvalidInputError(
            f"{path.name} holds {len(points)} points; at most {MOST_POINTS} are taken. Is it one sweep?"
        )
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points)).any(axis=1).sum())
        raise InvalidInputError(f"{path.name} holds {bad} points that are not finite numbers; drop them and try again")
    if np.abs(points[:, :3]).max() > 1000:
        raise InvalidInputError(f"{path.name} holds points over 1 km away; is it float32 x, y, z, intensity in metres?")
    if points[:, 3].min() < 0 or points[:, 3].max() > 1.0001:
        raise InvalidInputError(
            f"{path.name}: the fourth column runs from {points[:, 3].min():.3g} to {points[:, 3].max():.3g}, but "
            "intensity lies in [0, 1]; scale it, or check the number of columns (KITTI has four)"
        )
    return points


def read_image(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(H, W, 3) uint8 RGB; of 16 bits a channel the upper eight."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise InvalidInputError(
                        f"{path.name} has {image.width} x {image.height} pixels; at most 40 million are taken"
                    )
                if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut at 255; it takes RGB's upper half
                    grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                    return np.repeat(grey[..., None], 3, axis=2)
                return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInputError(f"{path.name} cannot be read as an image: {error}") from error


def read_labels(path: Path, camera: Calibration | Camera) -> tuple[Boxes3D, Floats]:
    """The boxes of a label or result file in the LiDAR frame, and the 2D boxes (K, 4) of its DontCare regions."""
    names: list[str] = []
    rows, ignored = [], []
    for number, line in enumerate(lines(path), 1):
        name, *values = line.split()
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


def _frame(name: str, points: Path | None, image: Path | None, calibration: Path | None, labels: Path | None) -> Frame:
    known = read_calibration(calibration) if calibration else None
    if known is None and (image or labels):
        missing = image or labels
        assert missing is not None
        raise InvalidInputError(
            f"{missing.name} has no calibration beside it; add calib/{name}.txt (P2, R0_rect, Tr_velo_to_cam)"
        )
    cameras = {}
    if image and known:
        pixels = read_image(image)
        height, width = pixels.shape[:2]
        across, down = known.intrinsics[:2, 2]
        if not (0 <= across < width and 0 <= down < height):
            assert calibration is not None
            raise InvalidInputError(
                f"{calibration.name}: P2 has its centre at ({across:.0f}, {down:.0f}), outside of the image of "
                f"{width} x {height}; is it the calibration of another size?"
            )
        cameras["image_2"] = Camera(
            image_HWC=pixels,
            intrinsics=known.intrinsics,
            lidar_to_camera=known.lidar_to_camera,
            reference_offset_m=known.reference_offset_m,
        )
    truth, ignored = read_labels(labels, known) if labels and known else (None, np.zeros((0, 4), np.float32))
    cloud = read_points(points) if points else None
    if truth is not None and cloud is not None:
        truth = replace(truth, point_counts=truth.inside(cloud).sum(axis=1))
    return Frame(
        name=name,
        points_lidar_m=cloud,
        cameras=cameras,
        truth=truth,
        ignore_boxes_2d={"image_2": ignored} if len(ignored) else {},
    )


def _read_folder(folder: Path) -> list[Frame]:
    if not _object_roots(folder):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if not files:
            raise InvalidInputError(f"{folder.name} holds no files")
        return _read_loose(files)
    root = object_root(folder)
    return [read_frame(root, frame_id) for frame_id in _few(frame_ids(root), root.name)]


def object_root(folder: Path) -> Path:
    """The one folder in ``folder``, or itself, that holds ``velodyne`` or ``image_2`` with a frame."""
    roots = _object_roots(folder)
    if not roots:
        raise InvalidInputError(
            f"{folder.name} holds neither a folder velodyne nor image_2; give a KITTI object folder"
        )
    if len(roots) > 1:
        names = ", ".join(root.relative_to(folder).as_posix() for root in roots)
        raise InvalidInputError(f"{folder.name} holds several KITTI folders ({names}); give one of them")
    if not frame_ids(roots[0]):
        raise InvalidInputError(f"{roots[0].name} holds neither velodyne/*.bin nor image_2/*.png")
    return roots[0]


def _object_roots(folder: Path) -> list[Path]:
    return sorted({found.parent for name in ("velodyne", "image_2") for found in folder.rglob(name) if found.is_dir()})


def _few(ids: list[_Id], name: str) -> list[_Id]:
    if len(ids) > MOST_FRAMES:
        raise InvalidInputError(
            f"{name} holds {len(ids)} frames; at most {MOST_FRAMES} are taken at a time, since all stay in memory. "
            "The command line takes any number, one after the other: trivium predict driving FOLDER --each --out DIR"
        )
    return ids


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
    stems = sorted({*roles["points"], *roles["image"]})
    if not stems:
        raise InvalidInputError(f"{paths[0].name}: neither a LiDAR sweep (.bin) nor an image is among the files")
    if all(len(found) <= 1 for found in roles.values()):
        # One file of each kind belongs together, whatever they are called.
        only = {role: next(iter(found.values()), None) for role, found in roles.items()}
        return [_frame(stems[0], only["points"], only["image"], only["calibration"], only["labels"])]
    return [
        _frame(stem, *(roles[role].get(stem) for role in ("points", "image", "calibration", "labels")))
        for stem in stems
    ]


def _foreign(path: Path) -> str:
    return (
        f"{path.name}: {path.suffix[1:].upper()} is not read; write its points as float32 x, y, z, intensity in [0, 1] "
        f"into {path.stem}.bin (numpy: points.astype('<f4').tofile('{path.stem}.bin'))"
    )


def _role(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".bin":
        return "points"
    if suffix in IMAGES:
        return "image"
    if suffix == ".txt":
        return "calibration" if any(line.startswith(STARTS) for line in lines(path)) else "labels"
    if suffix in FOREIGN:
        raise InvalidInputError(_foreign(path))
    if suffix in (".json", ".pkl"):
        raise InvalidInputError(
            f"{path.name}: of nuScenes a folder is read that holds one key frame: sample.json in OpenMMLab's info "
            "layout with its sweep and images beside it; the data set's tables and pickled infos are not"
        )
    raise InvalidInputError(f"{path.name} is no file of a KITTI frame; .bin, .png, .jpg, .txt and .zip are read")
