"""Checkpoint configurations that are refused: programs, unknown parts, and networks larger than the file."""

import pytest
import torch

from apps.driving.models.config_text import read_config_text
from apps.driving.models.imports import IMPORTERS
from apps.driving.models.own_lidar_reading import mean_intensity
from shared.cli.main import main
from shared.errors import InvalidInputError
from tests.apps.driving.own_checkpoints import literals, own_config, save, shipped, trained


@pytest.fixture(scope="module")
def detector():
    return trained(own_config())


def test_a_resolved_text_is_read_as_literals():
    text = "a = [-1, (2.5, +3), float('-inf')]\nb = dict(x=None, y=dict({'0.1.w': True}), z=dict())\nc = inf\n"
    text += "d = 'a' 'b'\n"
    assert read_config_text(text, "f") == {
        "a": [-1, [2.5, 3], float("-inf")],
        "b": {"x": None, "y": {"0.1.w": True}, "z": {}},
        "c": float("inf"),
        "d": "ab",
    }


@pytest.mark.parametrize(
    "name", ["pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d", "fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d"]
)
def test_a_dump_is_read_as_mmengine_reads_it(name):
    def plain(value):
        if isinstance(value, dict):
            return {str(key): plain(part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value

    config = shipped(name)
    assert read_config_text(config.pretty_text, "f") == plain(config.to_dict())


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "model = __import__('os').system('true')",
        "model = dict(type=open('/etc/passwd').read())",
        "model = (lambda: 1)()",
        "f = lambda: 1",
        "model = dict(**globals())",
        "model = dict({**{'a': 1}})",
        "model = [x for x in (1, 2)]",
        "model = f'{1}'",
        "model = 10 ** 9",
        "model = dict(a=b)",
        "a.b = 1",
        "a, b = 1, 2",
        "a: int = 1",
        "def f(): pass",
        "model = b'bytes'",
        "model = 1j",
        "model = -'a'",
        "model = -True",
        "model = ...",
        "model = float('1e3')",
        "model = dict([('a', 1)])",
        "model = {('a', 1): 2}",
        "@property\nclass A: pass",
        "model = <function f at 0x1>",
        "model = (",
        "model = '\0'",
        "model = " + "9" * 5000,
        "model = " + "[" * 150 + "]" * 150,
        "model = " + "dict(a=" * 80 + "1" + ")" * 80,
        "model = " + "-" * 100_000 + "1",
        "#" * 1_000_001,
    ],
    ids=range(32),
)
def test_anything_but_literals_is_refused_and_not_executed(text):
    with pytest.raises(
        InvalidInputError, match=r"the configuration in a\.pth (is|has|cannot be)|is not a literal"
    ) as raised:
        read_config_text(text, "a.pth")
    assert len(str(raised.value)) < 400


def changed(path, value):
    config = own_config()
    *folders, last = path.split(".")
    settings = config
    for name in folders:
        settings = settings[name]
    settings[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.type", "os.system", "model.type is 'os.system', which does not run here"),
        ("model.type", "SECOND", "model.type is 'SECOND'; expected VoxelNet"),
        ("model.type", "mmdet3d.models.FCOSMono3D", "camera network has GlobalRotScaleTrans, LoadPointsFromFile"),
        ("model.backbone.type", "mypackage.SECOND", "backbone.type is 'mypackage.SECOND', which does not run"),
        ("model.backbone.type", "PETRHead", "docs/driving-models.md lists the parts"),
        ("model.middle_encoder.type", "SparseEncoder", "it needs mmcv's sparse convolution"),
        ("model.backbone.norm_cfg", {"type": ["BN"]}, "norm_cfg.type is"),
        ("model.backbone.surplus", 1, "mmdet3d cannot build .* argument 'surplus'"),
        ("model.neck.type", "PillarFeatureNet", "mmdet3d cannot build the network in a.pth"),
        ("model.backbone.out_channels", [16, 24, 10**9], r"out_channels is 1e\+09; at most 4096"),
        ("model.backbone.out_channels", [4096, 4096, 4096], "over 5[0-9]{7} parameters, far more than the checkpoint"),
        (
            "model.backbone.layer_nums",
            [400, 400, 400],
            "do not match the configuration in it|far more than the checkpoint",
        ),
        ("model.neck.upsample_strides", [1, 2, 400], "upsample_strides is 400; at most 16"),
        ("model.backbone.layer_nums", [1] * 1000, "layer_nums has 1000 values"),
        ("model.data_preprocessor.voxel_layer.max_voxels", [10**6, 10**6], "is larger than supported here"),
        ("model.data_preprocessor.voxel_layer.voxel_size", [1e-3, 1e-3, 4.0], "output_shape is .* give .40960, 40960."),
        ("model.data_preprocessor.voxel_layer.voxel_size", [0.0, 0.32, 4.0], "do not fill the range"),
        ("model.data_preprocessor.voxel_layer.voxel_size", [0.32, 0.32, 0.1], "40 voxels high; only pillar networks"),
        (
            "model.data_preprocessor.voxel_layer.voxel_size",
            [0.32, float("nan"), 4.0],
            "voxel_size is nan; expected a number",
        ),
        ("model.data_preprocessor.voxel_layer.point_cloud_range", "wide", "expected 6 numbers"),
        ("model.data_preprocessor", None, "the model has no data_preprocessor"),
        ("model.middle_encoder.output_shape", [496, 432], r"range and voxel size give \[128, 128\]"),
        ("model.bbox_head.num_classes", 3, "its head has 3 classes; the classes of its data are car, truck"),
        ("model.bbox_head.num_classes", "4", "its head has 4 classes|do not have the form"),
        ("model.bbox_head.anchor_generator.sizes", 5, "do not have the form"),
        ("model.bbox_head.tasks", [3], "its head has|do not have the form|mmdet3d cannot build"),
        ("model.neck.out_channels", [16, 16, 24], "mmdet3d cannot build|do not match|cannot be computed"),
        ("model.backbone.out_channels", [16, 24, 40], "the weights in a.pth do not match the configuration in it"),
        ("model.backbone.layer_strides", [2, 2, 3], "cannot be computed"),
        ("test_dataloader.dataset.type", "WaymoDataset", "needs Waymo's frames, which no reader here provides"),
        ("test_dataloader.dataset.pipeline", [{"type": "LoadPointsFromFile", "use_dim": 5}], "takes 4 columns"),
        (
            "test_dataloader.dataset.pipeline",
            [{"type": "LoadPointsFromFile", "use_dim": [0, 1, 2, 4]}],
            "fifth column of the points' file, which is not the time",
        ),
        (
            "test_dataloader.dataset.pipeline",
            [{"type": "LoadPointsFromFile", "norm_intensity": True}],
            "norm_intensity",
        ),
        ("test_dataloader.dataset.pipeline", [{"type": "LoadPointsFromFile", "use_dim": "xyz"}], "use_dim of the test"),
    ],
)
def test_what_is_not_supported_is_refused_with_one_sentence(detector, tmp_path, path, value, message):
    file = save(tmp_path / "a.pth", detector, literals(changed(path, value)))
    with pytest.raises(InvalidInputError, match=message) as raised:
        IMPORTERS["mmdet3d"].load([str(file)], None)
    assert len(str(raised.value)) < 700 and "\n" not in str(raised.value)


