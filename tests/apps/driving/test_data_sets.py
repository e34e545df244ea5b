"""Users' data sets: what is read from each layout, how it is split, which classes are trained, what is pasted."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from apps.driving.adapters import argoverse2, cityscapes3d, nuscenes
from apps.driving.adapters.registry import read_frames
from apps.driving.app import app
from apps.driving.datasets import data_sets
from apps.driving.datasets.argoverse2 import Argoverse2
from apps.driving.datasets.kitti import Kitti
from apps.driving.datasets.nuscenes import NuScenes
from apps.driving.datasets.pasting import without_collisions
from apps.driving.datasets.split import every_fifth
from apps.driving.datasets.synth.export import write_frame
from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.recipes import RECIPES
from apps.driving.types import Boxes3D, CameraInput, LidarInput
from shared.cli.settings import parse_recipe
from shared.data.order import Key
from shared.errors import InvalidInputError
from tests.apps.driving.pcd_files import pcd

ALL_ROUND = LidarInput(range_m=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0))
HALF_SIZE = CameraInput(image=(192, 640), focal_px=360.77)


pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(scope="module")
def kitti_root(tmp_path_factory):
    """Six synthetic frames in KITTI's layout."""
    root = tmp_path_factory.mktemp("kitti")
    sensors = Sensors(image_scale=1.0, azimuth_step_deg=0.5)
    for number in range(6):
        frame = scene(np.random.default_rng(20 + number), sensors=sensors, kind="street")
        write_frame(frame, root / "training", f"{number:06d}")
    return root


def test_quantisation_uses_training_frames(kitti_root):
    data = Kitti(root=kitti_root)
    learnt = [data.frames("train").read(number).name for number in range(len(data.frames("train")))]
    validating = {data.cases().read(number).name for number in range(len(data.cases()))}
    chosen = [frame.name for frame in app.training_cases(data, ALL_ROUND, 3)]
    assert len(chosen) == 3 and chosen[0] == learnt[0] and chosen[-1] == learnt[-1]
    assert not validating & set(chosen)
    assert [frame.name for frame in app.training_cases(data, HALF_SIZE, 100)] == learnt


def test_every_fifth_is_for_validation_and_small_sets_are_split_if_possible():
    names = [f"{n:03d}" for n in range(12)]
    assert every_fifth(names[::-1], "validation") == ["004", "009"]
    assert len(every_fifth(names, "train")) == 10
    assert (every_fifth(["b", "a"], "train"), every_fifth(["b", "a"], "validation")) == (["a"], ["b"])
    assert every_fifth(["a"], "train") == every_fifth(["a"], "validation") == ["a"]


def test_importing_the_table_of_data_sets_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; from apps.driving.datasets import data_sets; data_sets(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert set(data_sets()) == {"kitti", "nuscenes", "argoverse2", "cityscapes3d", "custom", "synthetic"}


def test_kitti_is_split_by_its_image_sets_if_present(kitti_root, tmp_path):
    root = shutil.copytree(kitti_root, tmp_path / "k")
    assert len(Kitti(root=root).frames("train")) == 5 and Kitti(root=root / "training").frames("validation").ids == (
        "000004",
    )
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("000001\n000003\n")
    (root / "ImageSets" / "val.txt").write_text("000000\n")
    assert Kitti(root=root).frames("train").ids == ("000001", "000003")
    assert Kitti(root=root).frames("validation").ids == ("000000",)
    with pytest.raises(InvalidInputError, match="has no folder training/label_2"):
        Kitti(root=tmp_path / "none").frames("train")


def test_a_changed_label_file_makes_a_new_pack(kitti_root, tmp_path):
    root = shutil.copytree(kitti_root, tmp_path / "k")
    before = Kitti(root=root).pack("train", LidarInput())
    file = root / "training" / "label_2" / "000000.txt"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("Car")]
    file.write_text("\n".join(lines) + "\n")
    after = Kitti(root=root).pack("train", LidarInput())
    assert before.folder != after.folder
    assert len(after.table(0)) < len(before.table(0))


