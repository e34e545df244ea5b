"""The predictor, which every interface calls. The weights are random, so the detections themselves are not checked."""

import io
import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from apps.driving.adapters.registry import read_frames
from apps.driving.inference.detect import LidarDetector, shown_boxes
from apps.driving.inference.ground import set_on_ground
from apps.driving.outputs import view
from apps.driving.predictor import DrivingPredictor, Options
from apps.driving.service import DrivingCodec
from apps.driving.types import Boxes3D, Frame, LidarInput
from shared.deploy.predictor import Request, add_programs
from shared.errors import InvalidInputError


def test_a_folder_gives_boxes_picture_and_files(ask, synthetic):
    response = ask(Request(files=(synthetic,)))
    frame = response.result["frames"][0]
    assert frame["model"] == "pointpillars" and frame["boxes"]
    assert len(response.result["boxes"]) == len(frame["boxes"])
    box = response.result["boxes"][0]
    assert box["frame"] == frame["name"] and box["name"] in ("car", "pedestrian", "cyclist")
    assert len(box["centre_lidar_m"]) == len(box["size_m"]) == 3 and -np.pi <= box["yaw"] < np.pi + 1e-3
    scores = [box["score"] for box in frame["boxes"]]
    assert scores == sorted(scores, reverse=True) and min(scores) >= 0.1
    assert Image.open(io.BytesIO(response.picture)).format == "PNG"
    assert {"boxes.json", "points.bin", "image.jpg", f"{frame['name']}.txt"} <= response.files.keys()
    assert json.loads(json.dumps(response.result)) == response.result


def test_the_same_request_gives_the_same_response(ask, synthetic):
    first, second = (ask(Request(files=(synthetic,))) for _ in range(2))
    assert first.result == second.result and first.picture == second.picture and first.files == second.files


def test_a_batch_gives_the_same_as_single_frames(codec, ask, predictor, synthetic):
    requests = [
        Request(files=(synthetic,)),
        Request(files=(synthetic,), options={"model": "fcos3d"}),
        Request(files=(synthetic,), options={"score": "0.36"}),
    ]
    decoded_requests = [codec.decode(request) for request in requests]
    together = []
    for number, decoded in enumerate(decoded_requests):
        others = [decoded_request.inputs[0] for decoded_request in decoded_requests[:number]]
        found = predictor.predict([*others, *decoded.inputs], decoded.options)[number:]
        together.append(codec.encode(decoded, found).result)
    alone = [dict(ask(request).result) for request in requests]
    programs = [result.pop("programs") for result in alone]
    assert programs == [{"pointpillars": "torch"}, {"fcos3d": "torch"}, {"pointpillars": "torch"}]
    versions = [result.pop("versions") for result in alone]
    assert [list(by_model) for by_model in versions] == [["pointpillars"], ["fcos3d"], ["pointpillars"]]
    assert all(version >= 1 for by_model in versions for version in by_model.values())
    reasons = [result.pop("program_reasons") for result in alone]
    assert reasons == [dict.fromkeys(by_model, "it was requested") for by_model in programs]
    assert together == alone
    assert all(box["score"] >= 0.36 for box in alone[2]["boxes"])
    assert len(alone[2]["boxes"]) < len(alone[0]["boxes"])


def test_the_models_of_all_frames_are_named_with_their_versions(codec, predictor, synthetic, tmp_path):
    for source, target in (
        ("velodyne/synthetic.bin", "a.bin"),
        ("image_2/synthetic.png", "b.png"),
        ("calib/synthetic.txt", "b.txt"),
    ):
        folder = tmp_path / Path(source).parent
        folder.mkdir()
        shutil.copy(synthetic / source, folder / target)
    decoded = codec.decode(Request(files=(tmp_path,)))
    response = codec.encode(decoded, predictor.predict(decoded.inputs, decoded.options))
    assert [frame["model"] for frame in response.result["frames"]] == ["pointpillars", "fcos3d"]
    # The camera network as an imported one, which has no program; another sweep's model was loaded before.
    program = predictor.programs["pointpillars"]
    loaded = SimpleNamespace(
        programs={"pointpillars": program, "mmdet3d_lidar": program}, manifests=predictor.manifests
    )
    result = add_programs(response, loaded).result
    assert result["versions"] == {"pointpillars": 1, "fcos3d": 1} and list(result["programs"]) == ["pointpillars"]


