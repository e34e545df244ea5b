"""An FCOS3D with a user-defined configuration is trained further, exported and served."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from apps.driving.adapters.projection import to_lidar_boxes
from apps.driving.inference.detect import CameraDetector
from apps.driving.models import structures
from apps.driving.models.dense import dense
from apps.driving.models.imports import IMPORTERS
from apps.driving.predictor import DrivingPredictor, Options
from apps.driving.recipes import RECIPES
from apps.driving.types import Frame
from shared.cli.main import main
from shared.deploy.artifact import Manifest, open_artifact
from shared.deploy.writing import write_artifact
from shared.errors import InvalidInputError
from shared.recipe_file import save_recipe
from tests.apps.driving.own_camera_checkpoints import RAISED, mmdet3d_test, own_camera_config
from tests.apps.driving.own_checkpoints import CLASSES, own_config, save, trained
from tests.apps.driving.test_own_camera import photograph

NAMES = tuple(name.lower() for name in CLASSES)


pytestmark = pytest.mark.usefixtures("empty_cache")


def config(**head):
    """FCOS3D with ResNet-18 and four classes, at the published strides; its test sees images as they are."""
    found = own_camera_config("fcos3d")
    found.model.neck.update(start_level=1, num_outs=5, add_extra_convs="on_output")
    ends = (-1, 48, 96, 192, 384, 100000000)
    ranges = tuple(itertools.pairwise(ends))
    found.model.bbox_head.update(strides=[8, 16, 32, 64, 128], regress_ranges=ranges, **head)
    del found.test_dataloader.dataset.pipeline[1]
    return found


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """mmdet3d's detector, and the folder of the artifact imported from it."""
    folder = tmp_path_factory.mktemp("registry")
    own = config()
    detector = trained(own, raised=RAISED["fcos3d"])
    file = save(folder / "epoch_80.pth", detector, own.pretty_text)
    assert main(["import", "driving", str(file), "--registry", str(folder)]) == 0
    return detector, folder / "mmdet3d_camera" / "1"


def test_training_starts_from_the_imported_network(imported, tmp_path):
    """On images in red, green, blue, as recipes have them, what mmdet3d's test finds in the image's file."""
    detector, artifact = imported
    recipe = IMPORTERS["mmdet3d"].fine_tuned(RECIPES["fcos3d_full"](), open_artifact(artifact).recipe()["recipe"])
    assert recipe.input.focal_px == pytest.approx(721.54)
    assert tuple(kind.name for kind in recipe.input.classes) == NAMES
    network = recipe.model.build(recipe.input).eval()
    network.load_state_dict(detector.state_dict())
    camera = photograph()
    # The file's own steps of a test are written out there with a resize, so that both see half of the size.
    boxes, scores, labels = mmdet3d_test("fcos3d", detector, camera, tmp_path)
    with torch.inference_mode():
        half = structures.camera_data([_half(camera)], torch.from_numpy(camera.intrinsics[None]), scales=[(0.5, 0.5)])
        found, found_scores, found_labels = structures.predict(network, half)[0]
    assert len(found) == len(boxes) > 0 and torch.equal(found_labels, labels)
    assert torch.allclose(found_scores, scores, atol=1e-4)
    assert torch.allclose(found[:, :6], boxes[:, :6], atol=1e-2, rtol=1e-3)


def test_the_focal_length_given_on_import_is_used_in_training(imported, tmp_path):
    file = imported[1].parents[1] / "epoch_80.pth"
    assert main(["import", "driving", str(file), "--registry", str(tmp_path), "--option", "focal=633"]) == 0
    settings = open_artifact(tmp_path / "mmdet3d_camera" / "1").recipe()["recipe"]
    assert IMPORTERS["mmdet3d"].fine_tuned(RECIPES["fcos3d_full"](), settings).input.focal_px == 633