def test_a_changed_pcd_sweep_makes_a_new_pack(kitti_root, tmp_path):
    shutil.copytree(kitti_root, tmp_path / "copy")
    sweeps = tmp_path / "copy" / "training" / "velodyne"
    for file in sweeps.glob("*.bin"):
        points = np.fromfile(file, np.float32).reshape(-1, 4)
        (sweeps / f"{file.stem}.pcd").write_bytes(pcd(points))
        file.unlink()
    data = Kitti(root=tmp_path / "copy")
    before = data.frames("train").digest()
    changed = sweeps / f"{data.frames('train').ids[0]}.pcd"
    changed.write_bytes(pcd(points[:100]))
    assert data.frames("train").digest() != before


def test_facts_count_the_sweeps_that_cannot_be_cropped_to_an_image(kitti_root, tmp_path):
    assert "without image_2" not in Kitti(root=kitti_root).facts(LidarInput())
    shutil.copytree(kitti_root, tmp_path / "copy", ignore=shutil.ignore_patterns("*.png"))
    facts = Kitti(root=tmp_path / "copy").facts(LidarInput())
    assert facts["without image_2"].startswith("5 of 5 training frames: their sweeps are not cropped")


def test_classes_keep_their_settings_and_new_ones_have_the_mean_size_of_their_labels(kitti_root):
    data = Kitti(root=kitti_root, classes=("car", "van"), merge=())
    fitted = data.fit_input(LidarInput())
    car, van = fitted.classes
    assert car == LidarInput().classes[2] and van.name == "van"
    frames = data.frames("train")
    truth = [frames.read(n).truth for n in range(len(frames))]
    sizes = np.concatenate([t.size_m[[name == "van" for name in t.names]] for t in truth])
    assert len(sizes) > 0 and van.size_m == pytest.approx(sizes.mean(0), abs=0.006)
    assert Kitti(root=kitti_root).fit_input(LidarInput()) == LidarInput()
    with pytest.raises(
        InvalidInputError, match=r"data\.classes names tram, but the labels have none; they have car \("
    ):
        Kitti(root=kitti_root, classes=("car", "tram")).fit_input(LidarInput())
    assert Kitti(root=kitti_root).fit_input(HALF_SIZE).image == (192, 640)


def test_a_van_is_trained_as_its_merge_target(kitti_root):
    merged, apart = (Kitti(root=kitti_root, merge=merge) for merge in ((("van", "car"),), ()))
    cars = [
        sum(int((data_set.train(LidarInput()).objects(n)[1] == 2).sum()) for n in range(5))
        for data_set in (merged, apart)
    ]
    assert cars[0] > cars[1] > 0


def test_kitti_sweeps_are_cropped_to_the_camera_view(kitti_root):
    frames = Kitti(root=kitti_root).frames("train")
    frame = frames.read(0)
    camera = frame.cameras["image_2"]
    there = frame.points_lidar_m[:, :3] @ camera.lidar_to_camera[:3, :3].T + camera.lidar_to_camera[:3, 3]
    pixels = there @ camera.intrinsics.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    assert (there[:, 2] > 0).all() and (pixels >= 0).all() and (pixels < (1242, 375)).all() and len(pixels) > 1000


def test_facts_list_trained_classes_and_scenes_in_both_splits(kitti_root, tmp_path):
    facts = Kitti(root=kitti_root).facts(LidarInput())
    assert (facts["training frames"], facts["validation frames"]) == (5, 1)
    assert "m away, returns" in facts["car"] and "scenes in both splits" not in facts


def test_pasting_depends_only_on_the_key_and_avoids_collisions(kitti_root):
    sweeps = Kitti(root=kitti_root).train(LidarInput())
    pasted = sweeps.batch(np.array([0]), Key(seed=1, epoch=0))
    second = Kitti(root=kitti_root).train(LidarInput()).batch(np.array([3, 0]), Key(seed=1, epoch=0))
    assert torch.equal(pasted["points"][0], second["points"][1]) and torch.equal(pasted["boxes"][0], second["boxes"][1])
    plain = sweeps.batch(np.array([0]), None)
    assert len(pasted["labels"][0]) > len(plain["labels"][0])
    points, boxes = sweeps.pack.points(0), sweeps.objects(0)[0]
    more, grown, labels = sweeps.bank.paste(
        points, boxes, sweeps.objects(0)[1], sweeps.pack.table(0)[:, :7], 15, np.random.default_rng(0)
    )
    assert len(grown) == len(labels) > len(boxes) and np.array_equal(grown[: len(boxes)], boxes)
    everything = Boxes3D(centre_lidar_m=grown[:, :3], size_m=grown[:, 3:6], yaw=grown[:, 6], names=("",) * len(grown))
    assert (everything.inside(more).sum(0) <= 1).all()
    assert (everything.inside(more).sum(1)[len(boxes) :] >= 5).all()