def test_the_model_depends_on_the_sensors_of_the_frame(ask, synthetic, tmp_path):
    sweep = synthetic / "velodyne" / "synthetic.bin"
    loose = [shutil.copy(synthetic / part, tmp_path) for part in ("image_2/synthetic.png", "calib/synthetic.txt")]
    for files, model in (([synthetic], "pointpillars"), ([sweep], "pointpillars"), (loose, "fcos3d")):
        assert ask(Request(files=tuple(map(Path, files)))).result["frames"][0]["model"] == model


def test_file_names_suggest_which_model_to_load_early(codec, synthetic, tmp_path):
    image = synthetic / "image_2" / "synthetic.png"
    archive = shutil.make_archive(str(tmp_path / "scene"), "zip", synthetic)
    for files, options, models in (
        ([synthetic], {}, ["pointpillars"]),
        ([archive], {}, ["pointpillars"]),
        ([image, synthetic / "calib" / "synthetic.txt"], {}, ["fcos3d"]),
        ([image], {"model": "pointpillars"}, ["pointpillars"]),
        ([tmp_path / "note.pdf"], {}, []),
    ):
        assert codec.likely_models(Request(files=tuple(map(Path, files)), options=options)) == models


def test_a_camera_model_trained_on_rendered_images_comes_last_with_a_remark(predictor, synthetic):
    (frame,) = read_frames([synthetic])
    images = replace(frame, points_lidar_m=None)
    shipped = predictor.detectors
    both = {"fcos3d": shipped["fcos3d"], "mmdet3d_camera": shipped["fcos3d"]}
    alone = DrivingPredictor(detectors=shipped, least_scores={}, rendered=("pointpillars", "fcos3d"))
    (found,) = alone.predict([images])
    assert found.model == "fcos3d" and "trivium import driving" in found.remarks[-1]
    assert alone.predict([frame])[0].model == "pointpillars"
    assert not any("rendered" in remark for remark in alone.predict([frame])[0].remarks)
    (found,) = DrivingPredictor(detectors=both, least_scores={}, rendered=("fcos3d",)).predict([images])
    assert found.model == "mmdet3d_camera" and not found.remarks


def test_a_single_sweep_file_is_accepted(ask, synthetic, tmp_path):
    shutil.copy(synthetic / "velodyne" / "synthetic.bin", tmp_path / "sweep.bin")
    response = ask(Request(files=(tmp_path / "sweep.bin",)))
    assert response.result["frames"][0]["boxes"]
    assert "image.jpg" not in response.files


def test_a_sweep_with_nothing_in_range_gives_no_boxes(ask, tmp_path):
    np.full((10, 4), [-200, 0, 0, 0.5], np.float32).tofile(tmp_path / "far.bin")
    response = ask(Request(files=(tmp_path / "far.bin",)))
    assert response.result["boxes"] == []
    assert Image.open(io.BytesIO(response.picture)).format == "PNG"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "smoke"}, "model 'smoke'; the models are pointpillars, fcos3d, mmdet3d_lidar, mmdet3d_camera"),
        ({"score": "high"}, "score=high"),
        ({"score": "nan"}, "score=nan"),
        ({"colour": "red"}, "unknown option colour"),
    ],
)
def test_bad_options_are_refused(codec, synthetic, options, words):
    with pytest.raises(InvalidInputError, match=words):
        codec.decode(Request(files=(synthetic,), options=options))


def test_a_model_that_lacks_its_input_is_refused(codec, synthetic, tmp_path):
    shutil.copy(synthetic / "velodyne" / "synthetic.bin", tmp_path / "sweep.bin")
    with pytest.raises(InvalidInputError, match="sweep has no image with a calibration"):
        codec.decode(Request(files=(tmp_path / "sweep.bin",), options={"model": "fcos3d"}))
    loose = (synthetic / "image_2" / "synthetic.png", synthetic / "calib" / "synthetic.txt")
    copies = tuple(Path(shutil.copy(file, tmp_path)) for file in loose)
    with pytest.raises(InvalidInputError, match="no LiDAR sweep"):
        codec.decode(Request(files=copies, options={"model": "pointpillars"}))