@pytest.mark.parametrize("rest", ["", "model = dict(bbox_head=dict(num_classes=4))\n", None])
def test_a_file_that_derives_from_others_is_refused_for_that(detector, tmp_path, rest):
    """It is refused for that first, because the files that it derives from may change any part of it."""
    text = own_config().pretty_text.replace("class_names", "names") if rest is None else rest
    (tmp_path / "mine.py").write_text(f"_base_ = ['../_base_/models/mine.py']\n{text}")
    file = save(tmp_path / "a.pth", detector, own_config().pretty_text, classes=None)
    with pytest.raises(InvalidInputError, match=r"mine\.py derives from others \(_base_\).*give the resolved one"):
        IMPORTERS["mmdet3d"].load([str(tmp_path / "mine.py"), str(file)], None)


def test_the_layout_of_mmcvs_runners_is_refused(detector, tmp_path):
    """A checkpoint of mmdet3d before 1.1, and the configuration in its work_dirs."""
    text = "model = dict(type='VoxelNet', voxel_layer=dict())\ndata = dict(samples_per_gpu=6)\n"
    (tmp_path / "mine.py").write_text(text)
    meta = {"mmdet3d_version": "1.0.0rc6", "config": text, "CLASSES": ("Car",)}
    torch.save({"meta": meta, "state_dict": detector.state_dict()}, tmp_path / "a.pth")
    for words in (["a.pth"], ["mine.py", "a.pth"]):
        with pytest.raises(InvalidInputError, match=f"{words[0]} has the layout of mmdet3d before 1.1.*rewrite it"):
            IMPORTERS["mmdet3d"].load([str(tmp_path / word) for word in words], None)


def test_the_head_must_have_as_many_classes_as_the_checkpoint(detector, tmp_path):
    file = save(tmp_path / "a.pth", detector, own_config().pretty_text, classes=("Car", "Truck"))
    with pytest.raises(InvalidInputError, match=r"its head has 4 classes; the classes of its data are car, truck$"):
        IMPORTERS["mmdet3d"].load([str(file)], None)
    save(file, detector, own_config().pretty_text, classes=("Car", "car", "a", "b"))
    with pytest.raises(InvalidInputError, match="give each a different name"):
        IMPORTERS["mmdet3d"].load([str(file)], None)


def test_pretrained_weights_are_not_downloaded(detector, tmp_path, monkeypatch):
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("a download"))
    config = changed("model.backbone.init_cfg", {"type": "Pretrained", "checkpoint": "https://example.org/a.pth"})
    config.model.pretrained = config.load_from = "https://example.org/b.pth"
    config.model.neck._scope_ = "mypackage"
    imported = IMPORTERS["mmdet3d"].load([str(save(tmp_path / "a.pth", detector, config.pretty_text))], None)
    assert "example.org" not in str(imported.recipe) and "mypackage" not in str(imported.recipe)


def test_the_command_says_how_many_arguments_it_takes(capsys):
    assert main(["import", "driving", "mmdet3d"]) == 2
    assert "mmdet3d takes 1 to 2 arguments: trivium import driving mmdet3d [CONFIG] CHECKPOINT.pth" in (
        capsys.readouterr().err
    )


def test_the_mean_intensity_is_unknown_for_other_layers():
    assert mean_intensity({}) is None
    weights = {
        "voxel_encoder.pfn_layers.0.linear.weight": torch.zeros(8, 10),
        "voxel_encoder.pfn_layers.0.norm.running_mean": torch.zeros(8),
    }
    assert mean_intensity(weights) is None
