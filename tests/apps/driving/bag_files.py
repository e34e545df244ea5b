"""ROS bags for tests, written by rosbags, with clouds laid out as drivers do it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

STORES = {True: get_typestore(Stores.ROS1_NOETIC), False: get_typestore(Stores.ROS2_HUMBLE)}
CLOUD, FIELD, STRING = "sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/PointField", "std_msgs/msg/String"
DATATYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}
XYZI = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("intensity", "f4")]


def cloud(points, *, ros1=False, stamp=10**18, frame_id="lidar", fields=XYZI, offsets=None, step=None, rows=1, pad=0,
          big=False, **changed):  # fmt: skip
    """A message: ``points`` (N, columns) in ``rows`` rows, each padded by ``pad`` bytes, with fields at offsets."""
    types, order = STORES[ros1].types, ">" if big else "<"
    kinds = [np.dtype(order + kind) for _, kind in fields]
    offsets = offsets or np.cumsum([0, *(kind.itemsize for kind in kinds[:-1])]).tolist()
    step = step or offsets[-1] + kinds[-1].itemsize
    layout = {"names": [name for name, _ in fields], "formats": kinds, "offsets": offsets, "itemsize": step}
    records = np.zeros(len(points), np.dtype(layout))
    for (name, _), column in zip(fields, points.T, strict=True):
        records[name] = column
    width = len(points) // rows
    lines = np.full((rows, width * step + pad), 255, np.uint8)
    lines[:, : width * step] = records.reshape(rows, width).view(np.uint8).reshape(rows, width * step)
    time = types["builtin_interfaces/msg/Time"](*divmod(stamp, 10**9))
    counter = {"seq": 7} if ros1 else {}
    message = {
        "header": types["std_msgs/msg/Header"](**counter, stamp=time, frame_id=frame_id),
        "height": rows,
        "width": width,
        "fields": [
            types[FIELD](name, at, DATATYPES[kind], 1) for (name, kind), at in zip(fields, offsets, strict=True)
        ],
        "is_bigendian": big,
        "point_step": step,
        "row_step": width * step + pad,
        "data": lines.ravel(),
        "is_dense": True,
    }
    return types[CLOUD](**(message | changed))


def serialized(message, *, ros1=False):
    store = STORES[ros1]
    return bytes((store.serialize_ros1 if ros1 else store.serialize_cdr)(message, message.__msgtype__))


def write_ros1(path: Path, messages, compression=None, chunk=1 << 20):
    """``messages`` are (topic, time in ns, message); for a message of bytes the topic is given as TYPE TOPIC."""
    writer = Writer1(path)
    writer.chunk_threshold = chunk
    if compression:
        writer.set_compression(Writer1.CompressionFormat[compression.upper()])
    with writer as bag:
        _write(bag, messages, ros1=True)
    return path


def write_ros2(folder: Path, messages, storage="mcap", mode=None):
    """A folder with metadata.yaml; ``mode`` is file, message or storage (the chunks of an mcap)."""
    writer = Writer2(folder, version=9, storage_plugin=StoragePlugin[storage.upper()])
    if mode:
        writer.set_compression(CompressionMode[mode.upper()], CompressionFormat.ZSTD)
    with writer as bag:
        _write(bag, messages, ros1=False)
    return folder


def _write(bag, messages, *, ros1):
    connections = {}
    for topic, time, message in messages:
        kind, topic = topic.split() if " " in topic else (getattr(message, "__msgtype__", STRING), topic)
        if topic not in connections:
            known = {"typestore": STORES[ros1]} if kind in STORES[ros1].types else {"msgdef": "uint8 x\n"}
            if "msgdef" in known:
                known |= {"md5sum": "0" * 32} if ros1 else {"rihs01": "RIHS01_" + "0" * 64}
            connections[topic] = bag.add_connection(topic, kind, **known)
        if isinstance(message, str):
            message = STORES[ros1].types[STRING](message)
        raw = message if isinstance(message, bytes) else serialized(message, ros1=ros1)
        bag.write(connections[topic], time, raw)
