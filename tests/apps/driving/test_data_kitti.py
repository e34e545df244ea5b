"""KITTI frames: real ones are read and written back, bad ones are refused with one sentence."""

import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.driving.adapters import kitti, nuscenes
from apps.driving.adapters.projection import image_boxes
from apps.driving.datasets.synth.export import write_frame
from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.inference.detect import shown_boxes
from apps.driving.outputs import kitti as results
from apps.driving.types import Boxes3D
from shared.errors import InvalidInputError

IDS = ("000000", "000001", "000002", "000003", "000004")


@pytest.fixture
def real(data_root):
    return data_root / "driving" / "kitti_object"


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """A synthetic frame, and the KITTI folder that it was written to."""
    root = tmp_path_factory.mktemp("kitti")
    frame = scene(np.random.default_rng(3), sensors=Sensors(image_scale=0.1), kind="street")
    write_frame(frame, root, "000007")
    return frame, root


def label_rows(path):
    lines = [line.split() for line in path.read_text().splitlines()]
    return np.array([[float(v) for v in row[1:]] for row in lines if row[0] != "DontCare"])


@pytest.mark.realdata
@pytest.mark.parametrize("frame_id", IDS)
def test_real_labels_survive_the_round_trip_through_the_lidar_frame(real, frame_id):
    frame = kitti.read_frame(real, frame_id)
    rows = label_rows(real / "label_2" / f"{frame_id}.txt")
    location, rotation = kitti.to_rectified(frame.truth, frame.cameras["image_2"])
    assert np.abs(location - rows[:, 10:13]).max() < 1e-4
    assert np.abs(rotation - rows[:, 13]).max() < 1e-4
    assert frame.truth.size_m == pytest.approx(rows[:, [9, 8, 7]])


@pytest.mark.realdata
@pytest.mark.parametrize("frame_id", IDS)
def test_real_boxes_project_onto_their_2d_labels(real, frame_id):
    frame = kitti.read_frame(real, frame_id)
    camera, truth = frame.cameras["image_2"], frame.truth
    assert (truth.point_counts >= 9).all()
    shown, cut = image_boxes(truth, camera.intrinsics, camera.lidar_to_camera, camera.image_HWC.shape[:2])
    # Annotators drew the 2D boxes around the visible objects; projected 3D boxes of rigid objects agree within 2
    # pixels.
    rigid = [name != "pedestrian" for name in truth.names]
    assert np.abs(shown - truth.box_2d)[rigid].max(initial=0) < 2
    assert np.abs(cut - truth.truncation).max() < 0.05


@pytest.mark.realdata
@pytest.mark.parametrize("frame_id", IDS)
def test_written_labels_equal_the_real_ones(real, frame_id, tmp_path):
    frame = kitti.read_frame(real, frame_id)
    (tmp_path / "out.txt").write_text(results.write(frame.truth, frame.cameras["image_2"]))
    rows, written = label_rows(real / "label_2" / f"{frame_id}.txt"), label_rows(tmp_path / "out.txt")
    assert np.delete(written, 2, axis=1) == pytest.approx(np.delete(rows, 2, axis=1), abs=1e-3)
    # alpha is rounded to 0.01 in the files, and can be computed from the rest of the row.
    assert written[:, 2] == pytest.approx(rows[:, 2], abs=0.015)


@pytest.mark.realdata
def test_real_dontcare_regions_are_kept(real):
    assert kitti.read_frame(real, "000001").ignore_boxes_2d["image_2"].shape == (4, 4)
    assert "dontcare" not in kitti.read_frame(real, "000001").truth.names
    assert [frame.name for frame in kitti.read(real)] == list(IDS)
    assert kitti.read_frame(real, "000002").truth.names == ("misc", "car")


@pytest.mark.realdata
def test_a_real_nuscenes_frame_has_its_boxes_on_its_points_and_in_its_images(data_root):
    frame = nuscenes.read(data_root / "driving" / "nuscenes_sample")[0]
    truth = frame.truth
    assert len(frame.cameras) == 6
    assert len(truth) == 69
    assert frame.points_lidar_m.shape == (34688, 4)
    assert frame.time_ns == 1532402927647951000
    inside = truth.inside(frame.points_lidar_m).sum(1)
    assert np.abs(inside - truth.point_counts).mean() < 1
    front = frame.cameras["CAM_FRONT"]
    shown, _ = image_boxes(truth, front.intrinsics, front.lidar_to_camera, front.image_HWC.shape[:2])
    # The sample lists 47 boxes of its ten classes in this image; one more box has another class.
    in_view = ~np.isnan(shown[:, 0]) & np.array([name != "other" for name in truth.names])
    ahead = truth.centre_lidar_m[in_view]
    assert len(ahead) == 47
    assert (ahead[:, 0] > 0).all()


