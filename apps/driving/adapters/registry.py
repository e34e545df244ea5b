"""The one table of what is read: how a format is told by its files, and its reader. A new format is a line here."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from apps.driving.adapters import argoverse2, cityscapes3d, custom, kitti, kitti_layouts, nuscenes, point_files, rosbag
from apps.driving.types import Frame
from shared.data.archive import ArchiveLimits, unpacked
from shared.errors import InvalidInputError

ZIP_LIMITS = ArchiveLimits(files=5000, unpacked_bytes=1 << 30)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """``described_by`` finds, among files or in a folder, those that this format begins with; ``read`` takes one.

    ``each`` where the command line goes through a data set of them (``--each``).
    """

    name: str
    described_by: Callable[[Sequence[Path]], list[Path]]
    read: Callable[[Path], list[Frame]]
    each: bool = False


def _ending(suffix: str) -> Callable[[Sequence[Path]], list[Path]]:
    """Files whose name ends so: as they were handed in, or anywhere in the one folder that was."""

    def find(files: Sequence[Path]) -> list[Path]:
        if len(files) == 1 and files[0].is_dir():
            return sorted(files[0].rglob(f"*{suffix}"))
        return [file for file in files if file.name.endswith(suffix)]

    return find


def _log_of(calibration: Path) -> list[Frame]:
    return argoverse2.read(calibration.parent.parent)


def _own_sweeps(root: Path) -> list[Frame]:
    return [custom.read_frame(root, frame_id) for frame_id in kitti.within_limit(custom.frame_ids(root), root.name)]


def _city_image(labels: Path) -> list[Frame]:
    return [cityscapes3d.read(labels, cityscapes3d.image_of(labels))]


def _city_image_alone(image: Path) -> list[Frame]:
    return [cityscapes3d.read_unlabelled(image, cityscapes3d.calibration_of(image))]


READERS: tuple[Reader, ...] = (
    Reader(name="nuScenes key frame", described_by=_ending("sample.json"), read=nuscenes.read),
    Reader(name="Argoverse 2 log", described_by=_ending("egovehicle_SE3_sensor.feather"), read=_log_of, each=True),
    Reader(name="Cityscapes 3D image", described_by=_ending(cityscapes3d.LABELS), read=_city_image, each=True),
    Reader(name="Cityscapes image", described_by=_ending(cityscapes3d.IMAGE), read=_city_image_alone, each=True),
    Reader(name="folder with points", described_by=custom.folders, read=_own_sweeps),
)
"""Formats that the name of a file or folder tells, and then ROS bags, of which a topic is named; everything else is
KITTI's (.bin, .pcd, .npy, .png, .jpg, .txt)."""


def read_frames(files: Sequence[Path], topic: str | None = None) -> list[Frame]:
    """The frames in what was handed in: a folder, a zip, or files. Their names differ. Raises ``InvalidInputError``.

    ``topic`` is the one that is read of a ROS bag.
    """
    if len(files) == 1 and zipfile.is_zipfile(files[0]):
        with unpacked(files[0], ZIP_LIMITS) as folder:
            try:
                return _read([folder], files[0].name, topic)
            except InvalidInputError as refusal:
                # Where the folder lies is ours; its reader knows the archive's name.
                raise InvalidInputError(
                    str(refusal).replace(str(folder), files[0].name), status=refusal.status
                ) from refusal
    return _read(files, files[0].name if files else "", topic)


def sensors_from_names(files: Sequence[Path]) -> dict[str, bool]:
    """Whether the names of the files, or in the folder or zip, tell of LiDAR sweeps and of images; none is read."""
    suffixes = {name[name.rfind(".") :].lower() for file in files for name in _names(file)}
    return {
        "lidar": not suffixes.isdisjoint((*point_files.SWEEPS, *rosbag.BAGS, ".feather", ".zstd")),
        "camera": not suffixes.isdisjoint(kitti_layouts.IMAGES),
    }


def _names(file: Path) -> Iterator[str]:
    if file.is_dir():
        yield from (path.name for path in file.rglob("*"))
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            yield from archive.namelist()
    else:
        yield file.name


def _read(files: Sequence[Path], name: str, topic: str | None) -> list[Frame]:
    for reader in READERS:
        described = reader.described_by(files)
        if len(described) > 1:
            more = "; the command line takes them all: trivium predict driving PATH --each --out DIR"
            raise InvalidInputError(
                f"{name} holds {len(described)} files such as {described[0].name}; hand in one {reader.name} at a time"
                f"{more if reader.each else ''}"
            )
        if described:
            _refuse_topic(topic, name)
            return _with_names_of_their_own(reader.read(described[0]), name)
    if rosbag.bag_files(files):
        return rosbag.read(files, topic)
    _refuse_topic(topic, name)
    return _with_names_of_their_own(kitti.read_files(files), name)


def _refuse_topic(topic: str | None, name: str) -> None:
    if topic is not None:
        raise InvalidInputError(f"the option topic names one of a ROS bag, and {name} is none; leave it out")


def _with_names_of_their_own(frames: list[Frame], name: str) -> list[Frame]:
    if not frames:
        raise InvalidInputError(f"{name} holds no frame")
    # Names tell the frames of a result apart; those of a sample description may repeat.
    if len({frame.name for frame in frames}) < len(frames):
        return [replace(frame, name=f"{number}-{frame.name}") for number, frame in enumerate(frames)]
    return frames
