"""A checkpoint with a user's own configuration: imported by the text in it, it computes what mmdet3d computes."""

import json

import numpy as np
import pytest
import torch

from apps.driving.models import structures
from apps.driving.models.configurations import MMDet3DModel
from apps.driving.models.detectors import point_layout
from apps.driving.models.imports import IMPORTERS
from apps.driving.models.parity import random_sweep
from apps.driving.predictor import DrivingPredictor
from apps.driving.recipes import RECIPES
from apps.driving.types import Frame
from shared.cli.main import main
from shared.deploy.artifact import open_artifact
from shared.errors import InvalidInputError
from tests.apps.driving.own_checkpoints import CLASSES, RANGE, SIZES, own_config, save, shipped, trained

NAMES = tuple(name.lower() for name in CLASSES)


pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(scope="module")
def detector():
    return trained(own_config())


@pytest.fixture(scope="module")
def checkpoint(detector, tmp_path_factory):
    return save(tmp_path_factory.mktemp("run") / "epoch_80.pth", detector, own_config().pretty_text)


@pytest.fixture(scope="module")
def artifact(checkpoint, tmp_path_factory):
    registry = tmp_path_factory.mktemp("registry")
    assert main(["import", "driving", "mmdet3d", str(checkpoint), "--registry", str(registry)]) == 0
    return open_artifact(registry / "mmdet3d_lidar" / "1")


