"""Importing checkpoints of MONAI's model zoo. The tests create the files with MONAI's builders and random weights."""

from __future__ import annotations

import contextlib
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
from monai.networks.blocks.backbone_fpn_utils import BackboneWithFPN
from monai.networks.nets.resnet import ResNet, resnet50

from apps.medical.app import app
from apps.medical.models.imports import load_monai_bundle, read_network
from apps.medical.predictor import ALL_FINDINGS, NodulePredictor, open_detector
from apps.medical.recipes import full
from apps.medical.types import ChestInput
from shared import cli
from shared.deploy.artifact import Artifact
from shared.deploy.programs.choosing import use_program
from shared.deploy.programs.program import relative_error
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from tests.apps.medical import data_folders
from tests.apps.medical.chests import chest

pytestmark = pytest.mark.filterwarnings("ignore")
COARSE = ChestInput(spacing_mm=(6.0, 6.0, 10.0), tile_size=(64, 64, 16))


def retinanet(pyramid: torch.nn.Module) -> torch.nn.Module:
    """As the bundle's ``configs/inference.json`` has it."""
    network = RetinaNet(3, num_classes=1, num_anchors=3, feature_extractor=pyramid, size_divisible=[16, 16, 8])
    # Spreads the scores, since those of an untrained network are below the threshold.
    torch.nn.init.normal_(network.classification_head.cls_logits.weight, std=0.3)
    return network


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A file with the keys, shapes and layout of ``models/model.pt`` of lung_nodule_ct_detection."""
    torch.manual_seed(11)
    backbone = resnet50(spatial_dims=3, n_input_channels=1, conv1_t_stride=[2, 2, 1], conv1_t_size=[7, 7, 7])
    file = tmp_path_factory.mktemp("bundle") / "model.pt"
    torch.save(retinanet(resnet_fpn_feature_extractor(backbone, 3, False, [1, 2], None)).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The same detector over a small ResNet, with a narrow pyramid."""
    torch.manual_seed(11)
    backbone = ResNet(
        "basic", [1, 2, 1, 1], [8, 16, 32, 64], n_input_channels=1, conv1_t_size=[3, 3, 3], conv1_t_stride=[2, 2, 1]
    )
    file = tmp_path_factory.mktemp("small") / "model.pt"
    pyramid = BackboneWithFPN(backbone, {"layer1": "0", "layer2": "1"}, [8, 16], 16, spatial_dims=3)
    torch.save(retinanet(pyramid).state_dict(), file)
    return file


def test_the_bundle_s_file_becomes_the_full_network_and_detects(bundle):
    imported = load_monai_bundle([str(bundle)])
    assert imported.recipe.model == full().model
    grid = imported.recipe.input
    assert grid.spacing_mm == (0.703125, 0.703125, 1.25) and grid.window_hu == (-1024.0, 300.0)
    assert grid.tile_size == (512, 512, 192)
    assert imported.source["largest_relative_difference"] < 1e-4
    assert imported.source["sha256"] and imported.source["file"] == "model.pt"
    stored, loaded = torch.load(bundle, weights_only=True), imported.network.network.state_dict()
    assert stored.keys() == loaded.keys() and all(torch.equal(value, loaded[name]) for name, value in stored.items())
    selector = imported.network.box_selector
    assert (selector.score_thresh, selector.nms_thresh, selector.detections_per_img) == (0.02, 0.22, 300)
    predictor = NodulePredictor(detector=imported.network, input=COARSE, operating_score=0.5)
    (findings,) = predictor.predict([chest()], ALL_FINDINGS)
    assert findings.lung_millilitres is not None and findings.lung_millilitres > 500
    assert findings.nodules and all(0.02 < nodule.score <= 1 for nodule in findings.nodules)


@pytest.mark.parametrize("wrapped", ["model", "state_dict", "network", "net"])
def test_wrappers_and_prefixes_of_training_scripts_are_removed(small, tmp_path, wrapped):
    """The best score is a NumPy scalar, as MONAI's metrics return it: torch refuses the file with ``weights_only``."""
    plain = read_network(small)
    content = {wrapped: {f"module.{name}": value for name, value in plain.items()}, "epoch": 3, "best": np.float64(0.5)}
    torch.save(content, tmp_path / "checkpoint.pt")
    found = read_network(tmp_path / "checkpoint.pt")
    assert found.keys() == plain.keys() and all(torch.equal(found[name], value) for name, value in plain.items())


@pytest.fixture(scope="module")
def imported(small, tmp_path_factory) -> tuple[Artifact, str]:
    """The artifact that the command makes of ``small``, and its output. Exporting ONNX takes torch a long time."""
    models, printed = tmp_path_factory.mktemp("models"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["import", "medical", "monai-bundle", str(small), "--registry", str(models)]) == 0
    return Registry(models).newest("lung_nodules"), printed.getvalue()


def test_the_command_creates_an_artifact_that_predicts(imported):
    artifact, printed = imported
    assert artifact.manifest.source["importer"] == "monai-bundle"
    assert artifact.manifest.calibration["operating_score"] == 0.5
    assert artifact.manifest.calibration["calibrated"] is False
    model = artifact.recipe()["recipe"]["model"]
    assert (model["block"], model["layers"][:2], model["planes"], model["stem"]) == ("basic", [1, 2], 8, 3)
    # A coarse grid, because the whole chest has many voxels on the bundle's.
    predictor = NodulePredictor(detector=open_detector(artifact), input=COARSE)
    assert predictor.predict([chest()], ALL_FINDINGS)[0].nodules
    assert "largest_relative_difference" in printed