def test_a_position_is_free_if_no_rectangle_overlaps():
    existing = np.array([[0, 0, 0, 4, 2, 1, 0]], np.float32)
    candidates = np.array(
        [
            [3, 1.5, 0, 4, 2, 1, 0],  # its corner is in the existing one
            [0, 4, 0, 4, 2, 1, np.pi / 2],  # crosswise, 1 m away
            [0, 4, 0, 1, 1, 1, 0],  # inside the previous one
            [3.6, 2.6, 0, 4, 1, 1, -np.pi / 4],  # bounding boxes overlap, rectangles do not
        ],
        np.float32,
    )
    assert without_collisions(candidates, existing).tolist() == [False, True, False, True]
    assert without_collisions(candidates[:1], existing[:0]).tolist() == [True]


@pytest.mark.realdata
def test_real_argoverse_boxes_contain_as_many_points_as_stated(data_root):
    """The annotations state the number of returns in each box; in a wrong frame of reference they would differ."""
    log = data_root / "driving" / "av2_7fab2350"
    assert len(argoverse2.timestamps(log)) == 2
    for frame in argoverse2.read(log):
        held = frame.truth.inside(frame.points_lidar_m).sum(axis=1)
        assert len(held) > 50 and np.abs(held - frame.truth.point_counts).max() <= 0.02 * held.max() + 2
        assert frame.points_lidar_m[:, 3].min() >= 0 and frame.points_lidar_m[:, 3].max() <= 1
        ground = np.quantile(frame.points_lidar_m[np.abs(frame.points_lidar_m[:, :2]).max(1) < 15, 2], 0.1)
        assert -2.3 < ground < -1.5


@pytest.mark.realdata
@pytest.mark.parametrize(("size", "remarks"), [((1550, 2048), 0), ((775, 1024), 1)])
def test_a_resized_argoverse_image_gets_a_remark(size, remarks, data_root, tmp_path):
    log = shutil.copytree(data_root / "driving" / "av2_7fab2350", tmp_path / "log")
    first = argoverse2.timestamps(log)[0]
    camera = log / "sensors" / "cameras" / "ring_front_center"
    camera.mkdir(parents=True)
    Image.new("RGB", size).save(camera / f"{first}.jpg")
    frame = argoverse2.read_frame(log, first)
    assert list(frame.cameras) == ["ring_front_center"]
    assert sum("Was the image resized" in remark for remark in frame.remarks) == remarks


@pytest.mark.realdata
def test_nuscenes_tables_give_the_same_as_the_info_file(data_root, tmp_path):
    """The real key frame, written as the data set's tables with invented poses, reads back the same."""
    source = data_root / "driving" / "nuscenes_sample"
    content = json.loads((source / "sample.json").read_text())
    write_tables(content, tmp_path)
    for file in source.iterdir():
        if file.suffix != ".json":
            sensor = file.name.split("__")[1]
            (tmp_path / "samples" / sensor).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / "samples" / sensor)
    (expected,) = nuscenes.read(source)
    data = NuScenes(root=tmp_path, version="v1.0-mini")
    frames = data.frames("train")
    assert list(frames.scenes) == ["scene-0001"]
    frame = frames.read(0)
    assert np.array_equal(frame.points_lidar_m, expected.points_lidar_m)
    assert frame.truth.names == expected.truth.names
    assert frame.truth.centre_lidar_m == pytest.approx(expected.truth.centre_lidar_m, abs=2e-3)
    assert frame.truth.size_m == pytest.approx(expected.truth.size_m, abs=1e-5)
    turn = frame.truth.yaw - expected.truth.yaw
    assert np.abs(np.arctan2(np.sin(turn), np.cos(turn))).max() < 2e-3
    assert frame.truth.point_counts.tolist() == expected.truth.point_counts.tolist()
    assert frame.cameras.keys() == expected.cameras.keys()
    for name, camera in frame.cameras.items():
        assert camera.lidar_to_camera == pytest.approx(expected.cameras[name].lidar_to_camera, abs=2e-3)
        assert camera.intrinsics == pytest.approx(expected.cameras[name].intrinsics, abs=1e-3)


