"""Reads PCD files of the Point Cloud Library (up to version 0.7), as written by ROS tools, Open3D and CloudCompare.

ascii, binary and binary_compressed (LZF, column by column). The sizes in the header are checked against the file before
anything of that size is allocated: a file of a few bytes can claim any number of points.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidInputError

Column = NDArray[Any]
_HEADER_BYTES = 1 << 16
_MAX_BYTES = 1 << 28
"""The maximum size of all points together."""
_DTYPES = {
    **{("F", size): f"<f{size}" for size in (4, 8)},
    **{(kind, size): f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}
_IDENTITY_VIEWPOINT = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


@dataclass(frozen=True, slots=True)
class _Header:
    """``dtype`` has one field per column of the file, named by its index; ``begins`` is the offset of the points."""

    names: tuple[str, ...]
    dtype: np.dtype[Any]
    points: int
    encoding: str
    viewpoint: tuple[float, ...]
    begins: int


def read_pcd(path: Path, max_points: int) -> tuple[Mapping[str, Column], tuple[str, ...]]:
    """The columns (N,) with one number per point, by lower-case name, and remarks.

    Raises ``InvalidInputError`` if the file is not a PCD, is truncated, or has more than ``max_points``.
    """
    content = path.read_bytes()
    header = _header(content, path.name)
    if header.points > max_points or header.points * header.dtype.itemsize > _MAX_BYTES:
        raise InvalidInputError(
            f"{path.name} holds {header.points} points of {header.dtype.itemsize} bytes; at most {max_points} points "
            f"and {_MAX_BYTES >> 20} MB are accepted. Is it a single sweep?"
        )
    body = memoryview(content)[header.begins :]
    if header.encoding == "ascii":
        columns = _ascii(bytes(body), header, path.name)
    elif header.encoding == "binary":
        columns = _binary(body, header, path.name)
    elif header.encoding == "binary_compressed":
        columns = _compressed(body, header, path.name)
    else:
        raise InvalidInputError(
            f"{path.name} has DATA {header.encoding[:20]}; supported: ascii, binary, binary_compressed"
        )
    remarks: tuple[str, ...] = ()
    if list(header.viewpoint) not in ([], _IDENTITY_VIEWPOINT):
        remarks = (
            f"{path.name} has a viewpoint, which is not applied: its points are taken to be in the LiDAR frame.",
        )
    named: dict[str, Column] = {}
    for name, column in zip(header.names, columns, strict=True):
        if column is not None:
            named.setdefault(name.lower(), column)
    return named, remarks


def _header(content: bytes, name: str) -> _Header:
    words: dict[str, list[str]] = {}
    begins = 0
    for line in content[:_HEADER_BYTES].splitlines(keepends=True):
        begins += len(line)
        key, *rest = line.decode("latin-1").replace("\xef\xbb\xbf", "").split() or [""]
        if key and not key.startswith("#"):
            words[key.upper()] = rest
        if key.upper() == "DATA":
            break
    else:
        raise InvalidInputError(f"{name} is not a PCD file: its header has no line DATA")
    try:
        names, kinds = words["FIELDS"], words["TYPE"]
        sizes = [int(word) for word in words["SIZE"]]
        counts = [int(word) for word in words.get("COUNT") or ["1"] * len(names)]
        side = [int(words.get(key, ["1"])[0]) for key in ("WIDTH", "HEIGHT")]
        points = int(words["POINTS"][0]) if "POINTS" in words else side[0] * side[1]
        viewpoint = tuple(float(word) for word in words.get("VIEWPOINT", []))
        fit = len(names) == len(kinds) == len(sizes) == len(counts) > 0
        if not fit or min(counts) < 1 or points < 0:
            raise ValueError(
                f"FIELDS, SIZE, TYPE and COUNT do not match: {len(names)}, {len(sizes)}, {len(kinds)} entries"
            )
        if sum(counts) > _HEADER_BYTES:
            raise ValueError(f"{sum(counts)} numbers per point")
        fields = [
            (str(index), _DTYPES[kind, size], (count,))
            for index, (kind, size, count) in enumerate(zip(kinds, sizes, counts, strict=True))
        ]
        return _Header(tuple(names), np.dtype(fields), points, words["DATA"][0].lower(), viewpoint, begins)
    except KeyError as error:
        raise InvalidInputError(
            f"{name} is not a supported PCD file: its header lacks {error}, or has an invalid value for it"
        ) from error
    except (ValueError, IndexError) as error:
        raise InvalidInputError(f"{name} is not a supported PCD file: {str(error)[:120]}") from error


def _ascii(body: bytes, header: _Header, name: str) -> list[Column | None]:
    """The columns with one number per point; numbers are separated by any white space."""
    counts = [header.dtype[index].shape[0] for index in range(len(header.names))]
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    single = [index for index, count in enumerate(counts) if count == 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns if there are no rows
        try:
            read = np.loadtxt(io.BytesIO(body), comments=None, usecols=[starts[index] for index in single], ndmin=2)
        except ValueError as error:
            raise InvalidInputError(f"{name}: a row of points does not have {sum(counts)} numbers") from error
    if len(read) != header.points:
        raise InvalidInputError(f"{name} states {header.points} points but has {len(read)} rows")
    columns: list[Column | None] = [None] * len(counts)
    for index, column in zip(single, read.T, strict=False):
        columns[index] = column
    return columns


def _binary(body: memoryview, header: _Header, name: str) -> list[Column | None]:
    size = header.dtype.itemsize
    if len(body) < header.points * size:
        raise InvalidInputError(
            f"{name} is truncated: it states {header.points} points of {size} bytes but has {len(body) // size}"
        )
    found = np.frombuffer(body, header.dtype, header.points)
    return [found[field][:, 0] if found[field].shape[1] == 1 else None for field in header.dtype.names or ()]


def _compressed(body: memoryview, header: _Header, name: str) -> list[Column | None]:
    import lzf

    size_bytes = header.points * header.dtype.itemsize
    sizes = np.frombuffer(body[:8], "<u4")
    if len(sizes) < 2 or int(sizes[1]) != size_bytes or len(body) < 8 + int(sizes[0]):
        raise InvalidInputError(f"{name} is truncated, or the size of its compressed data differs from the stated one")
    try:
        content = lzf.decompress(bytes(body[8 : 8 + int(sizes[0])]), size_bytes) if size_bytes else b""
    except Exception as error:  # the exception of the library for damaged content
        raise InvalidInputError(f"{name}: its compressed data is damaged") from error
    if content is None or len(content) != size_bytes:
        raise InvalidInputError(f"{name}: its compressed data is damaged")
    columns: list[Column | None] = []
    begins = 0
    for field in header.dtype.names or ():
        base, (count,) = header.dtype[field].base, header.dtype[field].shape
        column = np.frombuffer(content, base, header.points * count, begins)
        columns.append(column if count == 1 else None)
        begins += header.points * count * base.itemsize
    return columns
