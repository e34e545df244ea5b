"""PCD files of the Point Cloud Library (version 0.7), as ROS tools, Open3D and CloudCompare write them.

Read by pypcd4, in ascii, binary and binary_compressed. What the header promises is held against the file first: a few
bytes may claim a sweep of any size.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidInputError

_HEADER_BYTES = 1 << 16
_POINT_BYTES = 1 << 10
"""The largest point that is believed."""


def read_pcd(path: Path, most_points: int) -> NDArray[Any]:
    """The points as a structured array (N,), a field for each column of the file.

    Raises ``InvalidInputError`` where the file is no PCD, is truncated, or holds more than ``most_points``.
    """
    from pypcd4.pypcd4 import PointCloud

    content = path.read_bytes()
    points, point_bytes, encoding, begins = _header(content, path.name)
    if points > most_points:
        raise InvalidInputError(f"{path.name} holds {points} points; at most {most_points} are taken. Is it one sweep?")
    there = len(content) - begins
    if encoding == "binary" and there < points * point_bytes:
        raise InvalidInputError(
            f"{path.name} is truncated: {points} points of {point_bytes} bytes are promised, {there // point_bytes} "
            "are there"
        )
    if encoding.startswith("binary") and encoding != "binary":
        sizes = np.frombuffer(content[begins : begins + 8], "<u4")
        if len(sizes) < 2 or sizes[1] != points * point_bytes or there < 8 + sizes[0]:
            raise InvalidInputError(f"{path.name} is truncated, or its compressed part has another size than it says")
    try:
        cloud = PointCloud.from_fileobj(io.BufferedReader(io.BytesIO(content)))
    except Exception as error:  # whatever the library meets in a damaged file
        raise _unreadable(path.name, error) from error
    found = np.atleast_1d(cloud.pc_data)
    if len(found) != points:
        raise InvalidInputError(f"{path.name} is truncated: {points} points are promised, {len(found)} are there")
    return found


def _header(content: bytes, name: str) -> tuple[int, int, str, int]:
    """Points, bytes of a point, the encoding, and where the points begin."""
    from pypcd4.pypcd4 import MetaData

    lines, begins = [], 0
    for line in io.BytesIO(content[:_HEADER_BYTES]):
        begins += len(line)
        lines.append(line.decode("latin-1").strip())
        if lines[-1].startswith("DATA"):
            break
    else:
        raise InvalidInputError(f"{name} has no line DATA in its header, as a PCD file has")
    try:
        stated = MetaData.parse_header(lines)
        if sum(stated.count) > _POINT_BYTES:
            raise ValueError(f"{sum(stated.count)} values a point")
        point_bytes = int(stated.build_dtype().itemsize)
    except Exception as error:  # pydantic's, and what a wrong number of words raises
        raise _unreadable(name, error) from error
    return stated.points, point_bytes, stated.data.value, begins


def _unreadable(name: str, error: Exception) -> InvalidInputError:
    said = str(error).splitlines() or [type(error).__name__]
    return InvalidInputError(
        f"{name} cannot be read as a PCD file (version 0.7; fields x, y, z and intensity): {said[0][:120]}"
    )
