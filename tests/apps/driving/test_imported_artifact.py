"""An imported public model, written as an artifact and opened again, predicts through the application's predictor."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from apps.driving.app import app
from apps.driving.models import SECOND_STAGE
from apps.driving.models.configurations import MMDet3DModel
from apps.driving.models.detectors import network_of
from apps.driving.models.imports import IMPORTERS
from apps.driving.models.parity import random_camera, random_sweep
from apps.driving.predictor import DrivingPredictor, Options
from apps.driving.recipes import RECIPES
from apps.driving.types import Frame
from shared.cli.main import main
from shared.deploy.artifact import open_artifact, write_manifest
from shared.deploy.predictor import programs_of
from shared.deploy.programs.choosing import use_program
from shared.deploy.registry import Registry
from shared.deploy.writing import write_imported
from shared.errors import InvalidInputError
from shared.recipe_file import to_mapping
from shared.recipes import recipe_of
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.driving.own_checkpoints import SIZES, own_config, save, trained
from tests.fake_cuda import fake_cuda

KITTI = "pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class"
SMOKE = "smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d"
CENTERPOINT = "centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A LiDAR and a camera model with random weights, their scores raised so that they find something."""
    folder = tmp_path_factory.mktemp("registry")
    for config, raised in ((CENTERPOINT, 0.0), (SMOKE, 3.25)):
        torch.manual_seed(1)
        detector = MMDet3DModel(config=config).build()
        for name, value in detector.named_parameters():
            if name.endswith("bbox_head.conv_cls.bias"):
                value.data += raised
        torch.save({"state_dict": detector.state_dict()}, folder / "a.pth")
        imported = IMPORTERS["mmdet3d"].load([config, str(folder / "a.pth")], None)
        # Without ONNX, whose export takes long for a canvas of this size: torch computes it then.
        write_imported(replace(app, dense=_no_onnx), "mmdet3d", imported, folder / "registry")
    return folder / "registry"


def _no_onnx(recipe, model):
    raise NotImplementedError("it is not exported in this test")


@pytest.fixture(scope="module")
def pointpillars(tmp_path_factory):
    """A small PointPillars for KITTI's classes, with random weights and raised scores: the import and its artifact."""
    folder = tmp_path_factory.mktemp("pointpillars")
    config, names = own_config(), ("Pedestrian", "Cyclist", "Car")
    config.model.bbox_head.num_classes = len(names)
    generator, training = config.model.bbox_head.anchor_generator, config.model.train_cfg
    generator.sizes, generator.ranges, training.assigner = SIZES[:3], generator.ranges[:3], training.assigner[:3]
    file = save(folder / "a.pth", trained(config), config.pretty_text, classes=names)
    imported = IMPORTERS["mmdet3d"].load([str(file)], None)
    return imported, write_imported(app, "mmdet3d", imported, folder / "registry")


@pytest.fixture(scope="module")
def frame():
    points = np.random.default_rng(0).uniform([-50, -50, -3, 0], [50, 50, 1, 1], (20000, 4)).astype(np.float32)
    return Frame(name="random", points_lidar_m=points, cameras={"front": random_camera()})


def test_the_artifact_says_where_it_comes_from_and_what_it_is(registry):
    artifact = open_artifact(registry / "mmdet3d_lidar" / "1")
    assert artifact.recipe()["recipe"]["model"] == {
        "name": "mmdet3d_lidar",
        "config": CENTERPOINT,
        "own": None,
        "own_camera": None,
        "fast": True,
    }
    source = artifact.manifest.source
    assert source["configuration"] == CENTERPOINT and source["parity"]["largest_relative_difference"] < 1e-4
    assert source["without_onnx"] == "it is not exported in this test" and not (artifact.path / "model.onnx").exists()
    assert "was trained on 10 sweeps together" in source["remarks"][0]
    json.dumps(source)


def test_the_registry_serves_imported_models_and_they_predict(registry, frame):
    artifacts = Registry(registry).serving(app)
    predictor = DrivingPredictor.load(artifacts, "cpu")
    assert predictor.choose_model(frame) == "mmdet3d_lidar"
    for model in ("mmdet3d_lidar", "mmdet3d_camera"):
        (found,) = predictor.predict([frame], Options(model=model, score=0.05))
        assert found.model == model and len(found.boxes) > 0
        assert np.isfinite(found.boxes.array).all() and (found.boxes.scores >= 0.05).all()
    assert set(found.boxes.names) <= {"pedestrian", "cyclist", "car"}
    assert (found.boxes.centre_lidar_m[:, 0] > 0).all()  # what a camera sees lies ahead of it
    few = predictor.predict([frame], Options(model="mmdet3d_camera"))[0].boxes
    assert len(few) <= len(found.boxes) and (few.scores >= 0.3).all()


