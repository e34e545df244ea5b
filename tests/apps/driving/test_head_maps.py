"""The dense networks of imported LiDAR detectors: as ONNX on their own, and in the place of mmdet3d's layers."""

import onnxruntime
import pytest
import torch
from torch import nn

from apps.driving.app import app
from apps.driving.inference.artifacts import imported_detector
from apps.driving.inference.examples import example_canvas
from apps.driving.models.configurations import MMDet3DModel
from apps.driving.models.detectors import network_of
from apps.driving.models.fast import fold_batch_norms
from apps.driving.models.head_maps import compute_by, dense_maps
from apps.driving.models.imports import IMPORTERS
from apps.driving.models.library import dense_parts, load
from apps.driving.models.parity import random_sweep, recorded_maps
from apps.driving.predictor import DrivingPredictor
from shared.app import DenseNetwork
from shared.deploy.onnx_network import write_onnx
from shared.deploy.predictor import programs_of
from shared.deploy.programs.choosing import use_program
from shared.deploy.programs.program import Program
from shared.deploy.writing import write_imported
from tests.apps.driving.own_checkpoints import RANGE, SIZES, own_config, save, trained

CENTERPOINT = "centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d"


def own_fpn():
    """A small PointPillars with a feature pyramid, as nuScenes' are, whose head returns maps of three sizes."""
    config = own_config()
    model = config.model
    model.neck = {"type": "mmdet.FPN", "in_channels": [16, 24, 32], "out_channels": 32, "num_outs": 3,
                  "norm_cfg": {"type": "BN", "eps": 1e-3, "momentum": 0.01}, "act_cfg": {"type": "ReLU"}}  # fmt: skip
    model.bbox_head.update(in_channels=32, feat_channels=32)
    x0, y0, _, x1, y1, _ = RANGE
    model.bbox_head.anchor_generator = {
        "type": "AlignedAnchor3DRangeGenerator", "ranges": [[x0, y0, -1.7, x1, y1, -1.7]], "scales": [1, 2, 4],
        "sizes": SIZES, "rotations": [0, 1.57], "reshape_out": True,
    }  # fmt: skip
    return config


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What was imported from a checkpoint of mmdet3d's, and its artifact. The export is by tracing, which is faster."""
    config, folder = own_fpn(), tmp_path_factory.mktemp("imported")
    file = save(folder / "epoch_80.pth", trained(config), config.pretty_text)
    found = IMPORTERS["mmdet3d"].load([str(file)], None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", None)
        return found, write_imported(app, "mmdet3d", found, folder / "registry")


def test_the_onnx_file_alone_computes_the_maps_of_mmdet3ds_own_modules(imported):
    found, artifact = imported
    assert "without_onnx" not in artifact.manifest.source and artifact.manifest.programs.keys() == {"onnx"}
    session = onnxruntime.InferenceSession(str(artifact.path / "model.onnx"), providers=["CPUExecutionProvider"])
    network, canvases = network_of(found.recipe.model, found.network, fast=False), []
    handle = network.detector.backbone.register_forward_pre_hook(lambda module, given: canvases.append(given[0]))
    with torch.inference_mode(), recorded_maps(network.detector) as maps:
        network.predict(random_sweep(found.recipe.input))
    handle.remove()
    computed = session.run(None, {"pseudo_image": canvases[0].numpy()})
    names = [f"{kind}_{level}" for kind in ("scores", "boxes", "directions") for level in range(3)]
    assert [output.name for output in session.get_outputs()] == names
    for one, other in zip(computed, maps, strict=True):
        assert abs(one - other.numpy()).max() < 1e-3 * other.abs().max()


def test_a_program_finds_what_mmdet3d_finds(imported):
    found, artifact = imported
    sweep = random_sweep(found.recipe.input)
    with torch.inference_mode():
        expected = network_of(found.recipe.model, found.network, fast=False).predict(sweep)
    with use_program("onnx"):
        predictor = DrivingPredictor.load([artifact], "cpu")
    assert programs_of(predictor)["mmdet3d_lidar"].name == "onnx"
    for _ in range(2):  # mmdet3d's heads write into their maps
        with torch.inference_mode():
            boxes = predictor.detectors["mmdet3d_lidar"].network.predict(sweep)
        assert len(boxes[0]) == len(expected[0]) > 0
        for one, other in zip(boxes, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_programs_are_timed_on_the_canvas_of_a_sample_sweep(imported, empty_cache):
    found, _ = imported
    model = found.recipe.model
    canvas = example_canvas(imported_detector(model, found.recipe.input, found.network, "cpu"))
    assert canvas.shape == (1, 16, 128, 128) and 0 < (canvas != 0).any(dim=1).float().mean() < 1


@pytest.mark.parametrize("config", ["ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d", CENTERPOINT])
def test_heads_of_other_families_get_their_maps_back(config):
    """The maps of a program that returns what is known, in the order in which mmdet3d's own head returns them."""
    model = MMDet3DModel(config=config)
    detector = fold_batch_norms(model.build().eval())
    network = dense_maps(detector)
    canvas = network.inputs["pseudo_image"]
    assert len(set(network.outputs)) == len(network.outputs)
    draw = torch.Generator().manual_seed(0)
    small = torch.rand(1, canvas.shape[1], 64, 64, generator=draw)
    with torch.inference_mode():
        known = dict(zip(network.outputs, network.module(small), strict=True))
        expected = network.module.nested(small)
    program = Program(name="torch", compute=lambda inputs: known)
    compute_by(program, detector)
    backbone, neck, head = dense_parts(detector)
    found = head(neck(backbone(small)))
    assert type(found) is type(expected) and len(found) == len(expected)
    for one, other in zip(_flat(found), _flat(expected), strict=True):
        assert torch.equal(one, other)
    if config.startswith("ssn"):  # SSN's anchors follow from sizes that its head notes in the forward pass
        assert (canvas.shape[2] // 2, canvas.shape[3] // 2) in map(tuple, head.featmap_sizes)


def _flat(nested):
    if isinstance(nested, torch.Tensor):
        return [nested]
    values = nested.values() if isinstance(nested, dict) else nested
    return [part for value in values for part in _flat(value)]


@pytest.mark.parametrize("kind", ["DCN", "DCNv2"])
def test_a_deformable_convolution_is_exported_for_any_batch(kind, tmp_path):
    load()
    from mmcv.cnn import build_conv_layer

    torch.manual_seed(0)
    layer = build_conv_layer({"type": kind, "deform_groups": 2}, 8, 6, 3, padding=1).eval()
    layer.conv_offset.weight.data.normal_(0, 0.1)
    network = DenseNetwork(
        module=fold_batch_norms(nn.Sequential(layer)), inputs={"x": torch.rand(2, 8, 9, 12)}, outputs=["y"]
    )
    write_onnx(network, tmp_path / "model.onnx")
    image = torch.rand(3, 8, 9, 12)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": image.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), layer(image), rtol=1e-4, atol=1e-4)
