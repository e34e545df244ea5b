"""Reads sweeps from ROS bags: finds the files of one recording, chooses the topic, turns its clouds into frames.

Formats: ROS 1 ``.bag``, ROS 2 ``.mcap`` and ``.db3``, or a folder with one recording, split or not, with or without
``metadata.yaml``. A frame is named by its topic and its timestamp in ns: that of the message header, or else of the
recording. Points are used as they are, in the frame of the header: x forward, y left, z up (REP 103).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from apps.driving.adapters.kitti import check_frame_count
from apps.driving.adapters.kitti_layouts import frame_roots
from apps.driving.adapters.point_cloud2 import POINT_CLOUD2, read_cloud, stamp_ns
from apps.driving.adapters.point_files import MAX_POINTS, sweep_of
from apps.driving.types import Frame
from shared.errors import InvalidInputError

BAGS = (".bag", ".mcap", ".db3")
_BAG_SUFFIX = re.compile(r"\.(bag|bag\.active|(mcap|db3)(\.zstd)?)$", re.IGNORECASE)
_PART_NUMBER = re.compile(r"((^|_)\d{4}(-\d\d){5})?_(\d+)$")
"""The number of a part; ROS 1 puts the start time of the part before it."""
_RAW_LIDAR_TYPES = re.compile(
    r"^(?!sensor_msgs/).*(packet|scan|custommsg|lidar|velodyne|ouster|hesai|livox)", re.IGNORECASE
)
"""Matches the types of a LiDAR's raw data: velodyne_msgs/VelodyneScan, ouster_sensor_msgs/PacketMsg."""
_METADATA = "metadata.yaml"
"""ROS 2 writes this beside the files of a recording; it is not needed to read them."""
_NON_LIDAR_FRAMES = ("base_link", "base_footprint", "ego_vehicle", "vehicle", "odom", "map", "world", "earth")
_MAX_SWEEPS = 2_000_000
_MAX_NAMES_SHOWN = 8
"""The maximum number of topics or files named in a message."""


@dataclass(frozen=True, slots=True)
class BagSweep:
    """A message with a point cloud; ``read`` decodes it."""

    name: str
    file: str
    data: bytes
    time_ns: int
    ros1: bool

    def read(self) -> Frame:
        """The frame of the cloud. Raises ``InvalidInputError`` if the cloud is damaged."""
        try:
            cloud = read_cloud(self.data, self.name, MAX_POINTS, ros1=self.ros1)
            points, remarks = sweep_of(cloud.columns, self.name)
        except InvalidInputError as refusal:
            raise InvalidInputError(f"{self.file}: {refusal}") from refusal
        if cloud.frame_id.strip("/").lower() in _NON_LIDAR_FRAMES:
            remarks += (
                f"The points are in the frame {cloud.frame_id.strip('/')}, which is not a LiDAR frame: the networks "
                "expect x forward and the ground 0.9 to 2.9 m below. Record the cloud in the LiDAR's own frame.",
            )
        return Frame(name=self.name, points_lidar_m=points, cameras={}, time_ns=self.time_ns, remarks=remarks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bag:
    """A recording: its files in order, the topic to read, and the number of messages that it states."""

    name: str
    files: tuple[Path, ...]
    topic: str
    count: int

    def sweeps(self) -> Iterator[BagSweep]:
        """The sweeps in order, with unique names. Raises ``InvalidInputError`` if the recording is damaged."""
        from apps.driving.adapters.rosbag_storage import messages

        names: set[str] = set()
        for file in self.files:
            for message in messages(file, self.topic, POINT_CLOUD2):
                time_ns = stamp_ns(message.data, ros1=message.ros1) or message.time_ns
                name = f"{_printable(self.topic).strip('/')}/{time_ns}"
                name = name if name not in names else f"{name}-{len(names)}"
                names.add(name)
                if len(names) > _MAX_SWEEPS:
                    raise InvalidInputError(f"{self.name} holds more than {_MAX_SWEEPS} sweeps; split it")
                yield BagSweep(name, file.name, message.data, time_ns, message.ros1)


def bag_files(paths: Sequence[Path]) -> list[Path]:
    """The bag files among the given ones, or in a single given folder unless it has frames in KITTI's layout."""
    if len(paths) == 1 and paths[0].is_dir():
        found = [file for file in paths[0].rglob("*") if is_bag(file) and file.is_file()]
        return [] if found and frame_roots(paths[0]) else found
    return [path for path in paths if is_bag(path)]


def is_bag(path: Path) -> bool:
    """Whether the file name is that of a bag."""
    return _BAG_SUFFIX.search(path.name) is not None and not path.name.startswith(".")


def read(paths: Sequence[Path], topic: str | None = None) -> list[Frame]:
    """All frames of a short recording; see ``open_bag``."""
    bag = open_bag(paths, topic)
    check_frame_count(bag.count, bag.name)
    frames: list[Frame] = []
    for sweep in bag.sweeps():
        check_frame_count(len(frames) + 1, bag.name)  # it may have more messages than it states
        frames.append(sweep.read())
    if not frames:
        raise InvalidInputError(f"{bag.name} has none of the {bag.count} messages that it states on {bag.topic}")
    return frames


def open_bag(paths: Sequence[Path], topic: str | None = None) -> Bag:
    """The single recording in the input, with the ``topic`` of its sweeps; None chooses the only topic with sweeps.

    Raises ``InvalidInputError`` if the topic does not exist, or if there is not exactly one to choose.
    """
    try:
        from apps.driving.adapters.rosbag_storage import topics
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"ROS bags need the package {error.name}; install trivium[ros]") from error
    files = _files_of_recording(paths)
    name = files[0].name if len(files) == 1 else paths[0].name
    counts: Counter[tuple[str, str]] = Counter()
    for file in files:
        counts.update(topics(file))
    clouds = {name: count for (name, kind), count in sorted(counts.items()) if kind == POINT_CLOUD2 and count > 0}
    if not clouds:
        raise InvalidInputError(_no_clouds_message(name, counts))
    if topic is not None and topic not in clouds:
        raise InvalidInputError(f"{name} has no PointCloud2 on {_printable(topic)}, only on {_format_topics(clouds)}")
    if topic is None and len(clouds) > 1:
        raise InvalidInputError(
            f"{name} has PointCloud2 on {len(clouds)} topics: {_format_topics(clouds)}; choose one with the option "
            f"topic (topic={_printable(max(clouds, key=lambda each: clouds[each]))})"
        )
    chosen = topic or next(iter(clouds))
    return Bag(name=name, files=tuple(files), topic=chosen, count=clouds[chosen])


