"""sensor_msgs/PointCloud2 of ROS 1 and ROS 2: the columns of a cloud, by the names of its fields.

The definition is rosbags' own (common_interfaces, sensor_msgs/msg/PointCloud2), not that which a bag brings along.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidInputError

KIND = "sensor_msgs/msg/PointCloud2"
_KINDS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""Of PointField's datatypes."""
_MAX_BYTES = 1 << 28
_MAX_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class PointCloud:
    """The frame of reference, and the columns (height, width) of single numbers by their names in small letters."""

    frame_id: str
    columns: Mapping[str, NDArray[Any]]


def stamp_ns(data: bytes, *, ros1: bool) -> int:
    """When the cloud was taken, by its header; 0 where that is not said."""
    if len(data) < 12:
        return 0
    # In ROS 1 it follows a counter of four bytes, in CDR four that tell the order of bytes.
    seconds, rest = struct.unpack_from("<II" if ros1 or data[1] else ">II", data, 4)
    return int(seconds) * 10**9 + int(rest)


def read_cloud(data: bytes, name: str, most_points: int, *, ros1: bool) -> PointCloud:
    """The cloud in a message. Raises ``InvalidInputError`` where it is damaged, or larger than is read."""
    if len(data) > _MAX_BYTES:
        raise InvalidInputError(
            f"{name} has {len(data)} bytes; at most {_MAX_BYTES >> 20} MB are taken. Is it one sweep?"
        )
    try:
        _refuse_many_fields(data, name, ros1)
        store = _definitions(ros1)
        message: Any = (store.deserialize_ros1 if ros1 else store.deserialize_cdr)(data, KIND)
    except InvalidInputError:
        raise
    except Exception as error:  # rosbags raises whatever it meets in a damaged message
        raise InvalidInputError(f"{name} is no PointCloud2, or is damaged") from error
    height, width, step = message.height, message.width, message.point_step
    if height * width > most_points:
        raise InvalidInputError(
            f"{name} has {height} x {width} points; at most {most_points} are taken. Is it one sweep?"
        )
    row = (message.row_step if height > 1 else 0) or width * step
    if row < width * step or (height and width and (height - 1) * row + width * step > len(message.data)):
        raise InvalidInputError(
            f"{name} states {height} x {width} points of {step} bytes in rows of {row}, and has {len(message.data)} "
            "bytes: it is cut, or its steps are wrong"
        )
    columns: dict[str, NDArray[Any]] = {}
    for field in message.fields:
        kind = _KINDS.get(field.datatype)
        if kind is None or field.count > 1 or field.name.lower() in columns:  # some drivers count 0 for 1
            continue
        dtype = np.dtype((">" if message.is_bigendian else "<") + kind)
        if field.offset + dtype.itemsize > step:
            raise InvalidInputError(f"{name}: the field {field.name[:50]} lies outside of a point's {step} bytes")
        if height and width:
            columns[field.name.lower()] = np.ndarray((height, width), dtype, message.data, field.offset, (row, step))
        else:
            columns[field.name.lower()] = np.zeros((0, 0), dtype)
    return PointCloud(message.header.frame_id, columns)


def _refuse_many_fields(data: bytes, name: str, ros1: bool) -> None:
    """Each becomes an object, so that their number is looked at before."""
    order = "<" if ros1 or data[1] else ">"
    (letters,) = struct.unpack_from(order + "I", data, 12)
    place = 16 + letters
    place += 0 if ros1 else -place % 4
    (fields,) = struct.unpack_from(order + "I", data, place + 8)
    if fields > _MAX_FIELDS:
        raise InvalidInputError(f"{name} has {fields} fields; at most {_MAX_FIELDS} are read")


@cache
def _definitions(ros1: bool) -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