def write_tables(content, root):
    """nuScenes tables for one key frame in the info layout, with the vehicle at an arbitrary global pose."""
    (sample,) = content["data_list"]
    names = {number: name for name, number in content["metainfo"]["categories"].items()}
    ego = np.eye(4)
    ego[:2, :2] = [[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]]
    ego[:3, 3] = (411.3, 1180.9, 0.0)
    lidar = np.array(sample["lidar_points"]["lidar2ego"])
    sensors = {"LIDAR_TOP": (lidar, [], sample["lidar_points"]["lidar_path"])} | {
        name: (lidar @ np.linalg.inv(np.array(view["lidar2cam"])), view["cam2img"], view["img_path"])
        for name, view in sample["images"].items()
    }
    tables = {
        "sample": [{"token": "s", "timestamp": round(sample["timestamp"] * 1e6), "scene_token": "c"}],
        "scene": [{"token": "c", "name": "scene-0001"}],
        "ego_pose": [{"token": "e", "rotation": quaternion(ego), "translation": ego[:3, 3].tolist()}],
        "sensor": [{"token": name, "channel": name} for name in sensors],
        "calibrated_sensor": [
            {
                "token": name, "sensor_token": name, "rotation": quaternion(mount),
                "translation": mount[:3, 3].tolist(), "camera_intrinsic": intrinsic,
            }
            for name, (mount, intrinsic, _) in sensors.items()
        ],
        "sample_data": [
            {
                "token": name, "sample_token": "s", "ego_pose_token": "e", "calibrated_sensor_token": name,
                "is_key_frame": True, "filename": f"samples/{name}/{file}",
            }
            for name, (_, _, file) in sensors.items()
        ],
        "category": [{"token": name} for name in (*names.values(), "other")],
        "instance": [], "sample_annotation": [], "attribute": [],
    }  # fmt: skip
    for number, item in enumerate(sample["instances"]):
        x, y, z, length, width, height, yaw = item["bbox_3d"]
        box = np.eye(4)
        box[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        box[:3, 3] = x, y, z
        box = ego @ lidar @ box
        name = names.get(item["bbox_label_3d"], "other")
        tables["instance"].append({"token": f"i{number}", "category_token": name})
        tables["sample_annotation"].append(
            {
                "sample_token": "s", "instance_token": f"i{number}", "translation": box[:3, 3].tolist(),
                "size": [width, length, height], "rotation": quaternion(box), "num_lidar_pts": item["num_lidar_pts"],
                "token": f"a{number}", "prev": "", "next": "", "attribute_tokens": [], "num_radar_pts": 0,
            }
        )  # fmt: skip
    categories = {
        "car": "vehicle.car", "truck": "vehicle.truck", "trailer": "vehicle.trailer", "bus": "vehicle.bus.rigid",
        "construction_vehicle": "vehicle.construction", "bicycle": "vehicle.bicycle",
        "motorcycle": "vehicle.motorcycle", "pedestrian": "human.pedestrian.adult",
        "traffic_cone": "movable_object.trafficcone", "barrier": "movable_object.barrier",
    }  # fmt: skip
    for row in tables["category"]:
        row["name"] = categories.get(row["token"], row["token"])
    (root / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))


def quaternion(transform):
    """Scalar first, of the rotation of a transform; by its largest component (Shepperd 1978)."""
    m = np.asarray(transform)[:3, :3]
    squares = np.array(
        [
            1 + m[0, 0] + m[1, 1] + m[2, 2], 1 + m[0, 0] - m[1, 1] - m[2, 2],
            1 - m[0, 0] + m[1, 1] - m[2, 2], 1 - m[0, 0] - m[1, 1] + m[2, 2],
        ]
    )  # fmt: skip
    s = 2 * np.sqrt(squares.max())
    parts = {
        0: (s / 4, (m[2, 1] - m[1, 2]) / s, (m[0, 2] - m[2, 0]) / s, (m[1, 0] - m[0, 1]) / s),
        1: ((m[2, 1] - m[1, 2]) / s, s / 4, (m[0, 1] + m[1, 0]) / s, (m[0, 2] + m[2, 0]) / s),
        2: ((m[0, 2] - m[2, 0]) / s, (m[0, 1] + m[1, 0]) / s, s / 4, (m[1, 2] + m[2, 1]) / s),
        3: ((m[1, 0] - m[0, 1]) / s, (m[0, 2] + m[2, 0]) / s, (m[1, 2] + m[2, 1]) / s, s / 4),
    }
    return [float(value) for value in parts[int(squares.argmax())]]