calibrations = st.builds(
    lambda roll, pitch, yaw, shift: (roll, pitch, yaw, shift),
    st.floats(-0.02, 0.02),
    st.floats(-0.02, 0.02),
    st.floats(-0.5, 0.5),
    st.tuples(*[st.floats(-2, 2)] * 3),
)


@settings(max_examples=60)
@given(mount=calibrations, seed=st.integers(0, 10_000))
def test_boxes_survive_the_round_trip_through_any_camera(mount, seed):
    roll, pitch, yaw, shift = mount
    cosine, sine = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    turn = (
        np.array([[cosine[0], -sine[0], 0], [sine[0], cosine[0], 0], [0, 0, 1]])
        @ np.array([[1, 0, 0], [0, cosine[1], -sine[1]], [0, sine[1], cosine[1]]])
        @ np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]])
        @ np.array([[cosine[2], -sine[2], 0], [sine[2], cosine[2], 0], [0, 0, 1]])
    )
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = turn, shift
    camera = kitti.Calibration(
        intrinsics=np.eye(3, dtype=np.float32),
        lidar_to_camera=transform.astype(np.float32),
        reference_offset_m=np.array([0.06, 0, 0.003], np.float32),
    )
    draw = np.random.default_rng(seed)
    boxes = Boxes3D(
        centre_lidar_m=draw.uniform(-80, 80, (6, 3)).astype(np.float32),
        size_m=draw.uniform(0.3, 12, (6, 3)).astype(np.float32),
        yaw=draw.uniform(-np.pi, np.pi, 6).astype(np.float32),
        names=("car",) * 6,
    )
    location, rotation = kitti.to_rectified(boxes, camera)
    centre, yaw_again = kitti.from_rectified(location, boxes.size_m[:, 2].astype(float), rotation, camera)
    assert np.abs(centre - boxes.centre_lidar_m).max() < 1e-4
    assert np.abs(np.sin((yaw_again - boxes.yaw) / 2)).max() < 1e-5


def test_a_written_frame_reads_back_the_same(synthetic):
    frame, root = synthetic
    (restored,) = kitti.read(root)
    assert np.array_equal(restored.points_lidar_m, frame.points_lidar_m)
    assert np.array_equal(restored.cameras["image_2"].image_HWC, frame.cameras["image_2"].image_HWC)
    assert restored.cameras["image_2"].lidar_to_camera == pytest.approx(
        frame.cameras["image_2"].lidar_to_camera, abs=1e-5
    )
    shown = frame.truth.take(~np.isnan(frame.truth.box_2d[:, 0]))
    assert restored.truth.names == shown.names
    assert restored.truth.array == pytest.approx(shown.array, abs=2e-3)


def test_a_zip_and_loose_files_read_like_the_folder(synthetic, tmp_path):
    frame, root = synthetic
    with zipfile.ZipFile(tmp_path / "frames.zip", "w") as out:
        for file in root.rglob("*.*"):
            out.write(file, f"training/{file.relative_to(root)}")
    (zipped,) = kitti.read(tmp_path / "frames.zip")
    assert np.array_equal(zipped.points_lidar_m, frame.points_lidar_m)
    assert zipped.truth is not None
    loose = []
    for name, file in (
        ("sweep.bin", "velodyne/000007.bin"),
        ("view.png", "image_2/000007.png"),
        ("c.txt", "calib/000007.txt"),
    ):
        shutil.copy(root / file, tmp_path / name)
        loose.append(tmp_path / name)
    (alone,) = kitti.read_files(loose)
    assert alone.name == "sweep"
    assert alone.truth is None
    assert np.array_equal(alone.cameras["image_2"].image_HWC, frame.cameras["image_2"].image_HWC)
    (points_only,) = kitti.read(tmp_path / "sweep.bin")
    assert points_only.cameras == {}
    assert np.array_equal(points_only.points_lidar_m, frame.points_lidar_m)


