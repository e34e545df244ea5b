"""ROS bags: a bag with a sweep gives the same as its .bin; topics, cloud layouts, and what is refused."""

import json

import numpy as np
import pytest

from apps.driving.adapters.point_files import read_points
from apps.driving.adapters.registry import read_frames
from apps.driving.inference.folder import predict_folder
from apps.driving.predictor import Options
from shared.deploy.predictor import Request
from shared.errors import InvalidInputError
from tests.apps.driving.bag_files import CLOUD, XYZI, cloud, serialized, write_ros1, write_ros2

STAMP, STAMP_OF_CLOUD = 1_700_000_000_000_000_000, 10**18


@pytest.fixture(scope="module")
def sweeps(synthetic):
    points = read_points(synthetic / "velodyne" / "synthetic.bin")
    return [points[number :: number + 2] for number in range(3)]


def drive(sweeps, *, ros1, topic="/lidar/points", **layout):
    """Messages of a drive: a cloud every 0.1 s, and messages on another topic."""
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


def test_a_bag_gives_the_same_as_its_sweeps_in_files(ask, sweeps, tmp_path):
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


def read_one(tmp_path, message, *, ros1=False, name="one"):
    """The frame of a bag with one cloud."""
    messages = [("/lidar", STAMP, message)]
    path = tmp_path / f"{name}{'.bag' if ros1 else ''}"
    (frame,) = read_frames([write_ros1(path, messages) if ros1 else write_ros2(path, messages)])
    return frame


POINTS = np.array([[1, 2, 3, 0.5], [4, 5, 6, 0.25], [7, 8, 9, 1], [-1, -2, -3, 0]], np.float32)


@pytest.mark.parametrize("ros1", [True, False])
def test_fields_are_found_by_name_offset_and_type(ros1, tmp_path):
    velodyne = [*XYZI, ("ring", "u2"), ("time", "f4")]
    wide = np.column_stack([POINTS, [1, 2, 3, 4], [0, 0.1, 0.2, 0.3]])
    layouts = {
        "velodyne": cloud(wide, ros1=ros1, fields=velodyne, offsets=[0, 4, 8, 16, 20, 24], step=32),
        "rows": cloud(POINTS, ros1=ros1, rows=2, pad=13),
        "doubles": cloud(POINTS[:, [3, 2, 1, 0]], ros1=ros1, fields=[(name, "f8") for name in ("I", "Z", "Y", "X")]),
        "big": cloud(POINTS, ros1=ros1, rows=2, pad=3, big=True, offsets=[1, 6, 11, 16], step=21),
        "loose": cloud(POINTS, ros1=ros1, rows=2, row_step=0),
    }
    for name, message in layouts.items():
        frame = read_one(tmp_path, message, ros1=ros1, name=name)
        assert np.array_equal(frame.points_lidar_m, POINTS), name
        assert frame.remarks == (), name


def test_intensity_is_scaled_and_invalid_points_are_dropped(tmp_path):
    of_bytes = POINTS * np.array([1, 1, 1, 200], np.float32)
    fields = [*XYZI[:3], ("reflectivity", "u2")]
    frame = read_one(tmp_path, cloud(of_bytes, fields=fields), name="bytes")
    assert np.allclose(frame.points_lidar_m[:, 3], of_bytes[:, 3] / 255) and frame.remarks == ()
    frame = read_one(tmp_path, cloud(POINTS[:, :3], fields=XYZI[:3]), name="without")
    assert (frame.points_lidar_m[:, 3] == 0).all() and "has no intensity: 0 is used" in frame.remarks[0]
    missed = np.where([[False], [True], [False], [True]], np.float32(np.nan), POINTS)
    frame = read_one(tmp_path, cloud(missed, rows=2), name="missed")
    assert np.array_equal(frame.points_lidar_m, POINTS[::2])
    assert frame.remarks == (f"2 of the 4 points of lidar/{STAMP_OF_CLOUD} were dropped: they are not finite numbers.",)
    # Ouster's, Hesai's and Livox' drivers write zeros for beams without a return.
    zeros = POINTS * np.array([[1], [0], [1], [0]], np.float32)
    frame = read_one(tmp_path, cloud(zeros, rows=2), name="zeros")
    assert np.array_equal(frame.points_lidar_m, POINTS[::2])
    assert frame.remarks == (
        f"2 of the 4 points of lidar/{STAMP_OF_CLOUD} were dropped: they are at (0, 0, 0), the value of "
        "beams without a return.",
    )
    frame = read_one(tmp_path, cloud(POINTS, frame_id="base_link"), name="vehicle")
    assert "in the frame base_link, which is not a LiDAR frame" in frame.remarks[0]
    # Without a timestamp in the header, that of the recording is used.
    assert read_one(tmp_path, cloud(POINTS, stamp=0), name="unstamped").time_ns == STAMP