@pytest.mark.realdata
def test_an_imported_model_is_calibrated_on_annotated_scans(imported, tmp_path, data_root, capsys):
    models, scans = tmp_path / "models", data_folders.luna16(tmp_path / "luna16", data_root / "medical")
    words = ["calibrate", "medical", "--artifact", str(imported[0].path), "--registry", str(models)]
    assert cli.main([*words, "--data", "luna16", "--data.root", str(scans)]) == 0
    assert "operating_score: 0.5 -> " in capsys.readouterr().out
    manifest = Registry(models).newest("lung_nodules").manifest
    assert manifest.version == 2 and manifest.training["calibrated_from"] == 1
    assert manifest.training["calibrated_on"]["synthetic"] is False and manifest.calibration["scans"] >= 1
    assert manifest.source["importer"] == "monai-bundle"


@pytest.mark.realdata
def test_the_shipped_detector_is_calibrated_together_with_its_second_stage(tmp_path, data_root):
    scans = data_folders.luna16(tmp_path / "luna16", data_root / "medical")
    words = ["calibrate", "medical", "--registry", str(tmp_path), "--data", "luna16", "--data.root", str(scans)]
    assert cli.main(words) == 0
    registry = Registry(tmp_path, app.weights)
    written = registry.newest("lung_nodule_candidates").manifest
    assert written.training["calibrated_on"]["synthetic"] is False and not (tmp_path / "lung_nodules").exists()
    served = NodulePredictor.load(registry.serving(app), "cpu")
    assert served.second_stage is not None
    assert served.operating_score == written.calibration["operating_score"]


def test_programs_of_an_imported_detector_give_torch_s_results(imported):
    artifact, tile = imported[0], {"image": torch.rand(1, 1, 64, 48, 16)}
    assert artifact.manifest.programs.keys() == {"onnx"} and "without_onnx" not in artifact.manifest.source
    found = {}
    for name in ("torch", "onnx", "openvino"):
        with use_program(name):
            program = NodulePredictor.load([artifact], "cpu").programs["lung_nodules"]
        assert program.name == name
        found[name] = program(tile)
    assert all(relative_error(found["torch"], found[name]) < 1e-3 for name in ("onnx", "openvino"))


class Strange:
    """A class that an unpickler would have to import."""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3}, "other.pt has no state dict"),
        ([1, 2], "other.pt has no state dict"),
        ({"model": Strange()}, "other.pt has no state dict"),
        ({"conv.weight": torch.zeros(3)}, "is not a RetinaNet of MONAI"),
    ],
)
def test_other_files_are_rejected_with_a_message(tmp_path, content, words):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InvalidInputError, match=words):
        load_monai_bundle([str(tmp_path / "other.pt")])


def test_a_truncated_or_missing_file_is_rejected(small, tmp_path):
    (tmp_path / "torn.pt").write_bytes(small.read_bytes()[:2000])
    with pytest.raises(InvalidInputError, match=r"torn\.pt cannot be read: it is truncated"):
        load_monai_bundle([str(tmp_path / "torn.pt")])
    with pytest.raises(InvalidInputError, match=r"does not exist; give the bundle's folder or its models/model\.pt"):
        load_monai_bundle([str(tmp_path / "nothing.pt")])


def test_the_folder_of_a_bundle_is_imported(small, tmp_path):
    folder = tmp_path / "lung_nodule_ct_detection"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text("{}")
    with pytest.raises(InvalidInputError, match=r"lung_nodule_ct_detection has no models/model\.pt; give the bundle's"):
        load_monai_bundle([str(folder)])
    (folder / "models").mkdir()
    shutil.copy(small, folder / "models")
    assert load_monai_bundle([str(folder)]).source["file"] == "model.pt"


def test_files_of_a_bundle_without_weights_are_rejected_with_what_they_are(small, tmp_path):
    """As downloaded: the archive of the model zoo, its configuration, and the TorchScript beside the weights."""
    (tmp_path / "inference.json").write_text('{"spatial_dims": 3}')
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.ts")
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        archive.write(small, "lung_nodule_ct_detection/models/model.pt")
    for name, words in (
        ("bundle.zip", "is the archive of a bundle; unpack it and give its folder"),
        ("inference.json", "cannot be read as a checkpoint that torch saved"),
        ("model.ts", "is a TorchScript program; use a checkpoint of weights"),
    ):
        with pytest.raises(InvalidInputError, match=rf"{name} {words}") as refusal:
            load_monai_bundle([str(tmp_path / name)])
        assert "weights_only" not in str(refusal.value)


def test_missing_unknown_and_misshapen_tensors_are_named(small, tmp_path):
    tensors = read_network(small)
    tensors["classification_head.cls_logits.bias"] = torch.zeros(7)
    tensors["more.weight"] = tensors.pop("regression_head.bbox_reg.bias")
    torch.save(tensors, tmp_path / "other.pt")
    with pytest.raises(InvalidInputError) as refusal:
        load_monai_bundle([str(tmp_path / "other.pt")])
    message = str(refusal.value)
    assert "lacks regression_head.bbox_reg.bias" in message and "has unknown more.weight" in message
    assert "cls_logits.bias (7,) instead of (3,)" in message
