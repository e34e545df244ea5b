"""Sweeps as PCD and NumPy arrays: the same points as KITTI's file, and one sentence for invalid files."""

import numpy as np
import pytest

from apps.driving.adapters.point_files import MAX_POINTS, read_points, read_sweep
from apps.driving.adapters.registry import read_frames
from shared.errors import InvalidInputError
from tests.apps.driving.pcd_files import header, pcd


@pytest.fixture
def points():
    draw = np.random.default_rng(3)
    return np.column_stack([draw.uniform(-40, 40, (50, 3)), draw.uniform(0, 1, 50)]).astype(np.float32)


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
def test_a_pcd_file_gives_the_same_points_as_kittis_bin(points, tmp_path, encoding):
    points.tofile(tmp_path / "sweep.bin")
    (tmp_path / "sweep.pcd").write_bytes(pcd(points, encoding))
    assert read_points(tmp_path / "sweep.pcd") == pytest.approx(read_points(tmp_path / "sweep.bin"), rel=1e-5)


def test_the_fields_written_by_ros_tools_are_found(points, tmp_path):
    # As pcl_ros writes Velodyne points: padding between the fields, ring and time after them.
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


def test_a_pcd_file_without_intensity_gets_a_remark(points, tmp_path):
    # As Open3D writes a cloud with positions only.
    text = header(50, fields="x y z", sizes="4 4 4", types="F F F", counts="1 1 1", data="ascii")
    rows = "\n".join(f"{x:.6f} {y:.6f} {z:.6f}" for x, y, z, _ in points.tolist())
    (tmp_path / "cloud.pcd").write_text(text + rows + "\n")
    (frame,) = read_frames([tmp_path / "cloud.pcd"])
    assert frame.name == "cloud" and frame.points_lidar_m[:, :3] == pytest.approx(points[:, :3], abs=1e-5)
    assert not frame.points_lidar_m[:, 3].any()
    assert any("cloud.pcd has no intensity" in remark for remark in frame.remarks)


def test_arrays_are_read_by_columns_or_by_fields(points, tmp_path):
    structured = np.zeros(50, [("x", "f8"), ("y", "f8"), ("z", "f8"), ("intensity", "u1"), ("t", "u4")])
    for name, column in zip("xyz", points.T, strict=False):
        structured[name] = column
    structured["intensity"] = 51
    for name, array in {"four": points, "five": np.column_stack([points, points[:, 0]]), "named": structured}.items():
        np.save(tmp_path / f"{name}.npy", array)
    assert np.array_equal(read_points(tmp_path / "four.npy"), points)
    assert np.array_equal(read_points(tmp_path / "five.npy"), points)
    assert read_points(tmp_path / "named.npy")[:, 3] == pytest.approx(0.2)
    np.save(tmp_path / "three.npy", points[:, :3].astype(np.float64))
    found, remarks = read_sweep(tmp_path / "three.npy")
    assert np.array_equal(found[:, :3], points[:, :3]) and "no intensity" in remarks[0]


@pytest.mark.parametrize("columns", [4, 5, 6])
@pytest.mark.parametrize("scale", [1, 255])
def test_float32_sweeps_may_have_ring_and_time_after_the_intensity(tmp_path, columns, scale):
    generator = np.random.default_rng(columns)
    # A number of values that is divisible by each number of columns.
    points = np.column_stack([generator.uniform(-60, 60, (120, 2)), generator.uniform(-2, 3, 120), np.ones(120) / 2])
    points = points.astype(np.float32)
    behind = np.column_stack([np.arange(120) % 32, generator.uniform(0, 0.1, 120)])[:, : columns - 4]
    file = tmp_path / "sweep.bin"
    np.column_stack([points * [1, 1, 1, scale], behind]).astype("<f4").tofile(file)
    found, remarks = read_sweep(file)
    np.testing.assert_allclose(found, points, rtol=1e-6)
    more = f"sweep.bin was read as {columns} columns: x, y, z, intensity, and {columns - 4} that are not used."
    assert remarks == (() if columns == 4 else (more,))


