"""The table of input formats: how files identify a format, and its reader. A new format is one line here."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from apps.driving.adapters import argoverse2, cityscapes3d, custom, kitti, kitti_layouts, nuscenes, point_files, rosbag
from apps.driving.types import Frame
from shared.data.archive import ArchiveLimits, unpacked
from shared.errors import InvalidInputError

ZIP_LIMITS = ArchiveLimits(files=5000, unpacked_bytes=1 << 30)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """``described_by`` finds, in files or a folder, the file or folder that identifies the format; ``read`` reads it.

    ``each``: whether ``--each`` on the command line processes a data set in this format.
    """

    name: str
    described_by: Callable[[Sequence[Path]], list[Path]]
    read: Callable[[Path], list[Frame]]
    each: bool = False


def _with_suffix(suffix: str) -> Callable[[Sequence[Path]], list[Path]]:
    """Finds files by the end of their names: among the given files, or anywhere in a single given folder."""

    def find(files: Sequence[Path]) -> list[Path]:
        if len(files) == 1 and files[0].is_dir():
            return sorted(files[0].rglob(f"*{suffix}"))
        return [file for file in files if file.name.endswith(suffix)]

    return find


def _read_log(calibration: Path) -> list[Frame]:
    log = calibration.parent.parent
    if not argoverse2.is_log(log):  # a dropped folder arrives as files without their folders
        raise InvalidInputError(kitti_layouts.unsupported_message(calibration))
    return argoverse2.read(log)


def _read_custom(root: Path) -> list[Frame]:
    return [custom.read_frame(root, frame_id) for frame_id in kitti.within_limit(custom.frame_ids(root), root.name)]


def _read_labelled_city_image(labels: Path) -> list[Frame]:
    return [cityscapes3d.read(labels, cityscapes3d.image_of(labels))]


def _read_city_image(image: Path) -> list[Frame]:
    return [cityscapes3d.read_unlabelled(image, cityscapes3d.calibration_of(image))]


READERS: tuple[Reader, ...] = (
    Reader(name="nuScenes key frame", described_by=_with_suffix("sample.json"), read=nuscenes.read),
    Reader(
        name="Argoverse 2 log", described_by=_with_suffix("egovehicle_SE3_sensor.feather"), read=_read_log, each=True
    ),
    Reader(
        name="Cityscapes 3D image",
        described_by=_with_suffix(cityscapes3d.LABELS),
        read=_read_labelled_city_image,
        each=True,
    ),
    Reader(name="Cityscapes image", described_by=_with_suffix(cityscapes3d.IMAGE), read=_read_city_image, each=True),
    Reader(name="folder with points", described_by=custom.folders, read=_read_custom),
)
"""Formats recognised by the name of a file or folder. If none matches, ROS bags are tried, and then KITTI's files
(.bin, .pcd, .npy, .png, .jpg, .txt)."""


def read_frames(files: Sequence[Path], topic: str | None = None) -> list[Frame]:
    """The frames in a folder, a zip, or files. Their names are unique. Raises ``InvalidInputError``.

    ``topic`` is the topic to read from a ROS bag.
    """
    if len(files) == 1 and zipfile.is_zipfile(files[0]):
        with unpacked(files[0], ZIP_LIMITS) as folder:
            try:
                return _read([folder], files[0].name, topic)
            except InvalidInputError as refusal:
                # The temporary folder is internal; the user knows the name of the archive.
                raise InvalidInputError(
                    str(refusal).replace(str(folder), files[0].name), status=refusal.status
                ) from refusal
    return _read(files, files[0].name if files else "", topic)


def sensors_from_names(files: Sequence[Path]) -> dict[str, bool]:
    """Whether the file names, also those in a folder or zip, suggest LiDAR sweeps and images. Reads no file content."""
    suffixes = {name[name.rfind(".") :].lower() for file in files for name in _names(file)}
    return {
        "lidar": not suffixes.isdisjoint((*point_files.SWEEPS, *rosbag.BAGS, ".feather", ".zstd")),
        "camera": not suffixes.isdisjoint(kitti_layouts.IMAGES),
    }


def _names(file: Path) -> Iterator[str]:
    if file.is_dir():
        yield from (path.name for path in file.rglob("*"))
    elif zipfile.is_zipfile(file):
        # A reader says what is wrong with a damaged archive.
        with suppress(zipfile.BadZipFile, NotImplementedError, OSError, ValueError), zipfile.ZipFile(file) as archive:
            yield from archive.namelist()
    else:
        yield file.name


def _read(files: Sequence[Path], name: str, topic: str | None) -> list[Frame]:
    for reader in READERS:
        described = reader.described_by(files)
        if len(described) > 1:
            more = "; to process all of them, use the command line: trivium predict driving PATH --each --out DIR"
            raise InvalidInputError(
                f"{name} holds {len(described)} files such as {described[0].name}; give one {reader.name} at a time"
                f"{more if reader.each else ''}"
            )
        if described:
            _check_no_topic(topic, name)
            return _with_unique_names(reader.read(described[0]), name)
    if rosbag.bag_files(files):
        return rosbag.read(files, topic)
    _check_no_topic(topic, name)
    return _with_unique_names(kitti.read_files(files), name)


def _check_no_topic(topic: str | None, name: str) -> None:
    if topic is not None:
        raise InvalidInputError(f"the option topic is for ROS bags, and {name} is not one; omit it")


def _with_unique_names(frames: list[Frame], name: str) -> list[Frame]:
    if not frames:
        raise InvalidInputError(f"{name} contains no frames")
    # The frames of a result are identified by their names; the names in a sample description may repeat.
    if len({frame.name for frame in frames}) < len(frames):
        return [replace(frame, name=f"{number}-{frame.name}") for number, frame in enumerate(frames)]
    return frames