@pytest.mark.parametrize("focal", ["0", "inf", "nan", "far"])
def test_an_invalid_focal_length_is_refused(imported, focal, tmp_path, capsys):
    file = imported[1].parents[1] / "epoch_80.pth"
    assert main(["import", "driving", str(file), "--registry", str(tmp_path), "--option", f"focal={focal}"]) == 2
    assert f"--option focal={focal}; expected pixels, such as 633" in capsys.readouterr().err


def test_a_focal_length_for_a_lidar_network_is_refused(tmp_path, capsys):
    own = own_config()
    file = save(tmp_path / "a.pth", trained(own), own.pretty_text)
    assert main(["import", "driving", str(file), "--registry", str(tmp_path), "--option", "focal=633"]) == 2
    assert "focal is only for camera networks in your own configurations" in capsys.readouterr().err


def _half(camera):
    import cv2

    image = cv2.resize(camera.image_HWC, (480, 300))
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def test_it_is_trained_further_exported_as_onnx_and_finds_its_classes(imported, tmp_path, capsys):
    _, artifact = imported
    words = ["train", "driving", "--recipe", "fcos3d_tiny", "--init", str(artifact), "--out", str(tmp_path / "run")]
    assert main([*words, "--limits.epochs", "1", "--data.scenes", "2", "--data.validation-scenes", "1"]) == 0
    assert "209 of 209 tensors start from these weights" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run"), "--registry", str(tmp_path / "registry")]) == 0
    exported = open_artifact(tmp_path / "registry" / "fcos3d" / "1")
    assert (exported.path / "model.onnx").is_file()
    predictor = DrivingPredictor.load([exported], "cpu")
    detector = predictor.detectors["fcos3d"]
    assert isinstance(detector, CameraDetector) and detector.colours.is_bgr
    (found,) = predictor.predict(
        [Frame(name="a", points_lidar_m=None, cameras={"front": photograph()})], Options(score=0.0)
    )
    assert len(found.boxes) > 0 and set(found.boxes.names) <= set(NAMES)


@pytest.mark.parametrize("offset", [None, 0.0, 0.7854])
def test_headings_are_decoded_with_the_direction_offset_of_the_networks_head(imported, tmp_path, offset):
    detector, artifact = imported
    settings = open_artifact(artifact).recipe()["recipe"]
    head = settings["model"]["own_camera"]["model"]["bbox_head"]
    del head["dir_offset"]
    if offset is not None:
        head["dir_offset"] = offset
    recipe = IMPORTERS["mmdet3d"].fine_tuned(RECIPES["fcos3d_full"](), settings)
    camera = photograph()
    recipe = replace(recipe, input=replace(recipe.input, focal_px=float(camera.intrinsics[0, 0])))
    network = recipe.model.build(recipe.input).eval()
    network.load_state_dict(detector.state_dict())
    manifest = Manifest(name="fcos3d", version=0, app="driving", inputs=(), outputs=(), scores={}, data={})
    save_recipe(tmp_path / "recipe.yaml", recipe, app="driving", name="fcos3d_full")
    text = (tmp_path / "recipe.yaml").read_text()
    exported = write_artifact(tmp_path, manifest, weights=network.state_dict(), recipe=text, dense=None)
    found = (
        DrivingPredictor.load([exported], "cpu")
        .detectors["fcos3d"]
        .detect(Frame(name="a", points_lidar_m=None, cameras={"front": camera}))
    )
    image = torch.from_numpy(camera.image_HWC.copy()).permute(2, 0, 1)
    data = structures.camera_data([image], torch.from_numpy(camera.intrinsics[None]))
    with torch.inference_mode():
        boxes, _, _ = structures.predict(network, data)[0]
    expected = to_lidar_boxes(boxes.numpy(), camera.lidar_to_camera)
    assert len(found) > 0
    nearest = expected[[np.abs(expected[:, :6] - box[:6]).max(1).argmin() for box in found.array]]
    assert found.array[:, :6] == pytest.approx(nearest[:, :6], abs=1e-2)
    assert np.cos(found.yaw - nearest[:, 6]) == pytest.approx(np.ones(len(found)), abs=1e-3)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"pred_velo": True, "group_reg_dims": (2, 1, 3, 1, 2)}, "pred_velo is True, not False"),
        ({"pred_attrs": True}, "pred_attrs is True, not False"),
        ({"use_direction_classifier": False}, "use_direction_classifier is False, not True"),
    ],
)
def test_velocities_and_attributes_are_refused_for_further_training(imported, head, message):
    settings = open_artifact(imported[1]).recipe()["recipe"]
    own = settings["model"]["own_camera"]["model"]
    changed = own | {"bbox_head": own["bbox_head"] | head}
    camera = settings["model"]["own_camera"] | {"model": changed}
    settings = settings | {"model": settings["model"] | {"own_camera": camera}}
    with pytest.raises(InvalidInputError, match=f"without velocities and attributes, .*{message}.*Train it in mmdet3d"):
        IMPORTERS["mmdet3d"].fine_tuned(RECIPES["fcos3d_full"](), settings)