def test_imported_models_come_before_shipped_ones_for_what_each_sees(registry, frame):
    """A server has two registries: the user's own and the one that the application ships."""
    served = Registry(registry, app.weights).serving(app)
    assert [artifact.manifest.name for artifact in served] == [
        *("mmdet3d_lidar", "mmdet3d_camera", "pointpillars", "fcos3d", SECOND_STAGE)
    ]
    predictor = DrivingPredictor.load(served, "cpu")
    assert predictor.choose_model(frame) == "mmdet3d_lidar"
    assert predictor.choose_model(replace(frame, points_lidar_m=None)) == "mmdet3d_camera"
    assert predictor.choose_model(frame, "pointpillars") == "pointpillars"


def test_a_sweep_is_looked_at_where_the_imported_model_is_a_cameras(registry, frame, tmp_path):
    shutil.copytree(registry / "mmdet3d_camera", tmp_path / "mmdet3d_camera")
    predictor = DrivingPredictor.load(Registry(tmp_path, app.weights).serving(app), "cpu")
    assert predictor.choose_model(frame) == "pointpillars"
    assert predictor.choose_model(replace(frame, points_lidar_m=None)) == "mmdet3d_camera"


def test_a_server_answers_by_the_imported_model_unless_another_is_asked_for(registry, frame, tmp_path):
    sweep = [("files", ("a.bin", frame.points_lidar_m.tobytes()))]
    server = create_app(Settings(store=tmp_path / "store", registry=registry, warm=False, workers=0), {"driving": app})
    with TestClient(server) as client:
        for options, model in (({}, "mmdet3d_lidar"), ({"model": "pointpillars"}, "pointpillars")):
            response = client.post("/api/driving/predict", files=sweep, data=options)
            assert response.status_code == 200, response.text
            assert response.json()["result"]["frames"][0]["model"] == model


def test_an_imported_model_that_is_not_loaded_is_named_so(registry, frame):
    predictor = DrivingPredictor.load([open_artifact(registry / "mmdet3d_lidar" / "1")], "cpu")
    with pytest.raises(InvalidInputError, match="mmdet3d_camera is not loaded; loaded: mmdet3d_lidar"):
        predictor.predict([frame], Options(model="mmdet3d_camera"))


def test_the_form_offers_what_is_loaded_and_says_where_a_camera_model_is_missing(registry, tmp_path):
    def form(folder):
        server = create_app(Settings(store=tmp_path / "store", registry=folder, warm=False), {"driving": app})
        with TestClient(server) as client:
            return client.get("/driving").text

    assert 'value="mmdet3d_camera"' in form(registry) and 'id="camera-note"' not in form(registry)
    without = form(None)
    assert 'value="mmdet3d_' not in without and "trivium import driving" in without
    assert "(camera, a demonstration)" in without
    shutil.copytree(app.weights / "fcos3d" / "1", tmp_path / "own" / "fcos3d" / "1")
    manifest = open_artifact(tmp_path / "own" / "fcos3d" / "1").manifest
    write_manifest(tmp_path / "own" / "fcos3d" / "1", replace(manifest, data={"description": "a", "synthetic": False}))
    own = form(tmp_path / "own")
    assert 'id="camera-note"' not in own and "a demonstration" not in own


def test_an_imported_pointpillars_is_read_back_for_calibration():
    settings = to_mapping(replace(RECIPES["full"](), model=MMDet3DModel(config=KITTI)))
    document = {"app": "driving", "name": "mmdet3d", "recipe": {name: settings[name] for name in ("model", "input")}}
    data = app.data_sets()["synthetic"]()
    recipe = recipe_of(app, document, data)
    assert recipe.model == MMDet3DModel(config=KITTI) and recipe.data is data
    assert recipe.input == RECIPES["full"]().input


@pytest.mark.realdata
@pytest.mark.parametrize(("model", "data"), [("mmdet3d_lidar", "nuscenes"), ("mmdet3d_camera", "kitti")])
def test_an_imported_model_is_calibrated_on_labelled_frames(registry, tmp_path, data_root, capsys, model, data):
    source = data_root / "driving" / {"nuscenes": "nuscenes_sample", "kitti": "kitti_object"}[data]
    root = tmp_path / "data"
    shutil.copytree(source, root)
    if data == "nuscenes":
        (root / "scenes.txt").write_text("n015-2018-07-24-11-22-45+0800\n")
        scenes = ["--data.validation-scenes", str(root / "scenes.txt")]
    else:
        scenes = []
    artifact = str(registry / model / "1")
    words = ["calibrate", "driving", "--artifact", artifact, "--data", data, "--data.root", str(root), *scenes]
    assert main([*words, "--registry", str(tmp_path / "models")]) == 0
    printed = capsys.readouterr().out
    assert "unchanged: " in printed and "least_scores" in printed and "scenes: - -> 1" in printed
    before, after = open_artifact(registry / model / "1"), open_artifact(tmp_path / "models" / model / "2")
    assert set(before.manifest.calibration["least_scores"].values()) == {0.3}
    least, absent = (after.manifest.calibration[key] for key in ("least_scores", "classes_without_objects"))
    assert least.keys() == before.manifest.calibration["least_scores"].keys()
    assert all(least[name] == 0.3 for name in absent) and len(absent) < len(least)
    assert after.manifest.training["calibrated_on"]["synthetic"] is False