def write(path, array):
    path.write_bytes(np.asarray(array, "<f4").tobytes())
    return path


def test_bad_sweeps_are_refused(tmp_path):
    good = np.ones((5, 4), np.float32)
    for name, content, sentence in (
        ("short.bin", good.ravel()[:-1], "76 bytes, not a multiple of 16"),
        ("empty.bin", [], "is empty"),
        ("five.bin", -np.ones((3, 5)), "60 bytes, not a multiple of 16.*five or six columns"),
        ("nan.bin", np.full((2, 4), np.nan), "2 points, and all of them have numbers that are not finite"),
        ("far.bin", np.full((2, 4), 5e4), "over 1 km away"),
        ("bright.bin", good + [0, 0, 0, 299], "intensity must be in"),
    ):
        with pytest.raises(InvalidInputError, match=sentence) as raised:
            kitti.read(write(tmp_path / name, content))
        assert name in str(raised.value)


def test_bad_calibrations_and_labels_are_refused(synthetic, tmp_path):
    _, root = synthetic
    shutil.copytree(root, tmp_path / "k")
    calibration, labels = tmp_path / "k" / "calib" / "000007.txt", tmp_path / "k" / "label_2" / "000007.txt"
    good = calibration.read_text()
    for text, sentence in (
        (good.replace("P2", "P9"), "no row P2"),
        (good.replace("R0_rect: 1.0", "R0_rect: 7.0"), "R0_rect are not a rotation"),
        (good.replace("Tr_velo_to_cam: ", "Tr_velo_to_cam: x"), "expected `Tr_velo_to_cam:` and then numbers"),
        (good.replace("P2: ", "P2: 1 "), "P2 needs 12 finite numbers but has 13"),
    ):
        calibration.write_text(text)
        with pytest.raises(InvalidInputError, match=sentence):
            kitti.read(tmp_path / "k")
    calibration.write_text(good)
    row = labels.read_text().splitlines()[0]
    for text, sentence in (
        (row.rsplit(" ", 2)[0], "line 1: 13 columns|line 1: 14 columns"),
        (row.replace(row.split()[4], "left"), "could not convert"),
        (row.replace(row.split()[11], "nan"), "not a finite number"),
        ("Car 0 0 0 1 2 3 4 1500 1800 4200 2 1 20 0", "line 1: a Car of 4200 x 1800 x 1500 metres; labels"),
        ("Car 0 0 0 1 2 3 4 1.5 1.8 4.2 2000 1500 20000 0", r"a Car at \(2000, 1500, 20000\) metres"),
    ):
        labels.write_text(text + "\n")
        with pytest.raises(InvalidInputError, match=sentence):
            kitti.read(tmp_path / "k")
    calibration.unlink()
    with pytest.raises(InvalidInputError, match="has no calibration"):
        kitti.read(tmp_path / "k")


def matrix_rows(calibration):
    return {name: values for line in calibration.splitlines() for name, values in [line.split(": ", 1)]}