def bad_clouds():
    """Pairs of a faulty message and a part of its error."""
    yield (
        cloud(POINTS, data=np.zeros(63, np.uint8)),
        "states 1 x 4 points of 16 bytes in rows of 64 bytes but has 63 bytes",
    )
    yield cloud(POINTS, width=5), "states 1 x 5 points"
    yield cloud(POINTS, height=2**31, width=2**31), "at most 2000000 are accepted"
    yield cloud(POINTS, rows=2, row_step=31), "points of 16 bytes in rows of 31"
    yield cloud(POINTS, point_step=15), "the field intensity is outside the 15 bytes of a point"
    yield cloud(POINTS, point_step=0), "the field x is outside the 0 bytes of a point"
    yield (
        cloud(POINTS, fields=[("a", "f4"), ("y", "f4"), ("z", "f4"), ("i", "f4")]),
        "has no field x; it has a, y, z, i",
    )
    yield cloud(POINTS[:0]), "has no points"
    yield cloud(POINTS * np.nan), "has 4 points, and all of them have numbers that are not finite"
    yield cloud(POINTS * 0), "has 4 points, all at (0, 0, 0), the value of beams without a return"
    yield cloud(POINTS * 1000), "points over 1 km away"
    yield serialized(cloud(POINTS))[:100], "is not a PointCloud2, or is damaged"
    yield b"", "is not a PointCloud2, or is damaged"
    many = serialized(cloud(POINTS)).replace(b"\4\0\0\0\2\0\0\0x\0", b"\xff\xff\xff\xff\2\0\0\0x\0")
    yield many, "has 4294967295 fields; at most 1000 are accepted"


def test_faulty_clouds_are_refused_with_one_sentence_and_skipped_in_a_drive(predictor, tmp_path):
    found = list(bad_clouds())
    for number, (message, expected_text) in enumerate(found):
        path = write_ros2(tmp_path / str(number), [(f"{CLOUD} /lidar", STAMP, message)])
        with pytest.raises(InvalidInputError, match=f"^{number}.mcap: lidar/\\d+") as refusal:
            read_frames([path])
        assert expected_text in str(refusal.value)
    messages = [(f"{CLOUD} /lidar", STAMP + number, message) for number, (message, _) in enumerate(found)]
    drive = write_ros2(tmp_path / "drive", [*messages, ("/lidar", STAMP + 100, cloud(POINTS))])
    log = []
    assert predict_folder(predictor, drive, tmp_path / "out", Options(), log.append) == len(found)
    assert sum(line.startswith("left out: drive.mcap: lidar/") for line in log) == len(found)
    assert len((tmp_path / "out" / "frames.jsonl").read_text().splitlines()) == 1


def test_the_topic_is_the_only_one_with_clouds_or_the_one_named(ask, tmp_path):
    front, top = cloud(POINTS), cloud(POINTS[:2])
    two = [("/front", STAMP, front), ("/top", STAMP, top), ("/top", STAMP + 1, top), ("/say", STAMP, "hello")]
    path = write_ros2(tmp_path / "two", two)
    with pytest.raises(InvalidInputError, match=r"on 2 topics: /front \(1 messages\), /top \(2 messages\);.*c=/top\)"):
        read_frames([path])
    assert [len(frame.points_lidar_m) for frame in read_frames([path], "/top")] == [2, 2]
    assert [frame.name for frame in read_frames([path], "/top")] == [f"top/{10**18}", f"top/{10**18}-1"]
    result = ask(Request(files=(path / "two.mcap",), options={"topic": "/front"})).result
    assert [frame["name"] for frame in result["frames"]] == [f"front/{10**18}"]
    with pytest.raises(InvalidInputError, match=r"no PointCloud2 on /say, only on /front \(1 messages\), /top"):
        read_frames([path], "/say")
    POINTS.tofile(tmp_path / "sweep.bin")
    with pytest.raises(InvalidInputError, match="the option topic is for ROS bags, and sweep"):
        read_frames([tmp_path / "sweep.bin"], "/top")


