"""PCD files for tests, byte for byte as common tools write them."""

from __future__ import annotations

import lzf
import numpy as np
from numpy.typing import NDArray

HEADER = "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS {fields}\nSIZE {sizes}\nTYPE {types}\n"
REST = "COUNT {counts}\nWIDTH {points}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {points}\nDATA {data}\n"


def header(points, *, fields="x y z intensity", data="binary", sizes="4 4 4 4", types="F F F F", counts="1 1 1 1"):
    return (HEADER + REST).format(fields=fields, sizes=sizes, types=types, counts=counts, points=points, data=data)


def pcd(points: NDArray[np.float32], data: str = "binary") -> bytes:
    """x, y, z, intensity (N, 4) as Open3D and PCL write them, in one of the three encodings."""
    head = header(len(points), data=data).encode()
    if data == "ascii":
        return head + "".join(" ".join(f"{value:.7g}" for value in row) + "\n" for row in points.tolist()).encode()
    if data == "binary":
        return head + points.astype("<f4").tobytes()
    columns = np.ascontiguousarray(points.T, "<f4").tobytes()
    packed = lzf.compress(columns, 2 * len(columns) + 64)
    return head + np.array([len(packed), len(columns)], "<u4").tobytes() + packed
