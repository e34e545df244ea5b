"""Input that would silently give wrong answers: wrong calibrations, sweeps in other units or axes."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from apps.driving.adapters import kitti, nuscenes
from apps.driving.adapters.point_files import read_points
from apps.driving.datasets.nuscenes import NuScenes
from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import LIDARS, Sensors
from apps.driving.inference.sweep_checks import remarks
from apps.driving.outputs.result import result
from apps.driving.types import Boxes3D, Detections, Frame
from shared.deploy.predictor import Request
from shared.errors import InvalidInputError

RANGE = (0.0, -39.68, -3.0, 69.12, 39.68, 1.0)


@pytest.fixture
def root(synthetic, tmp_path):
    return shutil.copytree(synthetic, tmp_path / "k")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1 0 0 0 0 1 0 0 0 0 1 0", "puts the camera on its side or upside down"),
        ("0 0 1 0.27 -1 0 0 0 0 -1 0 -0.08", "Is it the inverse, from the camera to the LiDAR"),
        ("0 -1 0 55 0 0 -1 -75 1 0 0 -270", "286 m from the LiDAR; is it in metres"),
        ("0 -1 0 nan 0 0 -1 -0.07 1 0 0 -0.27", "needs 12 finite numbers but has 11"),
    ],
)
def test_an_impossible_camera_mounting_is_refused(root, row, message):
    file = root / "calib" / "synthetic.txt"
    file.write_text(re.sub(r"Tr_velo_to_cam.*", f"Tr_velo_to_cam: {row}", file.read_text()))
    with pytest.raises(InvalidInputError, match=message):
        kitti.read(root)


def test_the_calibration_of_a_larger_image_is_refused(root):
    file = root / "calib" / "synthetic.txt"
    file.write_text(re.sub(r"P2:.*", "P2: 2262 0 1024 0 0 2262 512 0 0 0 1 0", file.read_text()))
    with pytest.raises(
        InvalidInputError, match=r"its principal point at \(1024, 512\), outside the image of 1242 x 375"
    ):
        kitti.read(root)


def test_a_calibration_without_an_image_gets_a_remark(root):
    sweep, image, calibration = (
        root / folder / f"synthetic.{suffix}"
        for folder, suffix in (("velodyne", "bin"), ("image_2", "png"), ("calib", "txt"))
    )
    expected = ("synthetic.txt is not used: no image was given that it could be the calibration of.",)
    (alone,) = kitti.read_files([sweep, calibration])
    assert alone.remarks == expected and not alone.cameras
    (complete,) = kitti.read_files([sweep, image, calibration])
    (labelled,) = kitti.read_files([sweep, calibration, root / "label_2" / "synthetic.txt"])
    assert complete.cameras and labelled.truth is not None and complete.remarks == labelled.remarks == ()


def test_only_the_frame_of_a_calibration_without_an_image_gets_a_remark(root):
    (root / "velodyne" / "other.bin").write_bytes((root / "velodyne" / "synthetic.bin").read_bytes())
    files = [root / "velodyne" / "synthetic.bin", root / "velodyne" / "other.bin", root / "calib" / "synthetic.txt"]
    assert [(frame.name, len(frame.remarks)) for frame in kitti.read_files(files)] == [("other", 0), ("synthetic", 1)]
    both = root / "calib" / "both.txt"
    files[2].rename(both)
    remarks = [frame.remarks for frame in kitti.read_files([*files[:2], both])]
    assert remarks == [("both.txt is not used: no image was given that it could be the calibration of.",)] * 2


@pytest.mark.parametrize("name", ["000002.laz", "000002.ply"])
def test_points_in_other_formats_are_refused_with_a_remedy_and_never_ignored(root, name):
    (root / "velodyne" / name).write_text("ply")
    for paths in ([root], [root / "velodyne" / name]):
        with pytest.raises(InvalidInputError, match=rf"{name}: (LAZ|PLY) is not supported; write its points .* as PCD"):
            kitti.read_files(paths)
    # The sweep exists in both formats; the supported one is used.
    (root / "velodyne" / name).rename(root / "velodyne" / f"synthetic{name[6:]}")
    assert len(kitti.read(root)) == 1


def test_the_error_for_parts_of_nuscenes_says_what_is_read(tmp_path):
    (tmp_path / "v1.0-mini").mkdir()
    (tmp_path / "v1.0-mini" / "category.json").write_text("[]")
    with pytest.raises(InvalidInputError, match=r"category\.json: for nuScenes, give a folder with one key frame"):
        kitti.read(tmp_path)
    # 20 bytes per point; for some numbers of points this is also a multiple of KITTI's 16 bytes per point.
    sweep = tmp_path / "LIDAR_TOP.pcd.bin"
    np.zeros((80, 5), np.float32).tofile(sweep)
    with pytest.raises(InvalidInputError, match=r"is a nuScenes sweep .* give the folder with its sample\.json"):
        kitti.read(sweep)


def test_remarks_of_the_same_kind_appear_once():
    def line(name, *remarks):
        frame = Frame(name=name, points_lidar_m=None, cameras={}, truth=None)
        return frame, Detections(boxes=Boxes3D.empty(), model="pointpillars", remarks=remarks)

    answer_lines = [line("000001"), line("000002", "3 of the 10 points of 000002.bin were dropped.", "It is dark.")]
    answer_lines += [line("000003", "14 of the 20 points of 000003.bin were dropped."), line("000004", "It is dark.")]
    found = result(*zip(*answer_lines, strict=True))
    assert found["remarks"] == [
        "000002: 3 of the 10 points of 000002.bin were dropped. One more frame has such a remark.",
        "000002: It is dark. One more frame has such a remark.",
    ]
    assert found["frames"][3]["remarks"] == ["It is dark."]


def test_sweeps_unsuitable_for_the_network_get_remarks():
    points = scene(np.random.default_rng(3), sensors=Sensors(field_of_view_deg=180.0, azimuth_step_deg=0.5))
    points = points.points_lidar_m
    assert remarks(points, RANGE, "pointpillars") == []
    (remark,) = remarks(points * np.float32([0.001, 0.001, 0.001, 1]), RANGE, "pointpillars")
    assert remark.startswith("Only 0 points lie 4 to 25 m ahead")
    (remark,) = remarks(points * np.float32([-1, 1, 1, 1]), RANGE, "pointpillars")
    assert re.match(r"Only \d+ of the \d+ points lie in the range of pointpillars", remark)
    (remark,) = remarks(points + np.float32([0, 0, 1.73, 0]), RANGE, "pointpillars")
    assert re.match(r"The lowest points ahead lie at z = -?0\.\d m, but pointpillars was trained", remark)
    (remark,) = remarks(points[:1], RANGE, "pointpillars")
    assert "of the 1 points" in remark


def test_a_result_carries_the_remarks_of_its_frames(ask, root):
    sweep = root / "velodyne" / "synthetic.bin"
    assert "remarks" not in ask(Request(files=(root,))).result
    points = read_points(sweep)
    (points + np.float32([0, 0, 1.73, 0])).tofile(sweep)
    result = ask(Request(files=(root,))).result
    assert len(result["remarks"]) == 1 and result["remarks"][0].startswith("synthetic: The lowest points")
    assert result["frames"][0]["remarks"] == [result["remarks"][0].removeprefix("synthetic: ")]
    # The camera network does not use the sweep.
    assert "remarks" not in ask(Request(files=(root,), options={"model": "fcos3d"})).result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda view: view["lidar2cam"][0].__setitem__(3, float("nan")), "lidar2cam of CAM_FRONT has numbers that"),
        (lambda view: view.update(lidar2cam=np.eye(4).tolist()), "lidar2cam of CAM_FRONT puts the camera on its side"),
        (lambda view: view.update(cam2img=np.zeros((3, 3)).tolist()), "cam2img of CAM_FRONT is not a camera's"),
    ],
)
def test_bad_cameras_of_nuscenes_are_refused(root, tmp_path, change, message):
    shutil.copy(root / "image_2" / "synthetic.png", tmp_path / "front.png")
    view = {
        "img_path": "front.png",
        "cam2img": [[1266.0, 0, 621], [0, 1266, 187], [0, 0, 1]],
        "lidar2cam": [[1.0, 0, 0, 0], [0, 0, -1, -0.3], [0, 1, 0, -0.7], [0, 0, 0, 1]],
    }
    sample = {"metainfo": {"categories": {"car": 0}}, "data_list": [{"images": {"CAM_FRONT": view}, "instances": []}]}
    (tmp_path / "sample.json").write_text(json.dumps(sample))
    assert len(nuscenes.read(tmp_path)[0].cameras) == 1
    change(view)
    (tmp_path / "sample.json").write_text(json.dumps(sample))
    with pytest.raises(InvalidInputError, match=message):
        nuscenes.read(tmp_path)


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", ".x", "a\\b", "a\0b", "", "a\nb", "\ud800", "x" * 300])
def test_nuscenes_names_that_are_not_valid_file_names_are_refused(root, tmp_path, name):
    shutil.copy(root / "image_2" / "synthetic.png", tmp_path / "front.png")
    view = {
        "img_path": "front.png",
        "cam2img": [[1266.0, 0, 621], [0, 1266, 187], [0, 0, 1]],
        "lidar2cam": [[1.0, 0, 0, 0], [0, 0, -1, -0.3], [0, 1, 0, -0.7], [0, 0, 0, 1]],
    }
    for token, camera, what in ((name, "CAM_FRONT", "the token of a key frame"), ("t", name, "the name of a camera")):
        frame = {"token": token, "images": {camera: view}, "instances": []}
        (tmp_path / "sample.json").write_text(json.dumps({"metainfo": {"categories": {}}, "data_list": [frame]}))
        with pytest.raises(InvalidInputError, match=f"{what} is .*files are named after it"):
            nuscenes.read(tmp_path)
        with pytest.raises(InvalidInputError, match=f"{what} is "):
            NuScenes(root=tmp_path).all_frames().read(0)


def test_the_result_of_a_hidden_image_is_not_hidden(ask, root):
    image, calibration = root / "image_2" / "synthetic.png", root / "calib" / "synthetic.txt"
    files = [shutil.copy(file, root / f".x{file.suffix}") for file in (image, calibration)]
    response = ask(Request(files=tuple(files)))
    assert "x.txt" in response.files and not [name for name in response.files if name.startswith(".")]


def test_two_frames_with_the_same_name_are_refused(tmp_path):
    frames = [{"token": "t", "images": {"CAM_FRONT": {"img_path": f"{number}.png"}}} for number in (1, 2)]
    (tmp_path / "sample.json").write_text(json.dumps({"metainfo": {"categories": {}}, "data_list": frames}))
    with pytest.raises(InvalidInputError, match="several frames named 't'; give each a unique token"):
        nuscenes.read(tmp_path)


def test_a_nuscenes_sweep_in_other_units_is_refused(tmp_path):
    points = np.tile(np.float32([1, 10, -1.8, 30, 5]), (50, 1))
    for column, value in ((0, 5000), (3, -3), (3, 400)):
        bad = points.copy()
        bad[7, column] = value
        bad.tofile(tmp_path / "sweep.pcd.bin")
        with pytest.raises(InvalidInputError, match="over 1 km away or an intensity outside"):
            nuscenes.read_points(tmp_path / "sweep.pcd.bin")


def test_a_sweep_with_x_and_y_swapped_gets_a_remark(data_root):
    frames = kitti.read(data_root / "driving" / "kitti_object")
    frames += nuscenes.read(data_root / "driving" / "nuscenes_sample")
    assert [remarks(frame.points_lidar_m, RANGE, "pointpillars") for frame in frames] == [[]] * 6
    swapped = [remarks(frame.points_lidar_m[:, [1, 0, 2, 3]], RANGE, "pointpillars") for frame in frames[:5]]
    # One of the five is at a junction, where the ground extends to all sides.
    assert sum("Is x ahead and y to the left?" in texts[0] for texts in swapped if texts) == 4
    # nuScenes' sensor sees the roof on which it is mounted.
    nuscenes_points = frames[5].points_lidar_m
    for turned in (nuscenes_points[:, [1, 0, 2, 3]], nuscenes_points[:, [1, 0, 2, 3]] * np.float32([-1, 1, 1, 1])):
        (remark,) = remarks(turned, RANGE, "pointpillars")
        assert "own roof" in remark and "Is x ahead and y to the left?" in remark


def test_a_sweep_that_is_upside_down_gets_a_remark(data_root):
    for frame in nuscenes.read(data_root / "driving" / "nuscenes_sample"):
        (remark,) = remarks(frame.points_lidar_m * np.float32([1, -1, -1, 1]), RANGE, "pointpillars")
        assert remark.startswith("Flat ground seems to lie above the sensor") and "negate y and z" in remark


@pytest.mark.parametrize("lidar", sorted(LIDARS))
def test_synthetic_sweeps_of_all_sensors_get_no_remark(lidar):
    for seed in range(3):
        sensors = replace(LIDARS[lidar], field_of_view_deg=360.0, azimuth_step_deg=0.4)
        points = scene(np.random.default_rng(seed), sensors=sensors, name="s").points_lidar_m
        assert remarks(points, RANGE, "pointpillars") == []


def test_an_image_resized_after_calibration_gets_a_remark(ask, root):
    from PIL import Image

    assert "remarks" not in ask(Request(files=(root,))).result
    file = root / "image_2" / "synthetic.png"
    image = Image.open(file)
    for across, down, width in ((0.5, 0.5, 621), (2, 2, 2484), (0.8, 0.8, 994), (1.5, 1.5, 1863), (1, 0.5, 1242)):
        image.resize((round(image.width * across), round(image.height * down))).save(file)
        (remark,) = ask(Request(files=(root,))).result["remarks"]
        assert f"synthetic.png has {width} x " in remark and "Was the image resized after calibration?" in remark


def test_points_that_are_not_finite_are_dropped_with_a_remark(ask, root, tmp_path):
    sweep = root / "velodyne" / "synthetic.bin"
    points = read_points(sweep)
    expected = ask(Request(files=(root,))).result["boxes"]
    broken = np.insert(points, 100, [[np.nan, 0, 0, 0], [1, np.inf, 0, 0]], axis=0)
    broken.astype("<f4").tofile(sweep)
    result = ask(Request(files=(root,))).result
    assert result["boxes"] == expected
    assert f"2 of the {len(broken)} points of synthetic.bin were dropped" in result["remarks"][0]
    five = np.tile(np.float32([1, 10, -1.8, 30, 5]), (50, 1))
    five[3, 0] = np.nan
    five.tofile(tmp_path / "sweep.pcd.bin")
    assert len(nuscenes.read_points(tmp_path / "sweep.pcd.bin")) == 49


def test_an_empty_image_file_is_reported_as_empty(root):
    file = root / "image_2" / "synthetic.png"
    file.write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"synthetic\.png is empty \(0 bytes\)"):
        kitti.read(root)
    file.write_bytes(b"no image")
    with pytest.raises(InvalidInputError) as raised:
        kitti.read(root)
    assert "BytesIO" not in str(raised.value) and "neither PNG nor JPEG" in str(raised.value)


def test_files_of_different_frames_are_not_combined(root, tmp_path):
    def handed(sweep, image, calibration):
        for old, new in (("velodyne/synthetic.bin", sweep), ("image_2/synthetic.png", image)):
            shutil.copy(root / old, tmp_path / new)
        shutil.copy(root / "calib" / "synthetic.txt", tmp_path / calibration)
        return [tmp_path / name for name in (sweep, image, calibration)]

    with pytest.raises(InvalidInputError, match=r"000008\.bin and 000009\.png have the names of different frames"):
        kitti.read_files(handed("000008.bin", "000009.png", "000009.txt"))
    with pytest.raises(InvalidInputError, match=r"000008\.bin and 000009\.txt have the names of different frames"):
        kitti.read_files(handed("000008.bin", "000008.png", "000009.txt"))
    with pytest.raises(InvalidInputError, match=r"000008\.bin and left_000009\.png have the names of different frames"):
        kitti.read_files(handed("000008.bin", "left_000009.png", "calib.txt"))
    # Names without frame numbers are still combined.
    for names in (
        ("sweep.bin", "left.png", "calib.txt"),
        ("000008.bin", "000008.png", "calib.txt"),
        ("000008.bin", "left_000008.png", "calib_2011.txt"),
    ):
        (frame,) = kitti.read_files(handed(*names))
        assert frame.points_lidar_m is not None and frame.cameras


@pytest.mark.parametrize(
    "content",
    [
        {"data_list": [{"images": {}}]},
        {"metainfo": {"categories": {}}, "data_list": [3]},
        {"metainfo": {"categories": {}}, "data_list": [{"images": {}, "instances": [{}]}]},
        {"metainfo": {"categories": {}}, "data_list": [{"timestamp": 1.0, "instances": []}]},
    ],
)
def test_infos_in_another_layout_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "infos.json").write_text(json.dumps(content))
    with pytest.raises(InvalidInputError, match="is not in the info layout"):
        NuScenes(root=tmp_path).all_frames().read(0)


def test_infos_may_name_files_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sample = {"lidar_points": {"lidar_path": "drive__7/000001.bin"}, "images": {}, "instances": []}
    (tmp_path / "infos.json").write_text(json.dumps({"metainfo": {"categories": {}}, "data_list": [sample]}))
    np.ones((10, 5), np.float32).tofile(tmp_path / "000001.bin")
    assert len(NuScenes(root=tmp_path).all_frames().read(0).points_lidar_m) == 10