@pytest.mark.parametrize("ros1", [True, False])
def test_the_error_for_a_bag_without_clouds_lists_its_topics(ros1, tmp_path):
    raw, image = "velodyne_msgs/msg/VelodyneScan /velodyne_packets", "sensor_msgs/msg/Image /camera"
    livox = "livox_ros_driver2/msg/CustomMsg /livox/lidar"
    for name, messages, error_text in (
        ("livox", [(livox, STAMP, b"points")], "CustomMsg, 1 messages); record PointCloud2 (xfer_format 0 of Livox's"),
        ("raw", [(raw, STAMP, b"packets"), (image, STAMP, b"image")], "only /velodyne_packets (velodyne_msgs/"
         "VelodyneScan, 1 messages); play it through the LiDAR's driver and record the output"),
        ("flat", [("sensor_msgs/msg/LaserScan /scan", STAMP, b"scan")], "LaserScan, 1 messages); record the LiDAR's"),
        ("camera", [(image, STAMP, b"image")], "only /camera (sensor_msgs/Image, 1 messages); record the"),
        ("nothing", [], "has no messages"),
    ):  # fmt: skip
        path = write_ros1(tmp_path / f"{name}.bag", messages) if ros1 else write_ros2(tmp_path / name, messages)
        with pytest.raises(InvalidInputError) as refusal:
            read_frames([path])
        assert error_text in str(refusal.value)


def test_an_interrupted_run_on_a_long_drive_resumes(predictor, tmp_path):
    messages = [("/lidar", STAMP + number, cloud(POINTS, ros1=True, stamp=STAMP + number)) for number in range(201)]
    path = write_ros1(tmp_path / "drive.bag", messages, chunk=1000)
    with pytest.raises(InvalidInputError, match="holds 201 frames; at most 200 are accepted at a time"):
        read_frames([path])
    log, out = [], tmp_path / "out"
    assert predict_folder(predictor, path, out, Options(), log.append) == 0
    lines = (out / "frames.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["name"] for line in lines] == [f"lidar/{STAMP + number}" for number in range(201)]
    (out / "frames.jsonl").write_text("".join(lines[:150]) + lines[150][:10])
    assert predict_folder(predictor, path, out, Options(), log.append) == 0
    assert (out / "frames.jsonl").read_text() == "".join(lines)
    assert any("201 frames, 150 of them already done" in line for line in log)
    with pytest.raises(InvalidInputError, match="choose another directory"):
        predict_folder(predictor, path, out, Options(score=0.5), log.append)
    with pytest.raises(InvalidInputError, match="the option topic is only for ROS bags"):
        (tmp_path / "velodyne").mkdir()
        POINTS.tofile(tmp_path / "velodyne" / "0.bin")
        path.unlink()
        predict_folder(predictor, tmp_path, out, Options(topic="/lidar"), log.append)


def test_a_split_recording_counts_as_one_and_two_recordings_are_refused(tmp_path):
    folder = tmp_path / "drive"
    folder.mkdir()
    for number in (0, 2, 10):
        stamp = STAMP + number
        write_ros1(folder / f"drive_{number}.bag", [("/lidar", stamp, cloud(POINTS, ros1=True, stamp=stamp))])
    assert [frame.time_ns - STAMP for frame in read_frames([folder])] == [0, 2, 10]
    write_ros1(folder / "other.bag", [("/lidar", STAMP, cloud(POINTS, ros1=True))])
    with pytest.raises(InvalidInputError, match=r"there are several ROS bags \(drive_0.bag, drive_10.bag.*give one"):
        read_frames([folder])
    POINTS.tofile(tmp_path / "sweep.bin")
    with pytest.raises(InvalidInputError, match=r"other\.bag is a ROS bag; give it without other files"):
        read_frames([folder / "other.bag", tmp_path / "sweep.bin"])
    (tmp_path / "points").mkdir()
    (folder / "other.bag").rename(tmp_path / "points" / "other.bag")
    POINTS.tofile(tmp_path / "points" / "0.bin")
    with pytest.raises(InvalidInputError, match=r"other\.bag is a ROS bag, which holds many sweeps; give it without"):
        read_frames([tmp_path])


def test_parts_with_ros1_start_times_are_one_recording(tmp_path):
    for number, name in enumerate(("drive_2018-01-01-10-00-00_0", "drive_2018-01-01-10-00-30_1")):
        stamp = STAMP + number
        write_ros1(tmp_path / f"{name}.bag", [("/lidar", stamp, cloud(POINTS, ros1=True, stamp=stamp))])
    assert [frame.time_ns - STAMP for frame in read_frames([tmp_path])] == [0, 1]
    for later in ("drive_2018-01-01-11-00-00_0", "drive_2018-01-01-10-00-00"):
        path = write_ros1(tmp_path / f"{later}.bag", [("/lidar", STAMP, cloud(POINTS, ros1=True))])
        with pytest.raises(InvalidInputError, match="there are several ROS bags"):
            read_frames([tmp_path])
        path.unlink()


def test_the_files_of_a_recording_may_be_given_with_its_metadata(tmp_path):
    folder = write_ros2(tmp_path / "drive", [("/lidar", STAMP, cloud(POINTS))])
    assert len(read_frames(sorted(folder.iterdir()))) == 1
