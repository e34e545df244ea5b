"""How KITTI's folders store frames: the object benchmark (and odometry), tracking sequences, and raw drives.

Object and odometry: ``velodyne/ID.bin``, ``image_2/ID.png``, ``calib/ID.txt`` or ``calib.txt``, ``label_2/ID.txt``.
Tracking: ``velodyne/SEQUENCE/ID.bin``, ``image_02/SEQUENCE/ID.png``, ``calib/SEQUENCE.txt``, ``label_02/SEQUENCE.txt``.
Raw: ``DATE_drive_NUMBER_sync`` with ``velodyne_points/data/ID.bin`` and ``image_02/data/ID.png``, and the day's
calibration files in the parent folder or in the drive's own (Geiger et al. 2013; the benchmarks' development kits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apps.driving.adapters.point_files import SWEEPS
from shared.errors import InvalidInputError

IMAGES, TEXTS = (".png", ".jpg", ".jpeg"), (".txt",)
FOLDERS = ("velodyne", "image_2", "calib", "label_2")
UNSUPPORTED_SUFFIXES = (".ply", ".las", ".laz", ".npz", ".xyz", ".pcap", ".feather", ".bag", ".mcap", ".db3")
"""Point formats that are refused among the files of frames; ROS bags and Argoverse 2 logs must be given by themselves.
"""
_FRAME_FOLDERS = ("velodyne", "velodyne_points", "image_2", "image_02")
RAW_CALIBRATION = "calib_cam_to_cam.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFiles:
    """The files of one frame; None if missing. ``row`` is the frame's number in labels of a whole sequence."""

    points: Path | None
    image: Path | None
    calibration: Path | None
    labels: Path | None
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """A folder of frames. A frame's id is the name of its files; in tracking SEQUENCE/ID, such as 0000/000012."""

    root: Path
    kind: Literal["object", "tracking", "raw"]

    @property
    def sweeps(self) -> Path:
        """The folder of the sweeps; in tracking it has one folder per sequence."""
        return self.root / "velodyne_points" / "data" if self.kind == "raw" else self.root / "velodyne"

    @property
    def images(self) -> Path:
        """The folder of the images of camera 2; in tracking it has one folder per sequence."""
        if self.kind == "raw":
            return self.root / "image_02" / "data"
        return self.root / ("image_02" if self.kind == "tracking" else "image_2")

    def frame_ids(self) -> list[str]:
        """The sorted ids. Raises ``InvalidInputError`` if a sweep is in an unsupported format."""
        pattern = "*/*" if self.kind == "tracking" else "*"
        for file in sorted(self.sweeps.glob(pattern)):
            if file.suffix.lower() in UNSUPPORTED_SUFFIXES and find_file(file.parent, file.stem, SWEEPS) is None:
                raise InvalidInputError(unsupported_message(file))
        return sorted(
            {
                file.relative_to(folder).with_suffix("").as_posix()
                for folder, suffixes in ((self.sweeps, SWEEPS), (self.images, IMAGES))
                for file in folder.glob(pattern)
                if file.suffix.lower() in suffixes
            }
        )

    def files(self, frame_id: str) -> FrameFiles:
        """The files of one frame; suffixes may be lower or upper case."""
        points, image = find_file(self.sweeps, frame_id, SWEEPS), find_file(self.images, frame_id, IMAGES)
        if self.kind == "raw":
            folders = (self.root, self.root.parent)
            calibration = next((file for folder in folders if (file := folder / RAW_CALIBRATION).is_file()), None)
            return FrameFiles(points=points, image=image, calibration=calibration, labels=None)
        if self.kind == "tracking":
            sequence, number = frame_id.split("/")
            labels = find_file(self.root / "label_02", sequence, TEXTS)
            calibration = find_file(self.root / "calib", sequence, TEXTS)
            row = int(number) if number.isdecimal() else None
            return FrameFiles(points=points, image=image, calibration=calibration, labels=labels, row=row)
        return FrameFiles(
            points=points,
            image=image,
            calibration=calibration_of(self.root, frame_id),
            labels=find_file(self.root / "label_2", frame_id, TEXTS),
        )


def calibration_of(root: Path, frame_id: str) -> Path | None:
    """The calibration of a frame in the object layout; odometry has one calibration for a whole sequence."""
    return find_file(root / "calib", frame_id, TEXTS) or find_file(root, "calib", TEXTS)


def layout_of(root: Path) -> Layout:
    """The layout in which ``root`` stores its frames."""
    if (root / "velodyne_points").is_dir() or (root / "image_02" / "data").is_dir():
        return Layout(root, "raw")
    folders = [root / name for name in ("velodyne", "image_02")]
    if any(folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir()) for folder in folders):
        return Layout(root, "tracking")
    return Layout(root, "object")


def frame_root(folder: Path) -> Path:
    """The single folder in ``folder``, or itself, that stores frames in one of these layouts."""
    roots = frame_roots(folder)
    if not roots:
        raise InvalidInputError(
            f"{folder.name} contains neither a folder velodyne nor image_2; give a KITTI object folder"
        )
    if len(roots) > 1:
        names = ", ".join(root.relative_to(folder).as_posix() for root in roots)
        raise InvalidInputError(f"{folder.name} contains several KITTI folders ({names}); give one of them")
    if not layout_of(roots[0]).frame_ids():
        raise InvalidInputError(f"{roots[0].name} contains no sweep (velodyne/*.bin, .pcd, .npy) and no image_2/*.png")
    return roots[0]


def frame_roots(folder: Path) -> list[Path]:
    """The folders in ``folder``, and itself, that store sweeps or images as KITTI does."""
    return sorted({found.parent for name in _FRAME_FOLDERS for found in folder.rglob(name) if found.is_dir()})


def find_file(folder: Path, stem: str, suffixes: Sequence[str]) -> Path | None:
    """The file with this name and one of the suffixes, in lower or upper case; None if there is none."""
    endings = [ending for suffix in suffixes for ending in (suffix, suffix.upper())]
    return next((found for ending in endings if (found := folder / f"{stem}{ending}").is_file()), None)


def unsupported_message(path: Path) -> str:
    """The error message for points in an unsupported format, with the way to convert them."""
    if path.suffix.lower() in (".bag", ".mcap", ".db3"):
        return f"{path.name} is a ROS bag, which holds many sweeps; give it without other files"
    if path.suffix.lower() == ".feather":
        return (
            f"{path.name}: a feather file is read only as part of an Argoverse 2 log, by its folders calibration and "
            "sensors/lidar; give the folder of the log, or a zip of it (in the form and over HTTP)"
        )
    return (
        f"{path.name}: {path.suffix[1:].upper()} is not supported; write its points x, y, z (metres) and intensity as "
        f"PCD, or as an array (N, 4) into {path.stem}.npy (numpy.save)"
    )
