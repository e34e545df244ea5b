"""PCD files of the Point Cloud Library (version 0.7 and before), as ROS tools, Open3D and CloudCompare write them.

ascii, binary and binary_compressed (LZF, column after column). What the header promises is held against the file before
anything of that size is made: a few bytes may claim a sweep of any size.
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
"""Of all points together."""
_KINDS = {
    **{("F", size): f"<f{size}" for size in (4, 8)},
    **{(kind, size): f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}
_UPRIGHT = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


@dataclass(frozen=True, slots=True)
class _Header:
    """``dtype`` has a field for each column of the file, named by its place; ``begins`` is where the points begin."""

    names: tuple[str, ...]
    dtype: np.dtype[Any]
    points: int
    encoding: str
    viewpoint: tuple[float, ...]
    begins: int


def read_pcd(path: Path, most_points: int) -> tuple[Mapping[str, Column], tuple[str, ...]]:
    """The columns (N,) of single numbers by their names in small letters, and what is to be remarked.

    Raises ``InvalidInputError`` where the file is no PCD, is truncated, or holds more than ``most_points``.
    """
    content = path.read_bytes()
    header = _header(content, path.name)
    if header.points > most_points or header.points * header.dtype.itemsize > _MAX_BYTES:
        raise InvalidInputError(
            f"{path.name} holds {header.points} points of {header.dtype.itemsize} bytes; at most {most_points} points "
            f"and {_MAX_BYTES >> 20} MB are taken. Is it one sweep?"
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
            f"{path.name} has DATA {header.encoding[:20]}; ascii, binary or binary_compressed is read"
        )
    said: tuple[str, ...] = ()
    if list(header.viewpoint) not in ([], _UPRIGHT):
        said = (f"{path.name} states a viewpoint, which is not applied: its points are taken as the LiDAR sees them.",)
    named: dict[str, Column] = {}
    for name, column in zip(header.names, columns, strict=True):
        if column is not None:
            named.setdefault(name.lower(), column)
    return named, said


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
        raise InvalidInputError(f"{name} has no line DATA in its header, as a PCD file has")
    try:
        names, kinds = words["FIELDS"], words["TYPE"]
        sizes = [int(word) for word in words["SIZE"]]
        counts = [int(word) for word in words.get("COUNT") or ["1"] * len(names)]
        side = [int(words.get(key, ["1"])[0]) for key in ("WIDTH", "HEIGHT")]
        points = int(words["POINTS"][0]) if "POINTS" in words else side[0] * side[1]
        viewpoint = tuple(float(word) for word in words.get("VIEWPOINT", []))
        fit = len(names) == len(kinds) == len(sizes) == len(counts) > 0
        if not fit or min(counts) < 1 or points < 0:
            raise ValueError(f"FIELDS, SIZE, TYPE and COUNT do not fit: {len(names)}, {len(sizes)}, {len(kinds)} words")
        if sum(counts) > _HEADER_BYTES:
            raise ValueError(f"{sum(counts)} numbers a point")
        fields = [
            (str(place), _KINDS[kind, size], (count,))
            for place, (kind, size, count) in enumerate(zip(kinds, sizes, counts, strict=True))
        ]
        return _Header(tuple(names), np.dtype(fields), points, words["DATA"][0].lower(), viewpoint, begins)
    except KeyError as error:
        raise InvalidInputError(
            f"{name} is no PCD file that is read: its header lacks or has a wrong {error}"
        ) from error
    except (ValueError, IndexError) as error:
        raise InvalidInputError(f"{name} is no PCD file that is read: {str(error)[:120]}") from error


def _ascii(body: bytes, header: _Header, name: str) -> list[Column | None]:
    """The columns of single numbers, split at any white space."""
    counts = [header.dtype[place].shape[0] for place in range(len(header.names))]
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    single = [place for place, count in enumerate(counts) if count == 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no rows
        try:
            read = np.loadtxt(io.BytesIO(body), comments=None, usecols=[starts[place] for place in single], ndmin=2)
        except ValueError as error:
            raise InvalidInputError(f"{name}: a row of its points is not {sum(counts)} numbers") from error
    if len(read) != header.points:
        raise InvalidInputError(f"{name} promises {header.points} points and has {len(read)} rows")
    columns: list[Column | None] = [None] * len(counts)
    for place, column in zip(single, read.T, strict=False):
        columns[place] = column
    return columns


def _binary(body: memoryview, header: _Header, name: str) -> list[Column | None]:
    size = header.dtype.itemsize
    if len(body) < header.points * size:
        raise InvalidInputError(
            f"{name} is truncated: {header.points} points of {size} bytes are promised, {len(body) // size} are there"
        )
    found = np.frombuffer(body, header.dtype, header.points)
    return [found[field][:, 0] if found[field].shape[1] == 1 else None for field in header.dtype.names or ()]


def _compressed(body: memoryview, header: _Header, name: str) -> list[Column | None]:
    import lzf

    whole = header.points * header.dtype.itemsize
    sizes = np.frombuffer(body[:8], "<u4")
    if len(sizes) < 2 or int(sizes[1]) != whole or len(body) < 8 + int(sizes[0]):
        raise InvalidInputError(f"{name} is truncated, or its compressed part has another size than it says")
    try:
        content = lzf.decompress(bytes(body[8 : 8 + int(sizes[0])]), whole) if whole else b""
    except Exception as error:  # the library's own, for damaged content
        raise InvalidInputError(f"{name}: its compressed part is damaged") from error
    if content is None or len(content) != whole:
        raise InvalidInputError(f"{name}: its compressed part is damaged")
    columns: list[Column | None] = []
    begins = 0
    for field in header.dtype.names or ():
        base, (count,) = header.dtype[field].base, header.dtype[field].shape
        column = np.frombuffer(content, base, header.points * count, begins)
        columns.append(column if count == 1 else None)
        begins += header.points * count * base.itemsize
    return columns
