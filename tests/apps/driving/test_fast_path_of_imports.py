"""Imports whose fast path differs from mmdet3d's own modules, and imports whose outputs are not finite."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from apps.driving.models.configurations import MMDet3DModel
from apps.driving.models.parity import is_equal, parity
from apps.driving.predictor import DrivingPredictor, Options
from apps.driving.types import Frame
from shared.cli.main import main
from shared.deploy.artifact import open_artifact
from tests.apps.driving.own_camera_checkpoints import own_camera_config
from tests.apps.driving.own_checkpoints import own_config, save, trained

pytestmark = pytest.mark.usefixtures("empty_cache")


def of_great_means(detector):
    """Batch normalisation subtracts a large mean and adds it back, which rounds the values in between. The folded layer
    does neither.
    """
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 3e5
            module.bias.data += 3e5 * module.weight.data / (module.running_var + module.eps).sqrt()
    return detector


@pytest.mark.parametrize("kind", ["pointpillars", "fcos3d"])
def test_mmdet3ds_own_modules_predict_if_the_fast_path_differs(kind, tmp_path, capsys):
    config = own_config() if kind == "pointpillars" else own_camera_config(kind)
    detector = of_great_means(trained(config))
    file = save(tmp_path / "a.pth", detector, config.pretty_text)
    assert main(["import", "driving", str(file), "--registry", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "ignored_weights: none\nremarks: mmdet3d's own modules compute it, more slowly" in output or kind == "fcos3d"
    assert "mmdet3d's own modules compute it, more slowly" in output and "its fast path differs from" in output
    name = "mmdet3d_lidar" if kind == "pointpillars" else "mmdet3d_camera"
    artifact = open_artifact(tmp_path / name / "1")
    assert artifact.manifest.source["parity"]["largest_relative_difference"] > 1e-3
    assert not (artifact.path / "model.onnx").exists()
    network = DrivingPredictor.load([artifact], "cpu").detectors[name].network
    batch_norms = [module for module in network.detector.modules() if isinstance(module, nn.BatchNorm2d)]
    assert type(network.detector) is type(detector) and len(batch_norms) > 0
    if kind == "pointpillars":
        points = np.random.default_rng(0).uniform([0, -20, -2, 0], [40, 20, 2, 1], (9000, 4)).astype(np.float32)
        (found,) = DrivingPredictor.load([artifact], "cpu").predict(
            [Frame(name="a", points_lidar_m=points, cameras={})], Options()
        )
        assert np.isfinite(found.boxes.array).all()


def test_weights_of_a_training_that_diverged_are_refused(tmp_path, capsys):
    config = own_config()
    detector = trained(config)
    detector.backbone.blocks[0][0].weight.data[0] = torch.nan
    file = save(tmp_path / "a.pth", detector, config.pretty_text)
    assert main(["import", "driving", str(file), "--registry", str(tmp_path)]) == 2
    stderr = capsys.readouterr().err
    assert "a.pth outputs values that are not finite" in stderr and "an earlier epoch" in stderr


def test_deformable_convolutions_with_nan_offsets_are_refused(tmp_path, capsys):
    config = own_camera_config("fcos3d")
    config.model.bbox_head.dcn_on_last_conv = True
    detector = trained(config)
    for value in detector.parameters():
        value.data.fill_(torch.nan)
    file = save(tmp_path / "a.pth", detector, config.pretty_text)
    assert main(["import", "driving", str(file), "--registry", str(tmp_path)]) == 2
    assert "a.pth outputs values that are not finite" in capsys.readouterr().err


@pytest.mark.parametrize("length", [0, -100])
def test_a_truncated_file_is_refused_with_one_sentence(length, tmp_path, capsys):
    file = save(tmp_path / "a.pth", nn.Linear(1000, 1000), "")
    file.write_bytes(file.read_bytes()[:length])
    assert main(["import", "driving", str(file), "--registry", str(tmp_path)]) == 2
    stderr = capsys.readouterr().err
    assert "a.pth cannot be read: it is truncated; copy or save it again" in stderr and len(stderr) < 200


@contextmanager
def convolved_sizes():
    """Collects the numbers of pixels of the maps that are convolved within the context."""
    sizes = set()

    def note(module, inputs):
        if isinstance(module, nn.Conv2d):
            sizes.add(inputs[0].shape[2] * inputs[0].shape[3])

    handle = register_module_forward_pre_hook(note)
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("config", "largest"),
    [
        ("pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class", 112 * 112),
        ("centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d", 128 * 128),
    ],
)
def test_large_grids_are_not_computed_for_the_comparison(config, largest):
    model = MMDet3DModel(config=config)
    network = model.build().eval()
    encoder = network.middle_encoder if hasattr(network, "middle_encoder") else network.pts_middle_encoder
    voxels, shape = network.data_preprocessor.voxel_layer, (encoder.ny, encoder.nx)
    full_range = list(voxels.point_cloud_range)
    with convolved_sizes() as sizes:
        result = parity(model, network)
    assert max(sizes) == largest and is_equal(result)
    assert (encoder.ny, encoder.nx) == shape and list(voxels.point_cloud_range) == full_range


def test_large_images_are_not_computed_for_the_comparison(tmp_path):
    config = own_camera_config("smoke")
    step = {"type": "AffineResize", "img_scale": (3840, 2160), "down_ratio": 4}
    config.test_dataloader.dataset.pipeline[1] = step
    file = save(tmp_path / "a.pth", trained(config), config.pretty_text)
    with convolved_sizes() as sizes:
        assert main(["import", "driving", str(file), "--registry", str(tmp_path)]) == 0
    assert 0 < max(sizes) <= 320 * 256
    model = open_artifact(tmp_path / "mmdet3d_camera" / "1").recipe()["recipe"]["model"]
    assert model["own_camera"]["affine"] == [3840, 2160, 4]