def test_the_dense_network_of_an_imported_pointpillars_is_that_of_its_detector():
    model = MMDet3DModel(config=KITTI)
    detector = model.build().eval()
    recipe = replace(RECIPES["full"](), model=model, input=model.input())
    network = app.dense(recipe, detector)
    assert network.inputs["pseudo_image"].shape == (2, 64, 496, 432)
    small = network.inputs["pseudo_image"][:1, :, :32, :32]
    with torch.inference_mode():
        found = network.module(small)
        expected = detector.bbox_head(detector.neck(detector.backbone(small)))
    for output, expected_output in zip(found, expected, strict=True):
        torch.testing.assert_close(output, expected_output[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(NotImplementedError, match="is not exported"):
        app.dense(replace(recipe, model=MMDet3DModel(config=SMOKE)), MMDet3DModel(config=SMOKE).build())


def test_an_imported_pointpillars_is_served_by_a_program_that_finds_what_torch_finds(pointpillars):
    imported, artifact = pointpillars
    assert artifact.manifest.programs.keys() == {"onnx"} and "without_onnx" not in artifact.manifest.source
    sweep = random_sweep(imported.recipe.input)
    with torch.inference_mode():
        expected = network_of(imported.recipe.model, imported.network).predict(sweep)
        for name in ("torch", "onnx", "openvino"):
            with use_program(name):
                predictor = DrivingPredictor.load([artifact], "cpu")
            assert programs_of(predictor)["mmdet3d_lidar"].name == name
            found = predictor.detectors["mmdet3d_lidar"].network.predict(sweep)
            assert len(found[0]) == len(expected[0]) > 0
            for output, expected_output in zip(found, expected, strict=True):
                torch.testing.assert_close(output, expected_output, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("config", [KITTI, "pointpillars_dv_secfpn_8xb6-160e_kitti-3d-car"])
def test_a_network_on_a_gpu_finds_what_it_finds_on_the_cpu(config):
    """On the fake GPU, which refuses to mix devices."""
    torch.manual_seed(1)
    model = MMDet3DModel(config=config)
    detector, sweep = model.build().eval(), random_sweep(model.input())
    detector.bbox_head.conv_cls.bias.data += 2.6
    with torch.no_grad():
        expected = network_of(model, detector).predict(sweep)
        with fake_cuda() as device:
            found = network_of(model, detector.to("cuda")).predict(sweep.to("cuda"))
            assert all(part.device == device for part in found)
            found = [part.cpu() for part in found]
    assert len(found[0]) == len(expected[0]) > 0
    assert all(
        torch.allclose(output, expected_output, atol=1e-4)
        for output, expected_output in zip(found, expected, strict=True)
    )


def test_an_imported_pointpillars_has_a_second_stage_of_its_own(
    registry, pointpillars, frame, tmp_path, monkeypatch, capsys
):
    path = pointpillars[1].path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Boxes found with random weights touch an object at most.
    monkeypatch.setattr("apps.driving.datasets.found_boxes.MIN_MATCH_IOU", 0.0)
    words = ["train", "driving", "--recipe", "second_stage", "--data.scenes", "6", "--data.validation-scenes", "1"]
    words += ["--limits.epochs", "1", "--model.widths", "8", "--out", str(tmp_path / "run")]
    assert main([*words, "--input.detector", str(path)]) == 0
    assert main(["export", str(tmp_path / "run"), "--registry", str(tmp_path / "own")]) == 0
    artifacts = [open_artifact(path), open_artifact(tmp_path / "own" / SECOND_STAGE / "1")]
    alone, both = (DrivingPredictor.load(chosen, "cpu") for chosen in (artifacts[:1], artifacts))
    ahead = replace(frame, points_lidar_m=frame.points_lidar_m[frame.points_lidar_m[:, 0] > 0], cameras={})
    without_stage, with_stage = (predictor.detect(ahead) for predictor in (alone, both))
    assert 0 < len(with_stage) <= len(without_stage) and np.isfinite(with_stage.array).all()
    assert both.second_stages == {"mmdet3d_lidar": SECOND_STAGE} and sorted(without_stage.scores) != sorted(
        with_stage.scores
    )
    capsys.readouterr()
    several = registry / "mmdet3d_lidar" / "1"
    assert main([*words[:-1], str(tmp_path / "other"), "--input.detector", str(several)]) == 2
    assert "trained on 10 sweeps together; a second stage gets only one" in capsys.readouterr().err