def _files_of_recording(paths: Sequence[Path]) -> list[Path]:
    files = bag_files(paths)
    if len(files) < sum(path.name != _METADATA for path in paths):
        raise InvalidInputError(f"{files[0].name} is a ROS bag; give it without other files")
    stems = [(file.parent, _BAG_SUFFIX.sub("", file.name)) for file in files]
    recordings = {(folder, _PART_NUMBER.sub("", stem)) for folder, stem in stems}
    parts = {(folder, _PART_NUMBER.sub(r"_\4", stem)) for folder, stem in stems}
    if len(recordings) > 1 or len(parts) < len(files):
        names = ", ".join(sorted(file.name for file in files)[:_MAX_NAMES_SHOWN])
        raise InvalidInputError(f"there are several ROS bags ({names}); give one at a time")
    return sorted(files, key=lambda file: (len(file.name), file.name))  # drive_9 before drive_10


def _no_clouds_message(name: str, counts: Mapping[tuple[str, str], int]) -> str:
    recorded = {topic: count for (topic, _), count in counts.items() if count > 0}
    if not recorded:
        return f"{name} has no messages"
    kinds = {topic: kind.replace("/msg/", "/") for topic, kind in counts}
    raw = {topic: count for topic, count in recorded.items() if _RAW_LIDAR_TYPES.search(kinds[topic])}
    if any("custommsg" in kinds[topic].lower() for topic in raw):  # Livox's driver writes these, but does not read them
        remedy = "record PointCloud2 (xfer_format 0 of Livox's driver), or convert the messages to it"
    elif raw:
        remedy = "play it through the LiDAR's driver and record the output"
    else:
        remedy = "record the LiDAR's PointCloud2 topic"
    return f"{name} has no sweeps in sensor_msgs/PointCloud2, only {_format_topics(raw or recorded, kinds)}; {remedy}"


def _format_topics(counts: Mapping[str, int], kinds: Mapping[str, str] | None = None) -> str:
    """The topics with their types, if given, and their numbers of messages."""
    listed = [
        f"{_printable(topic)} ({_printable(kinds[topic]) + ', ' if kinds else ''}{count} messages)"
        for topic, count in islice(counts.items(), _MAX_NAMES_SHOWN)
    ]
    return ", ".join(listed) + (f" and {len(counts) - _MAX_NAMES_SHOWN} more" if len(counts) > _MAX_NAMES_SHOWN else "")


def _printable(name: str) -> str:
    """A topic or type with only the characters that ROS allows, at most 100."""
    return re.sub(r"[^\w/.~-]", "_", name)[:100]
