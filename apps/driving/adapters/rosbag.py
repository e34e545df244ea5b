"""Sweeps in ROS bags: which files are one recording, which topic is read, and its clouds as frames.

ROS 1 ``.bag``, ROS 2 ``.mcap`` and ``.db3``, and a folder of one recording, split or not, with ``metadata.yaml`` or
without. A frame is called by its topic and its time stamp in ns: that of the header, or of the recording where the
header has none. Points are taken as they are, in the frame of the header: x ahead, y left, z up (REP 103).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from apps.driving.adapters.kitti import refuse_many
from apps.driving.adapters.kitti_layouts import frame_roots
from apps.driving.adapters.point_cloud2 import KIND, read_cloud, stamp_ns
from apps.driving.adapters.point_files import MAX_POINTS, sweep_of
from apps.driving.types import Frame
from shared.errors import InvalidInputError

BAGS = (".bag", ".mcap", ".db3")
_BAG = re.compile(r"\.(bag|bag\.active|(mcap|db3)(\.zstd)?)$", re.IGNORECASE)
_SPLIT = re.compile(r"((^|_)\d{4}(-\d\d){5})?_(\d+)$")
"""The number of a part; ROS 1 writes before it when the part was begun."""
_PACKETS = re.compile(r"^(?!sensor_msgs/).*(packet|scan|custommsg|lidar|velodyne|ouster|hesai|livox)", re.IGNORECASE)
"""What names the types of a LiDAR's raw data: velodyne_msgs/VelodyneScan, ouster_sensor_msgs/PacketMsg."""
_METADATA = "metadata.yaml"
"""What ROS 2 writes beside the files of a recording; they are read without it."""
_NOT_LIDARS = ("base_link", "base_footprint", "ego_vehicle", "vehicle", "odom", "map", "world", "earth")
_MAX_SWEEPS = 2_000_000
_MAX_NAMED = 8
"""Topics that a sentence names."""


@dataclass(frozen=True, slots=True)
class BagSweep:
    """A message with a cloud; ``read`` decodes it."""

    name: str
    file: str
    data: bytes
    time_ns: int
    ros1: bool

    def read(self) -> Frame:
        """Raises ``InvalidInputError`` where it is damaged."""
        try:
            cloud = read_cloud(self.data, self.name, MAX_POINTS, ros1=self.ros1)
            points, remarks = sweep_of(cloud.columns, self.name)
        except InvalidInputError as refusal:
            raise InvalidInputError(f"{self.file}: {refusal}") from refusal
        if cloud.frame_id.strip("/").lower() in _NOT_LIDARS:
            remarks += (
                f"The points are in the frame {cloud.frame_id.strip('/')}, which is not a LiDAR's: the networks expect "
                "x ahead and the ground 0.9 to 2.9 m below. Record the cloud in the LiDAR's own frame.",
            )
        return Frame(name=self.name, points_lidar_m=points, cameras={}, time_ns=self.time_ns, remarks=remarks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bag:
    """A recording: its files in their order, the topic that is read, and how many messages it says that there are."""

    name: str
    files: tuple[Path, ...]
    topic: str
    count: int

    def sweeps(self) -> Iterator[BagSweep]:
        """One after the other; names differ. Raises ``InvalidInputError`` where the recording is damaged."""
        from apps.driving.adapters.rosbag_storage import messages

        names: set[str] = set()
        for file in self.files:
            for message in messages(file, self.topic, KIND):
                time_ns = stamp_ns(message.data, ros1=message.ros1) or message.time_ns
                name = f"{_shown(self.topic).strip('/')}/{time_ns}"
                name = name if name not in names else f"{name}-{len(names)}"
                names.add(name)
                if len(names) > _MAX_SWEEPS:
                    raise InvalidInputError(f"{self.name} holds more than {_MAX_SWEEPS} sweeps; split it")
                yield BagSweep(name, file.name, message.data, time_ns, message.ros1)


def bag_files(paths: Sequence[Path]) -> list[Path]:
    """The files of bags among those handed in, or in the one folder that was, if it holds no frames in KITTI's way."""
    if len(paths) == 1 and paths[0].is_dir():
        found = [file for file in paths[0].rglob("*") if is_bag(file) and file.is_file()]
        return [] if found and frame_roots(paths[0]) else found
    return [path for path in paths if is_bag(path)]


def is_bag(path: Path) -> bool:
    """Whether the file is called as bags are."""
    return _BAG.search(path.name) is not None and not path.name.startswith(".")


def read(paths: Sequence[Path], topic: str | None = None) -> list[Frame]:
    """The frames of a recording of few, see ``open_bag``."""
    bag = open_bag(paths, topic)
    refuse_many(bag.count, bag.name)
    frames: list[Frame] = []
    for sweep in bag.sweeps():
        refuse_many(len(frames) + 1, bag.name)  # it may hold more than it says
        frames.append(sweep.read())
    if not frames:
        raise InvalidInputError(f"{bag.name} holds none of the {bag.count} messages that it says are on {bag.topic}")
    return frames


def open_bag(paths: Sequence[Path], topic: str | None = None) -> Bag:
    """The one recording in what was handed in, with the ``topic`` of its sweeps, or the only one that has some.

    Raises ``InvalidInputError`` where there is no such topic, or are several.
    """
    try:
        from apps.driving.adapters.rosbag_storage import topics
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"ROS bags need the package {error.name}; install trivium[ros]") from error
    files = _one_recording(paths)
    name = files[0].name if len(files) == 1 else paths[0].name
    counts: Counter[tuple[str, str]] = Counter()
    for file in files:
        counts.update(topics(file))
    clouds = {name: count for (name, kind), count in sorted(counts.items()) if kind == KIND and count > 0}
    if not clouds:
        raise InvalidInputError(_without_clouds(name, counts))
    if topic is not None and topic not in clouds:
        raise InvalidInputError(f"{name} has no PointCloud2 on {_shown(topic)}, but on {_listed(clouds)}")
    if topic is None and len(clouds) > 1:
        raise InvalidInputError(
            f"{name} has PointCloud2 on {len(clouds)} topics: {_listed(clouds)}; choose one with the option topic "
            f"(topic={_shown(max(clouds, key=lambda each: clouds[each]))})"
        )
    chosen = topic or next(iter(clouds))
    return Bag(name=name, files=tuple(files), topic=chosen, count=clouds[chosen])