def test_all_spellings_of_a_calibration_give_the_same_result(synthetic, tmp_path):
    _, root = synthetic
    text = (root / "calib" / "000007.txt").read_text()
    expected = kitti.read_calibration(root / "calib" / "000007.txt")
    rows = matrix_rows(text)
    mount = np.array(rows["Tr_velo_to_cam"].split(), float).reshape(3, 4)
    turn, move = (" ".join(map(repr, part.ravel().tolist())) for part in (mount[:, :3], mount[:, 3]))
    tracking = f"P2: {rows['P2']}\nR_rect {rows['R0_rect']}\nTr_velo_cam {rows['Tr_velo_to_cam']}\nTr_imu_velo 1 0\n"
    odometry = f"P0: {rows['P2']}\nP2: {rows['P2']}\nTr: {rows['Tr_velo_to_cam']}\n"
    raw = f"calib_time: 09-Jan-2012 13:57:47\nP_rect_02: {rows['P2']}\nR_rect_00: {rows['R0_rect']}\n"
    (tmp_path / "calib_velo_to_cam.txt").write_text(f"calib_time: 15-Mar-2012 11:37:16\nR: {turn}\nT: {move}\n")
    for name, spelling in (
        ("0000", tracking),
        ("calib", odometry),
        ("calib_cam_to_cam", raw),
        ("bom", "\ufeff" + text),
    ):
        (tmp_path / f"{name}.txt").write_text(spelling, encoding="utf-8")
        read = kitti.read_calibration(tmp_path / f"{name}.txt")
        assert read.lidar_to_camera == pytest.approx(expected.lidar_to_camera, abs=1e-6)
        assert read.intrinsics == pytest.approx(expected.intrinsics)
        others = [tmp_path / "calib_velo_to_cam.txt"] if name == "calib_cam_to_cam" else []
        shutil.copy(root / "image_2" / "000007.png", tmp_path / "view.png")
        (frame,) = kitti.read_files([tmp_path / "view.png", tmp_path / f"{name}.txt", *others])
        assert len(frame.cameras) == 1
    shutil.copytree(root / "image_2", tmp_path / "sequence" / "image_2")
    (tmp_path / "sequence" / "calib.txt").write_text(odometry)
    assert len(kitti.read(tmp_path / "sequence")[0].cameras) == 1
    (tmp_path / "calib_velo_to_cam.txt").unlink()
    with pytest.raises(InvalidInputError, match=r"put calib_velo_to_cam\.txt beside it"):
        kitti.read_calibration(tmp_path / "calib_cam_to_cam.txt")
    (tmp_path / "mirror.txt").write_text(text.replace("R0_rect: 1.0", "R0_rect: -1.0"))
    with pytest.raises(InvalidInputError, match="R0_rect is a reflection"):
        kitti.read_calibration(tmp_path / "mirror.txt")


def test_16_bit_images_keep_their_grey_levels(tmp_path):
    import cv2

    shades = np.linspace(0, 65535, 60 * 40 * 3).astype(np.uint16).reshape(60, 40, 3)
    cv2.imwrite(str(tmp_path / "colour.png"), shades[..., ::-1])
    cv2.imwrite(str(tmp_path / "grey.png"), shades[..., 0])
    assert np.array_equal(kitti.read_image(tmp_path / "colour.png"), shades >> 8)
    assert np.array_equal(kitti.read_image(tmp_path / "grey.png"), np.repeat(shades[..., :1] >> 8, 3, axis=2))


def test_upper_case_suffixes_are_found(synthetic, tmp_path):
    for ending in ("JPG", "PNG"):
        root = tmp_path / ending
        shutil.copytree(synthetic[1], root)
        image = root / "image_2" / "000007.png"
        image.rename(image.with_suffix(f".{ending}"))
        (root / "velodyne" / "000007.bin").rename(root / "velodyne" / "000007.BIN")
        (frame,) = kitti.read(root)
        assert len(frame.cameras) == 1 and frame.points_lidar_m is not None


def test_labels_with_scores_in_only_some_rows_are_refused(synthetic, tmp_path):
    _, root = synthetic
    first, *others = (root / "label_2" / "000007.txt").read_text().splitlines()
    (tmp_path / "some.txt").write_text("\n".join([first + " 0.5", *others]))
    with pytest.raises(InvalidInputError, match=rf"some\.txt: {len(others)} of {len(others) + 1} rows have no score"):
        kitti.read_labels(tmp_path / "some.txt", kitti.read_calibration(root / "calib" / "000007.txt"))