@pytest.fixture
def data(tmp_path):
    """Five labelled sweeps of random points with a car in each, in the layout of custom data sets."""
    for folder in ("points", "labels"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    for number in range(5):
        points = random_points(number)
        points.tofile(tmp_path / "own" / "points" / f"{number}.bin")
        (tmp_path / "own" / "labels" / f"{number}.txt").write_text("15 2 -0.9 4.2 1.8 1.6 0.1 Car\n")
    return tmp_path / "own"


def random_points(seed):
    low, high = [*RANGE[:3], 0], [*RANGE[3:], 1]
    return np.random.default_rng(seed).uniform(low, high, (8000, 4)).astype(np.float32)


def importing(path, *options):
    return IMPORTERS["mmdet3d"].load([*options, str(path)], None)


def test_the_artifact_finds_what_mmdet3d_finds_in_the_same_points(artifact, detector):
    points = random_points(0)
    with torch.inference_mode():
        ((boxes, scores, labels),) = structures.predict(detector, structures.lidar_data([torch.from_numpy(points)]))
    predictor = DrivingPredictor.load([artifact], "cpu")
    found = predictor.detect(Frame(name="a", points_lidar_m=points, cameras={}))
    order = torch.argsort(scores, descending=True, stable=True)
    assert len(found) == len(scores) > 0
    assert found.scores == pytest.approx(scores[order].numpy(), abs=1e-4)
    assert found.array[:, :6] == pytest.approx(boxes[order, :6].numpy(), abs=1e-2)
    assert list(found.names) == [NAMES[label] for label in labels[order]]


def test_what_was_read_and_what_was_assumed_is_in_the_manifest(artifact):
    source = artifact.manifest.source
    assert source["configuration"] == "epoch_80.pth" and source["ignored_weights"] == []
    assert source["parity"]["largest_relative_difference"] < 1e-4 and source["parity"]["boxes"]["fast_path"] > 0
    assert "car, truck, forklift, person" in source["read"][0] and "128 by 128 pillars" in source["read"][1]
    assert any("x forward" in assumption for assumption in source["assumed"])
    assert any("intensities were 0 to 1" in assumption for assumption in source["assumed"])
    json.dumps(source)


def test_the_recipe_holds_all_that_the_network_is_built_of(artifact, detector):
    settings = artifact.recipe()["recipe"]
    recipe = IMPORTERS["mmdet3d"].recipe(settings)
    own = recipe.model.build(recipe.input).state_dict()
    assert own.keys() == detector.state_dict().keys()
    assert recipe.input.range_m == tuple(RANGE)
    assert [(kind.name, list(kind.size_m)) for kind in recipe.input.classes] == list(zip(NAMES, SIZES, strict=True))
    assert {kind.bottom_m for kind in recipe.input.classes} == {-1.7}
    assert "train_cfg" not in settings["model"]["own"]["model"]


def test_it_predicts_is_scored_and_calibrated_from_the_command_line(artifact, data, tmp_path, capsys):
    path, root = str(artifact.path), ["--data", "custom", "--data.root", str(data)]
    assert main(["predict", "driving", str(data), "--artifact", path, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["frames"][0]["model"] == "mmdet3d_lidar"
    assert {box["name"] for frame in result["frames"] for box in frame["boxes"]} <= set(NAMES)
    capsys.readouterr()
    assert main(["evaluate", "driving", "--artifact", path, *root]) == 0
    assert "1 frames" in capsys.readouterr().out
    assert main(["calibrate", "driving", "--artifact", path, *root, "--registry", str(tmp_path / "models")]) == 0
    least = open_artifact(tmp_path / "models" / "mmdet3d_lidar" / "2").manifest.calibration["least_scores"]
    assert least.keys() == set(NAMES)


def test_training_continues_with_the_same_network(artifact, data, tmp_path, capsys):
    words = ["train", "driving", "--recipe", "full", "--init", str(artifact.path), "--data", "custom"]
    words += ["--data.root", str(data), "--data.classes", *NAMES[:1], "--limits.epochs", "1", "--limits.steps", "1"]
    assert main([*words, "--limits.batch", "2", "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "this run keeps car; drops truck, forklift, person" in captured.out + captured.err
    assert main(["evaluate", "driving", "--run", str(tmp_path / "run")]) == 0


def test_settings_of_the_network_are_refused_in_further_training(artifact, data, tmp_path, capsys):
    words = ["train", "driving", "--recipe", "full", "--init", str(artifact.path), "--data", "custom"]
    words += ["--data.root", str(data), "--out", str(tmp_path / "run")]
    assert main([*words, "--input.range-m", "0", "-40", "-3", "80", "40", "1", "--model.neck", "64"]) == 2
    assert f"the network in {artifact.path} has its own --model.neck, --input.range-m" in capsys.readouterr().err
    assert main([*words, "--input.no-intensity"]) == 2
    assert "its own --input.intensity, which no setting changes; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_network_that_recipes_do_not_build_is_not_trained_further(tmp_path):
    config = own_config()
    config.model.backbone.layer_strides = [1, 2, 2]
    imported = importing(save(tmp_path / "a.pth", trained(config), config.pretty_text))
    from shared.recipe_file import to_mapping

    settings = to_mapping(imported.recipe)
    with pytest.raises(
        InvalidInputError, match=r"backbone\.layer_strides is \[1, 2, 2\], not \[2, 2, 2\]\. Train it in"
    ):
        IMPORTERS["mmdet3d"].fine_tuned(RECIPES["full"](), settings)
    with pytest.raises(InvalidInputError, match="--recipe full"):
        IMPORTERS["mmdet3d"].fine_tuned(RECIPES["fcos3d_full"](), settings)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({}, "x forward, y left, 11 sweeps together, intensities up to 255, and recipes"),
        ({"type": "MVXFasterRCNN"}, "network model.type is MVXFasterRCNN, not VoxelNet or DynamicVoxelNet"),
    ],
)
def test_the_refusal_of_further_training_says_what_differs_and_where_to_train(artifact, model, reason):
    settings = artifact.recipe()["recipe"]
    own = settings["model"]["own"]
    own["model"] = own["model"] | model
    own |= {"intensity": 255.0, "quarter_turn": 1, "earlier_sweeps": 10}
    with pytest.raises(InvalidInputError, match=rf"{reason}.*\. Train it in mmdet3d, and import the result"):
        IMPORTERS["mmdet3d"].fine_tuned(RECIPES["full"](), settings)


@pytest.mark.parametrize(
    "config",
    [
        "ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d",
        "pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d",
        "smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d",
    ],
)
def test_a_shipped_network_that_recipes_do_not_build_is_not_trained_further(config):
    for recipe in ("full", "fcos3d_full"):
        with pytest.raises(InvalidInputError, match=rf"{config} \((SSN|PGD|SMOKE), .* Train it in mmdet3d, and import"):
            IMPORTERS["mmdet3d"].fine_tuned(RECIPES[recipe](), {"model": {"config": config}})


@pytest.mark.parametrize(
    ("config", "recipe", "refused", "reason"),
    [
        ("pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class", "full", "fcos3d_full", "LiDAR network.*--recipe full"),
        ("fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d", "fcos3d_full", "full", "camera.*--recipe fcos3d_full"),
    ],
)
def test_a_shipped_network_is_trained_further_by_a_recipe_of_its_sensor(config, recipe, refused, reason):
    settings = {"model": {"config": config}}
    assert IMPORTERS["mmdet3d"].fine_tuned(RECIPES[recipe](), settings) == RECIPES[recipe]()
    with pytest.raises(InvalidInputError, match=reason):
        IMPORTERS["mmdet3d"].fine_tuned(RECIPES[refused](), settings)


def test_the_configuration_may_be_the_file_in_work_dirs(detector, tmp_path):
    path = save(tmp_path / "a.pth", detector, "", classes=None)
    (tmp_path / "forklift.py").write_text(own_config().pretty_text)
    imported = importing(path, str(tmp_path / "forklift.py"))
    assert imported.source["configuration"] == "forklift.py"
    assert [kind.name for kind in imported.recipe.input.classes] == list(NAMES)
    with pytest.raises(InvalidInputError, match=r"a\.pth does not assign model"):
        importing(path)
    torch.save({"state_dict": detector.state_dict()}, tmp_path / "b.pth")
    with pytest.raises(
        InvalidInputError, match=r"b\.pth contains no configuration .* trivium import driving CONFIG b\.pth"
    ):
        importing(tmp_path / "b.pth")
    with pytest.raises(InvalidInputError, match="give the checkpoint's file"):
        importing("pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class")


@pytest.mark.parametrize(
    "name",
    [
        "pointpillars_dv_secfpn_8xb6-160e_kitti-3d-car",
        "pointpillars_hv_regnet-400mf_secfpn_sbn-all_8xb4-2x_nus-3d",
        "ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d",
        "centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d",
    ],
)
def test_a_shipped_configuration_reads_from_its_dump_as_by_its_name(name, tmp_path):
    by_name = MMDet3DModel(config=name)
    path = save(tmp_path / "a.pth", by_name.build(), shipped(name).pretty_text, classes=None)
    imported = importing(path)
    model, input = imported.recipe.model, imported.recipe.input
    assert imported.source["parity"]["largest_relative_difference"] < 1e-4
    assert input.range_m == by_name.input().range_m and point_layout(model) == point_layout(by_name)
    assert [kind.name for kind in input.classes] == [kind.name for kind in by_name.input().classes]


def test_an_encoder_left_at_another_grid_computes_as_mmdet3d_does(tmp_path):
    """mmdet3d's configuration states the range twice, and training runs if only one of the two was changed."""
    config = own_config()
    config.model.voxel_encoder.point_cloud_range = [0, -39.68, -3, 69.12, 39.68, 1]
    imported = importing(save(tmp_path / "a.pth", trained(config), config.pretty_text))
    assert imported.source["parity"]["largest_relative_difference"] < 1e-4


def test_intensities_up_to_255_are_recognised_by_the_encoders_running_mean(tmp_path):
    """Its first layer gets intensities of 0 to 255 in training, as from a file that was not scaled."""
    config = own_config()
    detector = trained(config).train()
    detector.voxel_encoder.pfn_layers[0].norm.momentum = 0.5  # as after more steps
    with torch.no_grad():
        for seed in range(5):
            points = torch.from_numpy(random_points(seed)) * torch.tensor([1, 1, 1, 255.0])
            data = detector.data_preprocessor(structures.lidar_data([points]), training=True)
            detector.extract_feat(data["inputs"])
    imported = importing(save(tmp_path / "a.pth", detector.eval(), config.pretty_text))
    assert imported.recipe.model.own.intensity == 255
    assert any("intensities were 0 to 255" in assumption for assumption in imported.source["assumed"])
    points = random_sweep(imported.recipe.input)
    layout = point_layout(imported.recipe.model)
    assert torch.equal(layout.to_network(points)[:, 3], points[:, 3] * 255)


@pytest.mark.parametrize(
    ("axes", "turned"),
    [
        ("x-forward-y-left", lambda x, y: (x, y)),
        ("x-right-y-forward", lambda x, y: (-y, x)),
        ("x-backward-y-right", lambda x, y: (-x, -y)),
        ("x-left-y-backward", lambda x, y: (y, -x)),
    ],
)
def test_axes_and_intensity_options_are_kept_in_the_artifact(checkpoint, detector, tmp_path, axes, turned):
    """Boxes that mmdet3d finds in points in its own axes equal ours, rotated back."""
    words = ["import", "driving", str(checkpoint), "--registry", str(tmp_path)]
    assert main([*words, "--option", f"axes={axes}", "intensity=255"]) == 0
    artifact = open_artifact(tmp_path / "mmdet3d_lidar" / "1")
    source = artifact.manifest.source
    assert (
        f"axes, from the option: {axes}" in source["read"] and "intensity, from the option: 0 to 255" in source["read"]
    )
    assert source["assumed"] == []
    theirs = random_points(0)
    with torch.inference_mode():
        points = torch.from_numpy(theirs * np.float32([1, 1, 1, 255]))
        ((boxes, scores, _),) = structures.predict(detector, structures.lidar_data([points]))
    predictor = DrivingPredictor.load([artifact], "cpu")
    low, high = np.array(predictor.detectors["mmdet3d_lidar"].input.range_m).reshape(2, 3)
    ours = theirs.copy()
    ours[:, :2] = np.stack(turned(*turned(*turned(*theirs[:, :2].T))), axis=1)  # three more of quarters undo them
    assert ((ours[:, :3] >= low) & (ours[:, :3] <= high)).all()
    found = predictor.detect(Frame(name="a", points_lidar_m=ours, cameras={}))
    best = torch.argsort(scores, descending=True, stable=True)
    assert len(found) == len(scores) > 0 and found.scores == pytest.approx(scores[best].numpy(), abs=1e-4)
    centres = np.stack(turned(found.centre_lidar_m[:, 0], found.centre_lidar_m[:, 1]), axis=1)
    assert centres == pytest.approx(boxes[best, :2].numpy(), abs=1e-2)


def test_invalid_or_unneeded_options_are_refused(checkpoint, tmp_path, capsys):
    shipped_name = "pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class"
    for words, message in (
        ((str(checkpoint), "axes=forward"), "--option axes=forward; expected x-forward-y-left, x-right-y-forward"),
        ((str(checkpoint), "intensity=bright"), "--option intensity=bright; expected the maximum intensity"),
        ((str(checkpoint), "intensity=0"), "--option intensity=0; expected the maximum"),
        ((str(checkpoint), "yaw=1"), "mmdet3d has no option yaw; it has axes=x-forward-y-left|"),
        ((str(checkpoint), "axes"), "--option axes: write it as name=value"),
        ((shipped_name, str(checkpoint), "intensity=1"), "the shipped configuration pointpillars_hv_secfpn_8xb6"),
    ):
        *named, option = words
        command = ["import", "driving", *named, "--registry", str(tmp_path / "none"), "--option", option]
        assert main(command) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