def _one_recording(paths: Sequence[Path]) -> list[Path]:
    files = bag_files(paths)
    if len(files) < sum(path.name != _METADATA for path in paths):
        raise InvalidInputError(f"{files[0].name} is a ROS bag; hand it in without other files")
    stems = [(file.parent, _BAG.sub("", file.name)) for file in files]
    recordings = {(folder, _SPLIT.sub("", stem)) for folder, stem in stems}
    parts = {(folder, _SPLIT.sub(r"_\4", stem)) for folder, stem in stems}
    if len(recordings) > 1 or len(parts) < len(files):
        names = ", ".join(sorted(file.name for file in files)[:_MAX_NAMED])
        raise InvalidInputError(f"there are several ROS bags ({names}); hand in one at a time")
    return sorted(files, key=lambda file: (len(file.name), file.name))  # drive_9 before drive_10


def _without_clouds(name: str, counts: Mapping[tuple[str, str], int]) -> str:
    held = {topic: count for (topic, _), count in counts.items() if count > 0}
    if not held:
        return f"{name} holds no messages"
    kinds = {topic: kind.replace("/msg/", "/") for topic, kind in counts}
    raw = {topic: count for topic, count in held.items() if _PACKETS.search(kinds[topic])}
    what = "play it through the LiDAR's driver and record that" if raw else "record that of the LiDAR"
    return f"{name} has no sweeps that are read (sensor_msgs/PointCloud2), but {_listed(raw or held, kinds)}; {what}"


def _listed(counts: Mapping[str, int], kinds: Mapping[str, str] | None = None) -> str:
    """The topics, their types where they are given, and how many messages they have."""
    listed = [
        f"{_shown(topic)} ({_shown(kinds[topic]) + ', ' if kinds else ''}{count} messages)"
        for topic, count in islice(counts.items(), _MAX_NAMED)
    ]
    return ", ".join(listed) + (f" and {len(counts) - _MAX_NAMED} more" if len(counts) > _MAX_NAMED else "")


def _shown(name: str) -> str:
    """A topic or type as ROS allows it to be called."""
    return re.sub(r"[^\w/.~-]", "_", name)[:100]