def test_more_frames_than_the_limit_are_refused_and_fewer_are_read(synthetic, tmp_path, monkeypatch):
    root = tmp_path / "k"
    for number in range(3):
        for part, ending in (("velodyne", "bin"), ("image_2", "png"), ("calib", "txt")):
            (root / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(synthetic[1] / part / f"000007.{ending}", root / part / f"{number:06d}.{ending}")
    monkeypatch.setattr(kitti, "MAX_FRAMES", 2)
    loose = tmp_path / "loose"
    shutil.copytree(root / "velodyne", loose)
    for paths in ([root], [loose], sorted((root / "velodyne").iterdir())):
        with pytest.raises(InvalidInputError, match="3 frames; at most 2 are accepted at a time"):
            kitti.read_files(paths)
    portion = kitti.read_files([*sorted((root / "velodyne").iterdir())[1:], *sorted((root / "image_2").iterdir())[1:]])
    assert [frame.name for frame in portion] == ["000001", "000002"]
    assert all(len(frame.cameras) == 1 and frame.points_lidar_m is not None for frame in portion)


def test_only_the_named_files_are_used(synthetic, tmp_path):
    root = tmp_path / "k"
    shutil.copytree(synthetic[1], root)
    sweep, image = root / "velodyne" / "000007.bin", root / "image_2" / "000007.png"
    (camera_frame,) = kitti.read(image)
    assert camera_frame.points_lidar_m is None and camera_frame.truth is None and len(camera_frame.cameras) == 1
    (swept,) = kitti.read(sweep)
    assert swept.points_lidar_m is not None and swept.truth is None and swept.cameras == {}
    (both,) = kitti.read_files([sweep, image])
    assert both.points_lidar_m is not None and len(both.cameras) == 1
    shutil.copy(image, image.with_suffix(".jpg"))
    with pytest.raises(
        InvalidInputError, match=r"two files could be the image of 000007: 000007\.png and 000007\.jpg; give one"
    ):
        kitti.read_files([image, image.with_suffix(".jpg")])


def test_bad_images_and_unsupported_files_are_refused(synthetic, tmp_path):
    _, root = synthetic
    shutil.copytree(root, tmp_path / "k")
    (tmp_path / "k" / "image_2" / "000007.png").write_bytes(b"\x89PNG no")
    with pytest.raises(InvalidInputError, match=r"000007\.png cannot be read as an image"):
        kitti.read(tmp_path / "k")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    with pytest.raises(InvalidInputError, match=r"notes\.pdf has an unsupported type"):
        kitti.read(tmp_path / "notes.pdf")
    with pytest.raises(InvalidInputError, match="no such file"):
        kitti.read(tmp_path / "missing.bin")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InvalidInputError, match="contains no files"):
        kitti.read(tmp_path / "nothing")
    with pytest.raises(InvalidInputError, match="is not JSON"):
        nuscenes.read(write(tmp_path / "sample.json", [1.0]))
    with pytest.raises(InvalidInputError, match="no file was given"):
        kitti.read_files([])


def test_several_kitti_folders_in_one_are_refused_by_name(synthetic, tmp_path):
    for name in ("training", "testing"):
        shutil.copytree(synthetic[1], tmp_path / "kitti" / name)
    shutil.make_archive(str(tmp_path / "both"), "zip", tmp_path / "kitti")
    for name in ("kitti", "both.zip"):
        with pytest.raises(
            InvalidInputError, match=rf"^{name} contains several KITTI folders \(testing, training\); give one of"
        ):
            kitti.read(tmp_path / name)


def test_an_invalid_zip_or_one_that_escapes_its_folder_is_refused(tmp_path):
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as out:
        out.writestr("../outside.bin", "x")
    with pytest.raises(InvalidInputError, match="outside the archive"):
        kitti.read(evil)
    assert not (tmp_path / "outside.bin").exists()
    evil.write_bytes(b"PK no zip")
    with pytest.raises(InvalidInputError, match="cannot be read as a zip"):
        kitti.read(evil)


def test_take_keeps_all_attributes_of_the_boxes(synthetic):
    truth = replace(synthetic[0].truth, scores=np.linspace(0, 1, len(synthetic[0].truth), dtype=np.float32))
    order = np.arange(len(truth))[::-1]
    assert truth.take(order).take(order).array == pytest.approx(truth.array)
    assert truth.take(order).names == truth.names[::-1]
    assert truth.take(order).point_counts.tolist() == truth.point_counts[::-1].tolist()
    assert len(truth.take(np.zeros(len(truth), bool))) == 0


def test_a_pedestrian_inside_a_car_is_suppressed():
    for aside, names in ((0.2, ("car",)), (1.05, ("car", "pedestrian"))):
        boxes = Boxes3D(
            centre_lidar_m=np.array([[10, 0, -1], [11, aside, -1]], np.float32),
            size_m=np.array([[3.9, 1.6, 1.5], [0.8, 0.6, 1.7]], np.float32),
            yaw=np.zeros(2, np.float32),
            names=("car", "pedestrian"),
            scores=np.array([0.6, 0.5], np.float32),
        )
        assert shown_boxes(boxes, 0.1).names == names