@pytest.mark.parametrize(
    ("largest", "expected", "said"), [(255, 1.0, "its reflectivity is used"), (4000, 1.0, "clipped")]
)
def test_ousters_reflectivity_replaces_its_photon_counts(points, tmp_path, largest, expected, said):
    """Ouster's driver writes both; only the reflectivity is calibrated, unless old firmware writes that in 16 bits."""
    named = np.zeros(50, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("intensity", "f4"), ("reflectivity", "u2")])
    for column, field in enumerate(("x", "y", "z")):
        named[field] = points[:, column]
    named["intensity"], named["reflectivity"] = 1800, 51
    named["reflectivity"][0] = largest
    np.save(tmp_path / "sweep.npy", named)
    found, remarks = read_sweep(tmp_path / "sweep.npy")
    assert len(remarks) == 1 and said in remarks[0] and found[0, 3] == expected
    assert found[1:, 3] == pytest.approx(0.2 if largest == 255 else 1.0)


def test_intensity_above_255_is_clipped_with_a_remark(points, tmp_path):
    # For example Ouster's signal photons.
    np.save(tmp_path / "sweep.npy", points * np.float32([1, 1, 1, 3000]))
    found, remarks = read_sweep(tmp_path / "sweep.npy")
    assert found[:, 3].max() == 1 and "was clipped to 0 to 255" in remarks[0]


def test_header_and_rows_are_split_at_any_white_space(points, tmp_path):
    # Field names with brackets, no COUNT and no POINTS, lower case, a BOM, a comment in another alphabet, double
    # blanks.
    rows = "".join(f"  {x:.6f}\t{y:.6f}  {z:.6f} 17 {i:.6f} \r\n" for x, y, z, i in points.tolist())
    text = "# générée\nfields x y z t(ns) Scalar_Intensity\nSIZE 4 4 4 8 4\nTYPE F F F U F\nWIDTH 25\nHEIGHT 2\n"
    text += "data ascii\n"
    (tmp_path / "cloud.pcd").write_bytes(b"\xef\xbb\xbf" + text.encode("latin-1") + rows.encode())
    found, remarks = read_sweep(tmp_path / "cloud.pcd")
    assert found == pytest.approx(points, abs=1e-5) and remarks == ()


def test_an_unusual_field_name_does_not_shift_the_columns_after_it(points, tmp_path):
    rows = np.zeros(50, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("t", "<u8"), ("i", "<f4")])
    for name, column in zip(("x", "y", "z", "i"), points.T, strict=True):
        rows[name] = column
    text = header(50, fields="x y z t(ns) intensity", sizes="4 4 4 8 4", types="F F F U F", counts="1 1 1 1 1")
    (tmp_path / "cloud.pcd").write_bytes(text.encode() + rows.tobytes())
    assert np.array_equal(read_points(tmp_path / "cloud.pcd"), points)


def test_a_viewpoint_gets_a_remark(points, tmp_path):
    moved = pcd(points).replace(b"VIEWPOINT 0 0 0 1 0 0 0", b"VIEWPOINT 9 0 0 1 0 0 0")
    (tmp_path / "sweep.pcd").write_bytes(moved)
    found, remarks = read_sweep(tmp_path / "sweep.pcd")
    assert np.array_equal(found, points) and "has a viewpoint, which is not applied" in remarks[0]


def test_points_without_a_finite_intensity_are_kept(points, tmp_path):
    points[3:5, 3] = np.nan
    np.save(tmp_path / "sweep.npy", points)
    found, remarks = read_sweep(tmp_path / "sweep.npy")
    assert len(found) == 50 and not found[3:5, 3].any() and "The intensity of 2 points of sweep.npy" in remarks[0]


