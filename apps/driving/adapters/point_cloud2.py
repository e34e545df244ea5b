"""sensor_msgs/PointCloud2 of ROS 1 and ROS 2: the columns of a cloud by field name.

The message definition is the one in rosbags (common_interfaces, sensor_msgs/msg/PointCloud2), not the one in a bag.
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

POINT_CLOUD2 = "sensor_msgs/msg/PointCloud2"
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""The dtypes of PointField's datatypes."""
_MAX_BYTES = 1 << 28
_MAX_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class PointCloud:
    """The coordinate frame, and the columns (height, width) with one number per point, by lower-case name."""

    frame_id: str
    columns: Mapping[str, NDArray[Any]]


def stamp_ns(data: bytes, *, ros1: bool) -> int:
    """The time in the cloud's header in nanoseconds; 0 if it has none."""
    if len(data) < 12:
        return 0
    # In ROS 1 the stamp follows a counter of four bytes; in CDR it follows four bytes that give the byte order.
    seconds, rest = struct.unpack_from("<II" if ros1 or data[1] else ">II", data, 4)
    return int(seconds) * 10**9 + int(rest)


def read_cloud(data: bytes, name: str, max_points: int, *, ros1: bool) -> PointCloud:
    """The cloud in a message. Raises ``InvalidInputError`` if it is damaged or too large."""
    if len(data) > _MAX_BYTES:
        raise InvalidInputError(
            f"{name} has {len(data)} bytes; at most {_MAX_BYTES >> 20} MB are accepted. Is it a single sweep?"
        )
    try:
        _check_field_count(data, name, ros1)
        store = _type_store(ros1)
        message: Any = (store.deserialize_ros1 if ros1 else store.deserialize_cdr)(data, POINT_CLOUD2)
    except InvalidInputError:
        raise
    except Exception as error:  # rosbags raises various exceptions for a damaged message
        raise InvalidInputError(f"{name} is not a PointCloud2, or is damaged") from error
    height, width, step = message.height, message.width, message.point_step
    if height * width > max_points:
        raise InvalidInputError(
            f"{name} has {height} x {width} points; at most {max_points} are accepted. Is it a single sweep?"
        )
    row = (message.row_step if height > 1 else 0) or width * step
    if row < width * step or (height and width and (height - 1) * row + width * step > len(message.data)):
        raise InvalidInputError(
            f"{name} states {height} x {width} points of {step} bytes in rows of {row} bytes but has "
            f"{len(message.data)} bytes: it is truncated, or its steps are wrong"
        )
    columns: dict[str, NDArray[Any]] = {}
    for field in message.fields:
        kind = _DTYPES.get(field.datatype)
        if kind is None or field.count > 1 or field.name.lower() in columns:  # some drivers write a count of 0 for 1
            continue
        dtype = np.dtype((">" if message.is_bigendian else "<") + kind)
        if field.offset + dtype.itemsize > step:
            raise InvalidInputError(f"{name}: the field {field.name[:50]} is outside the {step} bytes of a point")
        if height and width:
            columns[field.name.lower()] = np.ndarray((height, width), dtype, message.data, field.offset, (row, step))
        else:
            columns[field.name.lower()] = np.zeros((0, 0), dtype)
    return PointCloud(message.header.frame_id, columns)


def _check_field_count(data: bytes, name: str, ros1: bool) -> None:
    """Checks the number of fields before deserialization, which creates an object for each."""
    order = "<" if ros1 or data[1] else ">"
    (name_bytes,) = struct.unpack_from(order + "I", data, 12)
    offset = 16 + name_bytes
    offset += 0 if ros1 else -offset % 4
    (fields,) = struct.unpack_from(order + "I", data, offset + 8)
    if fields > _MAX_FIELDS:
        raise InvalidInputError(f"{name} has {fields} fields; at most {_MAX_FIELDS} are accepted")


@cache
def _type_store(ros1: bool) -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