def test_pickled_infos_are_refused(tmp_path):
    (tmp_path / "nuscenes_infos_train.pkl").write_bytes(b"\x80")
    with pytest.raises(InvalidInputError, match="pickled infos, which are not loaded because pickles can run code"):
        NuScenes(root=tmp_path).frames("train")
    with pytest.raises(InvalidInputError, match=r"has neither v1\.0-trainval nor infos as JSON"):
        NuScenes(root=tmp_path.parent).frames("train")


def test_an_invalid_label_file_is_refused(tmp_path):
    (tmp_path / "a_gtBbox3d.json").write_text('{"objects": []}')
    with pytest.raises(InvalidInputError, match="is not a label file of Cityscapes 3D"):
        cityscapes3d.read(tmp_path / "a_gtBbox3d.json", None)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["kitti", "nuscenes", "argoverse2"])
def test_real_frames_become_batches_with_their_labels(data_root, name):
    folder = {"kitti": "kitti_object", "nuscenes": "nuscenes_sample", "argoverse2": "av2_7fab2350"}[name]
    data = {"kitti": Kitti, "nuscenes": NuScenes, "argoverse2": Argoverse2}[name](root=data_root / "driving" / folder)
    fitted = data.fit_input(ALL_ROUND)
    batch = data.train(fitted).batch(np.array([0]), Key(seed=0, epoch=0))
    assert len(batch["points"][0]) > 5000 and len(batch["labels"][0]) >= 1
    assert int(batch["labels"][0].max()) < len(fitted.classes)
    assert data.fingerprint()["synthetic"] is False
    assert len(data.cases()) == len(data.validation(fitted)) >= 1


@pytest.mark.realdata
def test_six_cameras_of_a_key_frame_are_six_samples(data_root):
    data = NuScenes(root=data_root / "driving" / "nuscenes_sample")
    fitted = data.fit_input(HALF_SIZE)
    images = data.train(fitted)
    batch = images.batch(np.arange(6), None)
    assert len(images) == 6 and len(batch["images"]) == 6
    assert all(side % 32 == 0 for side in fitted.image)
    assert batch["intrinsics"][:, 0, 0] == pytest.approx([360.77] * 6, rel=0.01)
    assert sum(len(labels) for labels in batch["labels"]) > 20
    for centres, boxes_2d in zip(batch["centres_2d"], batch["boxes_2d"], strict=True):
        assert ((centres >= boxes_2d[:, :2] - 1) & (centres <= boxes_2d[:, 2:] + 1)).all()


@pytest.mark.realdata
def test_a_log_is_read_through_every_interface(data_root):
    log = data_root / "driving" / "av2_7fab2350"
    frames = read_frames([log])
    assert [frame.name for frame in frames] == ["315966265259836000", "315966265360032000"]
    assert all(len(frame.points_lidar_m) > 90_000 and not frame.cameras for frame in frames)


def test_the_command_line_sets_classes_and_merges(kitti_root):
    words = ["--data.root", str(kitti_root), "--data.classes", "car", "van", "--data.merge", "truck", "car"]
    chosen = parse_recipe(RECIPES["tiny"](), Kitti, words, "test")
    assert chosen.data == Kitti(root=kitti_root, classes=("car", "van"), merge=(("truck", "car"),))
    assert parse_recipe(RECIPES["tiny"](), Kitti, [*words[:2], "--data.merge"], "test").data.merge == ()


@pytest.mark.realdata
def test_a_merge_target_is_trained(data_root):
    """Argoverse 2 has no class car; merging its vehicles into car means that car is to be trained."""
    data = Argoverse2(
        root=data_root / "driving" / "av2_7fab2350", merge=(("regular_vehicle", "car"), ("bicycle", "cycle"))
    )
    names = [kind.name for kind in data.fit_input(RECIPES["medium"]().input).classes]
    assert {"car", "cycle", "pedestrian"} <= set(names) and not {"regular_vehicle", "bicycle"} & set(names)
    assert len(names) == len(set(names))