def test_a_network_without_colour_normalisation_is_refused(imported):
    settings = open_artifact(imported[1]).recipe()["recipe"]
    colours = {"type": "Det3DDataPreprocessor", "pad_size_divisor": 32}
    settings["model"]["own_camera"]["model"]["data_preprocessor"] = colours
    with pytest.raises(InvalidInputError, match=r"colours in data_preprocessor\.mean is 0, not 3"):
        IMPORTERS["mmdet3d"].fine_tuned(RECIPES["fcos3d_full"](), settings)


def test_a_mean_colour_that_is_not_a_number_is_refused(imported):
    settings = open_artifact(imported[1]).recipe()["recipe"]
    settings["model"]["own_camera"]["model"]["data_preprocessor"]["mean"] = [103.5, "116", 123.7]
    recipe = IMPORTERS["mmdet3d"].fine_tuned(RECIPES["fcos3d_full"](), settings)
    with pytest.raises(
        InvalidInputError, match=r"mean is \[103\.5, '116', 123\.7\]; expected 3 numbers in grey levels"
    ):
        _ = recipe.model.colours


def test_an_fcos3d_with_deformable_convolution_is_computed_by_torch(imported, tmp_path, monkeypatch):
    settings = open_artifact(imported[1]).recipe()["recipe"]
    settings["model"]["own_camera"]["model"]["bbox_head"]["dcn_on_last_conv"] = True
    recipe = IMPORTERS["mmdet3d"].fine_tuned(RECIPES["fcos3d_full"](), settings)
    network = recipe.model.build(recipe.input)
    with pytest.raises(NotImplementedError, match="deformable convolution"):
        dense(recipe, network)
    manifest = Manifest(name="fcos3d", version=0, app="driving", inputs=(), outputs=(), scores={}, data={})
    save_recipe(tmp_path / "recipe.yaml", recipe, app="driving", name="fcos3d_full")
    text = (tmp_path / "recipe.yaml").read_text()
    artifact = write_artifact(tmp_path, manifest, weights=network.state_dict(), recipe=text, dense=None)
    monkeypatch.delenv("TRIVIUM_PROGRAM")
    monkeypatch.setattr(torch.onnx, "export", None)
    program = DrivingPredictor.load([artifact], "cpu").detectors["fcos3d"].program
    assert program.name.startswith("torch") and program.remarks == ()


def test_a_lidar_recipe_is_refused_for_a_camera_network(imported):
    with pytest.raises(
        InvalidInputError, match="is a camera network; train it with a camera recipe: --recipe fcos3d_full"
    ):
        IMPORTERS["mmdet3d"].fine_tuned(RECIPES["full"](), open_artifact(imported[1]).recipe()["recipe"])