def test_a_model_of_the_other_sensor_is_named_as_a_way_out(predictor, synthetic):
    """With the artifact of one model, as ``trivium predict --artifact`` loads it."""
    sweep, image = (synthetic / folder for folder in ("velodyne/synthetic.bin", "image_2/synthetic.png"))
    calibration = synthetic / "calib" / "synthetic.txt"

    def refusal(model, files, options):
        detectors = {model: predictor.detectors[model]}
        codec = DrivingCodec(DrivingPredictor(detectors=detectors, least_scores={}))
        with pytest.raises(InvalidInputError) as caught:
            codec.decode(Request(files=files, options=options))
        return str(caught.value)

    for options in ({}, {"model": "pointpillars"}):
        assert refusal("pointpillars", (calibration, image), options) == (
            "synthetic.png has no LiDAR sweep, which pointpillars needs; add its sweep (.bin, .pcd, .npy), or use a "
            "camera model instead: name its artifact with --artifact"
        )
    for options in ({}, {"model": "fcos3d"}):
        assert refusal("fcos3d", (sweep,), options) == (
            "synthetic has no image with a calibration, which fcos3d needs; add its image and calibration, or use a "
            "LiDAR model instead: name its artifact with --artifact"
        )


@pytest.mark.parametrize(("old", "new"), [(b"PK\x01\x02", b"PK\x01?"), ("é".encode(), b"\xff\xff")])
def test_a_damaged_zip_is_refused(codec, tmp_path, old, new):
    """Its directory is damaged, or a name in it is not UTF-8 although a flag says so."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("velodyne/é.bin", bytes(160))
    (tmp_path / "frames.zip").write_bytes(content.getvalue().replace(old, new))
    with pytest.raises(InvalidInputError, match=r"frames\.zip cannot be read as a zip archive"):
        codec.decode(Request(files=(tmp_path / "frames.zip",), options={}))


@pytest.mark.parametrize(("name", "content"), [("empty.bin", b""), ("torn.bin", b"\0" * 33), ("note.pdf", b"%PDF")])
def test_files_that_are_not_frames_are_refused(codec, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=name.split(".")[0]):
        codec.decode(Request(files=(tmp_path / name,)))


def test_a_zip_gives_the_same_as_its_folder(ask, synthetic, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "frame"), "zip", synthetic)
    zipped = ask(Request(files=(Path(archive),)))
    assert zipped.result == ask(Request(files=(synthetic,))).result


def realdata(part):
    root = Path(os.environ.get("TRIVIUM_DATA", "")) / "driving" / part
    if "TRIVIUM_DATA" not in os.environ or not root.is_dir():
        pytest.skip(f"set TRIVIUM_DATA to a folder that holds driving/{part}")
    return root


@pytest.mark.realdata
def test_all_real_kitti_frames_get_an_answer(ask):
    response = ask(Request(files=(realdata("kitti_object"),)))
    assert [frame["name"] for frame in response.result["frames"]] == [f"{n:06d}" for n in range(5)]
    assert {f"{n:06d}.txt" for n in range(5)} <= response.files.keys()


@pytest.mark.realdata
@pytest.mark.parametrize("model", ["pointpillars", "fcos3d"])
def test_a_real_nuscenes_key_frame(ask, model):
    response = ask(Request(files=(realdata("nuscenes_sample"),), options={"model": model}))
    places = np.array([box["centre_lidar_m"] for box in response.result["boxes"]])
    # In all directions around the vehicle, not only ahead.
    assert (places[:, 0] > 1).any() and (places[:, 0] < -1).any()


@pytest.mark.parametrize("taller", [3, 90])
def test_a_cameras_detections_do_not_depend_on_the_other_cameras(predictor, synthetic, taller):
    (frame,) = read_frames([synthetic])
    camera = replace(frame.cameras["image_2"], image_HWC=frame.cameras["image_2"].image_HWC[::2, ::2].copy())
    dark = np.zeros((camera.image_HWC.shape[0] + taller, camera.image_HWC.shape[1], 3), np.uint8)
    away = camera.lidar_to_camera + np.array([[0, 0, 0, 1000.0]] * 3 + [[0, 0, 0, 0]], np.float32)
    dark_camera = replace(camera, image_HWC=dark, lidar_to_camera=away)
    detector = predictor.detectors["fcos3d"]
    alone = detector.detect(replace(frame, cameras={"image_2": camera}))
    both = detector.detect(replace(frame, cameras={"dark": dark_camera, "image_2": camera}))
    mine = both.take(np.linalg.norm(both.centre_lidar_m, axis=1) < 500)
    assert len(alone) > 5 and mine.names == alone.names
    assert mine.array == pytest.approx(alone.array, abs=1e-3)
    assert mine.scores == pytest.approx(alone.scores, abs=1e-5)


def test_an_empty_sweep_gives_no_boxes(predictor):
    frame = Frame(name="empty", points_lidar_m=np.zeros((0, 4), np.float32), cameras={})
    assert len(predictor.detectors["pointpillars"].detect(frame)) == 0
    (found,) = predictor.predict([frame])
    assert len(found.boxes) == 0 and found.model == "pointpillars"


def test_detections_do_not_depend_on_the_order_of_the_points(predictor, synthetic):
    # Sweeps are written beam by beam; a network that used only the first points of a pillar would use its top.
    (frame,) = read_frames([synthetic])
    points = frame.points_lidar_m
    others = [points[::-1], points[np.random.default_rng(0).permutation(len(points))]]
    expected = predictor.detect(frame, "pointpillars")
    assert len(expected) > 5
    for order in others:
        found = predictor.detect(replace(frame, points_lidar_m=np.ascontiguousarray(order)), "pointpillars")
        assert found.array == pytest.approx(expected.array, abs=1e-3)


def test_objects_behind_are_found_like_objects_ahead(predictor, synthetic):
    (frame,) = read_frames([synthetic])
    around = replace(frame, cameras=dict.fromkeys(("a", "b"), frame.cameras["image_2"]))
    about = np.array([-1, -1, 1, 1], np.float32)
    around = replace(around, points_lidar_m=np.concatenate([frame.points_lidar_m, frame.points_lidar_m[::3] * about]))
    turned = replace(around, points_lidar_m=around.points_lidar_m * about)
    ahead, behind = (predictor.detect(view, "pointpillars") for view in (around, turned))
    assert len(ahead) == len(behind) > 5
    back = behind.array * np.array([-1, -1, 1, 1, 1, 1, 1]) + np.array([0, 0, 0, 0, 0, 0, np.pi])
    for box in ahead.array:
        away = np.abs(back[:, :6] - box[:6]).max(axis=1) + np.abs(np.sin((back[:, 6] - box[6]) / 2))
        assert away.min() < 1e-2


def test_arrays_from_python_are_converted_or_refused_with_a_reason(predictor, synthetic):
    (frame,) = read_frames([synthetic])
    points, camera = frame.points_lidar_m, frame.cameras["image_2"]
    expected = predictor.detect(frame, "pointpillars").array
    spaced = np.zeros((len(points), 8), np.float32)
    spaced[:, ::2] = points
    for own in (points.astype(np.float64), np.asfortranarray(points), spaced[:, ::2], points.tolist()):
        found = predictor.detect(replace(frame, points_lidar_m=own), "pointpillars")
        assert found.array == pytest.approx(expected, abs=1e-4)
    for own, message in (
        (points[:, :3], r"\(\d+, 3\); give \(N, 4\): .*use zeros"),
        (points[0], r"\(4,\); give \(N, 4\)"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            replace(frame, points_lidar_m=own)
    for image in (camera.image_HWC / 255, camera.image_HWC[..., 0]):
        with pytest.raises(InvalidInputError, match=r"give uint8 of shape \(height, width, 3\), RGB"):
            replace(camera, image_HWC=image)


def test_a_frame_with_one_rear_camera_is_also_searched_behind(predictor, synthetic):
    (frame,) = read_frames([synthetic])
    ahead = frame.cameras["image_2"]
    turn = np.diag([-1, -1, 1, 1]).astype(np.float32)
    back = replace(ahead, lidar_to_camera=ahead.lidar_to_camera @ turn)
    behind = replace(frame, points_lidar_m=frame.points_lidar_m * turn.diagonal(), cameras={"back": back})
    assert ahead.faces_forward and not back.faces_forward
    assert not frame.all_round and behind.all_round and replace(behind, points_lidar_m=None).all_round
    found = predictor.detect(behind, "pointpillars")
    assert (found.centre_lidar_m[:, 0] < -5).sum() > 5
    assert json.loads(view.files([behind], [found])["boxes.json"])["frames"][0]["all_round"] is True


def test_an_object_beside_the_sensor_is_seen_in_full():
    class Network:
        def predict(self, points):
            x, y = points[:, 0], points[:, 1]
            car = (y.abs() > 5) & (y.abs() < 7)
            box = [float(x[car].min() + x[car].max()) / 2, float(y[car].mean()), -1, float(x[car].max() - x[car].min())]
            return torch.tensor([[*box, 1.8, 1.5, 0]]), torch.tensor([0.9]), torch.tensor([2])

    along, road = np.linspace(-2, 2, 41), np.linspace(-60, 60, 241)
    car = np.stack([along, np.full(41, 6.0), np.full(41, -1.0), np.zeros(41)], axis=1)
    points = np.concatenate([car, np.stack([road, road * 0, road * 0 - 1.7, road * 0], axis=1)]).astype(np.float32)
    frame = Frame(name="a", points_lidar_m=points, cameras={})
    assert frame.all_round
    found = LidarDetector(Network(), LidarInput()).detect(frame)
    # Both passes find it, and it is counted as one car.
    assert found.array[:, [0, 1, 3]] == pytest.approx(np.array([[0, 6, 4]]), abs=1e-5)


def test_the_own_vehicle_is_not_detected():
    rows = [
        [0.4, 0.1, -1.0, 4.2, 1.8, 1.5, 0.1],
        [2.4, 0, -1.0, 4.2, 1.8, 1.5, 0.0],
        [4.0, 2.4, -1.0, 4.2, 1.8, 1.5, 0],
    ]

    class Network:
        def predict(self, points):
            return torch.tensor(rows), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([2, 2, 2])

    detector = LidarDetector(Network(), LidarInput())
    points = np.array([[5, 0, -1, 0]], np.float32)
    found = detector.detect(Frame(name="a", points_lidar_m=points, cameras={}))
    assert found.array[:, 0] == pytest.approx([4.0])


def test_boxes_stand_on_the_ground_that_the_points_show():
    draw = np.random.default_rng(0)
    road = np.stack([draw.uniform(0, 30, 4000), draw.uniform(-8, 8, 4000), draw.normal(-1.7, 0.01, 4000)], 1)
    boxes = np.array(
        [[10, 0, -0.75, 4, 1.7, 1.5, 0.3], [20, 0, 0.4, 4, 1.7, 1.5, 0], [60, 0, -0.8, 4, 1.7, 1.5, 0]], np.float32
    )
    placed = set_on_ground(boxes, road.astype(np.float32))
    # The first was 0.2 m too high; the second is too far from any ground, the third has no points near it.
    assert placed[0, 2] - placed[0, 5] / 2 == pytest.approx(-1.7, abs=0.02)
    assert placed[0, 2] + placed[0, 5] / 2 == pytest.approx(0.0, abs=1e-4)
    assert np.array_equal(placed[1:], boxes[1:])


def test_one_object_is_shown_as_one_class():
    boxes = Boxes3D(
        centre_lidar_m=np.array([[10, 0, -1], [10.1, 0, -1], [10, 4, -1], [30, 0, -1]], np.float32),
        size_m=np.array([[0.8, 0.6, 1.7], [1.7, 0.6, 1.7], [1.7, 0.6, 1.7], [3.9, 1.6, 1.5]], np.float32),
        yaw=np.zeros(4, np.float32),
        names=("pedestrian", "cyclist", "cyclist", "car"),
        scores=np.array([0.5, 0.4, 0.3, 0.2], np.float32),
    )
    assert shown_boxes(boxes, 0.1).names == ("pedestrian", "cyclist", "car")
    assert shown_boxes(boxes, {"pedestrian": 0.6, "cyclist": 0.35, "car": 0.1}).names == ("cyclist", "car")
    assert len(shown_boxes(boxes, 0.9)) == 0


@pytest.mark.parametrize("score", [2.0, -1.0, float("nan"), "0.9"])
def test_an_invalid_score_is_refused_from_python_too(score):
    with pytest.raises(InvalidInputError, match="give a number from 0 to 1"):
        Options(score=score)


def test_an_integer_is_a_valid_score(predictor, ask, synthetic):
    (frame,) = read_frames([synthetic])
    everything, nothing = (predictor.predict([frame], Options(score=score))[0].boxes for score in (0, 1))
    assert len(everything) > 20 and len(nothing) == 0