def bad_files(points):
    compressed = header(50, data="binary_compressed").encode()
    wide = header(2_000_000, fields="x y z a", counts="1 1 1 240", sizes="4 4 4 8", data="binary_compressed")
    yield "no header", b"\x00" * 500, "no line DATA"
    yield (
        "truncated",
        header(50).encode() + points.tobytes()[:-40],
        "is truncated: it states 50 points of 16 bytes but has 47",
    )
    yield "text", header(50, data="ascii").encode() + b"1 2 3 0.5\n", "states 50 points but has 1 rows"
    yield "words", header(50, data="ascii").encode() + b"a b c d\n", "a row of points does not have 4 numbers"
    yield "short", header(1, data="ascii").encode() + b"1 2 3\n", "a row of points does not have 4 numbers"
    yield "bomb", compressed + np.uint32([10, 4_000_000_000]).tobytes() + b"0" * 10, "differs from the stated one"
    yield "damaged", compressed + np.uint32([10, 800]).tobytes() + b"\xff" * 10, "compressed data is damaged"
    yield "many", header(10**12, data="binary_compressed").encode(), f"at most {MAX_POINTS}"
    yield "wide", wide.encode(), "points of 1932 bytes; at most 2000000 points and 256 MB"
    yield "endless", header(50, counts="1 1 1 99999999").encode(), "numbers per point"
    yield "fewer", header(50, fields="x y z").encode() + points.tobytes(), "FIELDS, SIZE, TYPE and COUNT do not match"
    yield "fields", header(50, fields="a b c d").encode() + points.tobytes(), "has no field x; it has a, b, c, d"
    yield "sizes", header(50, sizes="4 4 4 3").encode() + points.tobytes(), "lacks .* or has an invalid value for it"
    yield "other", header(50, data="zipped").encode(), "has DATA zipped; supported: ascii, binary, binary_compressed"
    yield (
        "nothing",
        header(50, fields="", sizes="", types="", counts="").encode(),
        "COUNT do not match: 0, 0, 0 entries",
    )
    yield "bundled", header(1, fields="x", sizes="4", types="F", counts="3").encode() + b"0" * 12, "has no field x"
    yield "none", header(0).encode(), "has no points"


def test_damaged_and_hostile_pcd_files_are_refused(points, tmp_path):
    for name, content, message in bad_files(points):
        (tmp_path / "sweep.pcd").write_bytes(content)
        with pytest.raises(InvalidInputError, match=message):
            read_points(tmp_path / "sweep.pcd")
            pytest.fail(name)


def test_arrays_that_are_not_a_sweep_are_refused(points, tmp_path):
    sweep = tmp_path / "sweep.npy"
    np.save(sweep, points)
    head = sweep.read_bytes()
    pickled = tmp_path / "objects.npy"
    np.save(pickled, np.array([{"x": 1}], dtype=object), allow_pickle=True)
    for content, message in (
        (b"", "cannot be read as a NumPy array"),
        (b"PK\x03\x04" + b"0" * 99, "cannot be read as a NumPy array"),
        (b"\x93NUMPY\x01\x00" + (300).to_bytes(2, "little") + b"(" * 300, "cannot be read as a NumPy array"),
        (head[:-100], "cannot be read as a NumPy array"),
        (head.replace(b"(50, 4)", b"(5000000000, 4)", 1), "cannot be read as a NumPy array"),
        (pickled.read_bytes(), "cannot be read as a NumPy array"),
    ):
        sweep.write_bytes(content)
        with pytest.raises(InvalidInputError, match=message):
            read_points(sweep)
    np.savez(tmp_path / "many.npz", points=points)
    sweep.write_bytes((tmp_path / "many.npz").read_bytes())
    with pytest.raises(InvalidInputError, match="cannot be read as a NumPy array"):
        read_points(sweep)
    for array, message in (
        (points[:, :2], r"has an array of \(50, 2\) float32"),
        (points.T.copy(), r"has an array of \(4, 50\) float32.*expected \(N, 4\)"),
        (np.zeros((0, 4), np.float32), "has no points"),
        (np.zeros(3, [("x", "S5"), ("y", "f4"), ("z", "f4", (2,))]), "has no field x; it has y"),
        (np.zeros((), [("x", "f4")]), "has no points"),
        (points.astype(str), "has an array of"),
        (points * np.float32([1e6, 1, 1, 1]), "points over 1 km away"),
    ):
        np.save(sweep, array)
        with pytest.raises(InvalidInputError, match=message):
            read_points(sweep)
