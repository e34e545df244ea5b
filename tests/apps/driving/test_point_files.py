"""Sweeps as PCD and as NumPy arrays: the same points as KITTI's file, and a sentence for what is none."""

import numpy as np
import pytest
from pypcd4 import Encoding, PointCloud

from apps.driving.adapters.point_files import MOST_POINTS, read_points, read_sweep
from apps.driving.adapters.registry import read_frames
from shared.errors import InvalidInputError

HEADER = "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS {fields}\nSIZE {sizes}\nTYPE {types}\n"
REST = "COUNT {counts}\nWIDTH {points}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {points}\nDATA {data}\n"


@pytest.fixture
def points():
    draw = np.random.default_rng(3)
    return np.column_stack([draw.uniform(-40, 40, (50, 3)), draw.uniform(0, 1, 50)]).astype(np.float32)


def header(points, *, fields="x y z intensity", data="binary", sizes="4 4 4 4", types="F F F F", counts="1 1 1 1"):
    return (HEADER + REST).format(fields=fields, sizes=sizes, types=types, counts=counts, points=points, data=data)


@pytest.mark.parametrize("encoding", [Encoding.ASCII, Encoding.BINARY, Encoding.BINARY_COMPRESSED])
def test_a_pcd_file_holds_the_points_of_kittis(points, tmp_path, encoding):
    points.tofile(tmp_path / "sweep.bin")
    PointCloud.from_xyzi_points(points).save(tmp_path / "sweep.pcd", encoding)
    assert read_points(tmp_path / "sweep.pcd") == pytest.approx(read_points(tmp_path / "sweep.bin"), rel=1e-5)


def test_the_fields_of_ros_tools_are_found_among_others(points, tmp_path):
    # As pcl_ros writes Velodyne's points: padding between the fields, the ring and the time behind them.
    rows = np.zeros(50, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("_", "u1", 4), ("i", "<f4"), ("ring", "<u2")])
    for name, column in zip("xyz", points.T, strict=False):
        rows[name] = column
    rows["i"] = np.linspace(0, 255, 50)
    rows["y"][7] = np.nan
    text = header(50, fields="x y z _ intensity ring", sizes="4 4 4 1 4 2", types="F F F U F U", counts="1 1 1 4 1 1")
    (tmp_path / "cloud.pcd").write_bytes(text.encode() + rows.tobytes())
    found, remarks = read_sweep(tmp_path / "cloud.pcd")
    assert np.array_equal(found[:, :3], np.delete(points[:, :3], 7, axis=0))
    assert found[:, 3] == pytest.approx(np.delete(np.linspace(0, 1, 50), 7), abs=1e-6)
    assert len(remarks) == 1 and "1 of the 50 points" in remarks[0]


def test_a_pcd_file_without_intensity_says_so(points, tmp_path):
    # As Open3D writes a cloud of places alone.
    text = header(50, fields="x y z", sizes="4 4 4", types="F F F", counts="1 1 1", data="ascii")
    rows = "\n".join(f"{x:.6f} {y:.6f} {z:.6f}" for x, y, z, _ in points.tolist())
    (tmp_path / "cloud.pcd").write_text(text + rows + "\n")
    (frame,) = read_frames([tmp_path / "cloud.pcd"])
    assert frame.name == "cloud" and frame.points_lidar_m[:, :3] == pytest.approx(points[:, :3], abs=1e-5)
    assert not frame.points_lidar_m[:, 3].any()
    assert any("cloud.pcd has no intensity" in remark for remark in frame.remarks)


def test_arrays_are_read_by_columns_or_by_fields(points, tmp_path):
    named = np.zeros(50, [("x", "f8"), ("y", "f8"), ("z", "f8"), ("intensity", "u1"), ("t", "u4")])
    for name, column in zip("xyz", points.T, strict=False):
        named[name] = column
    named["intensity"] = 51
    for name, array in {"four": points, "five": np.column_stack([points, points[:, 0]]), "named": named}.items():
        np.save(tmp_path / f"{name}.npy", array)
    assert np.array_equal(read_points(tmp_path / "four.npy"), points)
    assert np.array_equal(read_points(tmp_path / "five.npy"), points)
    assert read_points(tmp_path / "named.npy")[:, 3] == pytest.approx(0.2)
    np.save(tmp_path / "three.npy", points[:, :3].astype(np.float64))
    found, remarks = read_sweep(tmp_path / "three.npy")
    assert np.array_equal(found[:, :3], points[:, :3]) and "no intensity" in remarks[0]


def test_intensity_beyond_a_byte_is_cut_with_a_remark(points, tmp_path):
    # Ouster's signal photons, for one.
    np.save(tmp_path / "sweep.npy", points * np.float32([1, 1, 1, 3000]))
    found, remarks = read_sweep(tmp_path / "sweep.npy")
    assert found[:, 3].max() == 1 and "was cut to 0 to 255" in remarks[0]


def bad_files(points):
    compressed = header(50, data="binary_compressed").encode()
    yield "no header", b"\x00" * 500, "no line DATA"
    yield "truncated", header(50).encode() + points.tobytes()[:-40], "is truncated: 50 points of 16 bytes"
    yield "text", header(50, data="ascii").encode() + b"1 2 3 0.5\n", "50 points are promised, 1 are there"
    yield "words", header(50, data="ascii").encode() + b"a b c d\n", "cannot be read as a PCD file"
    yield "bomb", compressed + np.uint32([10, 4_000_000_000]).tobytes() + b"0" * 10, "has another size than it says"
    yield "many", header(10**12, data="binary_compressed").encode(), f"at most {MOST_POINTS}"
    yield "wide", header(50, counts="1 1 1 99999999").encode(), "cannot be read as a PCD file"
    yield "fields", header(50, fields="a b c d").encode() + points.tobytes(), "has no field x; it has a, b, c, d"
    yield "sizes", header(50, sizes="4 4 4 3").encode() + points.tobytes(), "cannot be read as a PCD file"


def test_damaged_and_hostile_pcd_files_are_refused(points, tmp_path):
    for name, content, said in bad_files(points):
        (tmp_path / "sweep.pcd").write_bytes(content)
        with pytest.raises(InvalidInputError, match=said):
            read_points(tmp_path / "sweep.pcd")
            pytest.fail(name)


def test_arrays_that_are_no_sweep_are_refused(points, tmp_path):
    sweep = tmp_path / "sweep.npy"
    np.save(sweep, points)
    head = sweep.read_bytes()
    pickled = tmp_path / "objects.npy"
    np.save(pickled, np.array([{"x": 1}], dtype=object), allow_pickle=True)
    for content, said in (
        (b"", "cannot be read as a NumPy array"),
        (head[:-100], "cannot be read as a NumPy array"),
        (head.replace(b"(50, 4)", b"(5000000000, 4)", 1), "cannot be read as a NumPy array"),
        (pickled.read_bytes(), "cannot be read as a NumPy array"),
    ):
        sweep.write_bytes(content)
        with pytest.raises(InvalidInputError, match=said):
            read_points(sweep)
    for array, said in (
        (points[:, :2], r"holds an array of \(50, 2\) float32"),
        (points.astype(str), "holds an array of"),
        (points * np.float32([1e6, 1, 1, 1]), "points over 1 km away"),
    ):
        np.save(sweep, array)
        with pytest.raises(InvalidInputError, match=said):
            read_points(sweep)
