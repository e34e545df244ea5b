"""ROS bags: a bag of a sweep gives what its .bin gives; topics, layouts of clouds, and what is refused."""

import numpy as np
import pytest

from apps.driving.adapters.point_files import read_points
from apps.driving.adapters.registry import read_frames
from shared.deploy.predictor import Request
from tests.apps.driving.bag_files import cloud, write_ros1, write_ros2

STAMP = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def sweeps(synthetic):
    points = read_points(synthetic / "velodyne" / "synthetic.bin")
    return [points[number :: number + 2] for number in range(3)]


def drive(sweeps, *, ros1, topic="/lidar/points", **layout):
    """Messages of a drive: a cloud each tenth of a second, and something else beside it."""
    for number, points in enumerate(sweeps):
        time = STAMP + number * 10**8
        yield "/chatter", time, "hello" * 10
        yield topic, time + 5, cloud(points, ros1=ros1, stamp=time, **layout)


def bags(sweeps, folder):
    """The same drive in each format."""
    yield write_ros1(folder / "drive.bag", drive(sweeps, ros1=True), chunk=100_000)
    for compression in ("bz2", "lz4"):
        yield write_ros1(folder / f"{compression}.bag", drive(sweeps, ros1=True), compression)
    for storage in ("mcap", "sqlite3"):
        for mode in (None, "file", "message", *(["storage"] if storage == "mcap" else [])):
            path = write_ros2(folder / f"{storage}-{mode}", drive(sweeps, ros1=False), storage, mode)
            yield path
            if mode is None:
                yield next(file for file in path.iterdir() if file.suffix in (".mcap", ".db3"))


def test_a_bag_gives_what_its_sweeps_give(ask, sweeps, tmp_path):
    for number, points in enumerate(sweeps):
        points.tofile(tmp_path / f"{number}.bin")
    expected = []
    for number in range(3):
        response = ask(Request(files=(tmp_path / f"{number}.bin",), options={"score": "0.2"}))
        expected.append(response.result["frames"][0]["boxes"])
    assert min(map(len, expected)) > 0
    read = list(bags(sweeps, tmp_path))
    assert len(read) == 12
    for path in read:
        frames = read_frames([path])
        assert [frame.name for frame in frames] == [f"lidar/points/{STAMP + number * 10**8}" for number in range(3)]
        assert [frame.time_ns for frame in frames] == [STAMP + number * 10**8 for number in range(3)]
        for frame, points in zip(frames, sweeps, strict=True):
            assert np.array_equal(frame.points_lidar_m, points) and frame.remarks == ()
    for path in (read[0], read[3]):
        result = ask(Request(files=(path,), options={"score": "0.2"})).result
        assert [frame["boxes"] for frame in result["frames"]] == expected
