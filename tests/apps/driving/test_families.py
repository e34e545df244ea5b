"""The configurations that mmdet3d ships: those that run take a checkpoint of the published layout and find boxes."""

import collections
import importlib.resources
import os
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from apps.driving.models import families
from apps.driving.models.configurations import MMDet3DModel, configuration, without_downloads
from apps.driving.models.detectors import CameraNetwork, PointLayout, centred_affine, network_of, point_layout
from apps.driving.models.families import FAMILIES, family_of
from apps.driving.models.imports import IMPORTERS, match
from apps.driving.models.library import build, load, version
from apps.driving.models.parity import random_camera, random_sweep
from apps.driving.types import KITTI_CLASSES
from shared.errors import InvalidInputError

KITTI = "pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class"
CENTERPOINT = "centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d"
SMOKE = "smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d"

RAISED = {
    "PointPillars, KITTI": 2.35,
    "PointPillars with dynamic voxelisation, KITTI": 2.1,
    "PointPillars with FPN, nuScenes": 1.49,
    "PointPillars with SECOND's FPN, nuScenes": 1.35,
    "PointPillars with RegNet, nuScenes": 0.75,
    "FreeAnchor, nuScenes": 1.49,
    "SSN, nuScenes": 1.33,
    "CenterPoint with pillars, nuScenes": -3.0,
    "CenterPoint with pillars and deformable convolution, nuScenes": -3.0,
    "FCOS3D with ResNet-101 and deformable convolution, nuScenes": 2.0,
    "PGD, nuScenes": 5.0,
    "PGD, KITTI": 2.0,
    "SMOKE, KITTI": 3.25,
}
"""By how much the scores' biases are raised, so that random weights find a few boxes and not thousands."""


class HistoryBuffer:
    """Replaces mmengine's class; the message hub of a checkpoint contains many instances of it."""

    def __init__(self):
        self._log_history = np.arange(3.0)
        self._statistics_methods = {"mean": np.mean}


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def trained(config):
    """mmdet3d's own detector, from its own builder, with weights and statistics other than the initial ones."""
    torch.manual_seed(1)
    detector = build(without_downloads(configuration(config).model))
    for name, value in detector.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.1)
    for name, value in detector.named_parameters():
        if "conv_cls.bias" in name or name.endswith(("heatmap.1.bias", "cls_head.1.bias")):
            value.data += RAISED[family_of(config).name]
    return detector.eval()


def published(config, path, detector=None, **meta):
    """A checkpoint as mmengine writes it, in torch's older layout: mmdet3d's publishing tool asks for that."""
    detector = trained(config) if detector is None else detector
    content = {
        "meta": {"epoch": 80, "iter": np.int64(9), "experiment_name": config, "seed": 0,
                 "dataset_meta": {"classes": configuration(config).classes, "palette": [(255, 0, 0)]}} | meta,
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}, "resumed_keys": {"train/loss": True}},
        "state_dict": collections.OrderedDict(detector.state_dict()),
    }  # fmt: skip
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return detector


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_takes_a_checkpoint_and_computes_what_mmdet3d_does(family, tmp_path):
    config = family.configurations[0]
    detector = published(config, tmp_path / "a.pth")
    imported = IMPORTERS["mmdet3d"].load([config, str(tmp_path / "a.pth")], None)
    own, loaded = detector.state_dict(), imported.network.state_dict()
    assert own.keys() == loaded.keys() and all(torch.equal(own[key], loaded[key]) for key in own)
    assert imported.recipe.model == MMDet3DModel(config=config) and imported.source["ignored_weights"] == []
    found = imported.source["parity"]
    # SMOKE's sampling positions depend on its features: random weights magnify rounding, in mmdet3d's own modules too.
    most = 1e-3 if family.name.startswith("SMOKE") else 1e-4
    assert found["maps"] > 0 and found["largest_relative_difference"] < most
    assert imported.source["library"] == f"mmdet3d {version()}" and len(imported.source["sha256"]) == 64
    assert found["boxes"]["mmdet3d"] == found["boxes"]["fast_path"] > 0
    assert imported.calibration["least_scores"].keys() == {kind.name for kind in imported.recipe.input.classes}


@pytest.mark.parametrize("config", [KITTI, CENTERPOINT, "pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d", SMOKE])
def test_detections_are_boxes_with_scores_and_labels(config):
    model = MMDet3DModel(config=config)
    network = network_of(model, trained(config))
    with torch.inference_mode():
        if isinstance(network, CameraNetwork):
            boxes, scores, labels = network.predict(random_camera())
        else:
            boxes, scores, labels = network.predict(random_sweep(model.input()))
            assert (boxes[:, 6].abs() <= 3.1416).all()
            assert len(network.predict(torch.zeros(0, 4))[0]) == 0
    assert boxes.shape == (len(scores), 7) and len(scores) == len(labels) > 0
    assert torch.isfinite(boxes).all() and (boxes[:, 3:6] > 0).all()
    assert (scores >= 0).all() and (scores <= 1).all()
    assert set(labels.tolist()) <= set(range(len(model.input().classes)))


@cache
def module_types(config):
    model = MMDet3DModel(config=config)
    return {type(module) for module in model.build(model.input()).modules()}


@pytest.mark.parametrize("config", [config for family in FAMILIES for config in family.configurations[1:]])
def test_the_other_configurations_of_a_family_are_built_from_the_same_parts(config):
    """The tests of a family's first configuration hold for its others, because they have no module of another type."""
    first = family_of(config).configurations[0]
    fpn = {"torch.nn.modules.conv.ConvTranspose2d", "mmdet.models.necks.fpn.FPN",
           "mmcv.cnn.bricks.conv_module.ConvModule",
           "mmdet3d.models.necks.second_fpn.SECONDFPN", "mmdet3d.models.backbones.nostem_regnet.NoStemRegNet",
           "mmdet.models.backbones.resnext.Bottleneck", "mmdet.models.layers.res_layer.ResLayer",
           "mmdet3d.models.backbones.second.SECOND"}  # fmt: skip
    new = module_types(config) - module_types(first)
    assert {f"{kind.__module__}.{kind.__qualname__}" for kind in new} <= fpn


def shipped():
    load()
    root = importlib.resources.files("mmdet3d") / ".mim" / "configs"
    folders = [folder for folder in root.iterdir() if folder.is_dir() and folder.name not in ("_base_", "__pycache__")]
    return sorted(file.name.removesuffix(".py") for folder in folders for file in folder.iterdir()
                  if file.name.endswith(".py"))  # fmt: skip


def test_every_configuration_that_mmdet3d_ships_runs_or_is_refused_with_its_reason():
    names = shipped()
    running = [config for family in FAMILIES for config in family.configurations]
    assert len(names) > 130 and set(running) <= set(names) and len(set(running)) == len(running)
    for name in set(names) - set(running):
        with pytest.raises(InvalidInputError, match=f"^mmdet3d's configuration {name} does not run here: it "):
            family_of(name)
    beginnings = [beginning for _, group, _ in families.REFUSED for beginning in group]
    assert all(any(name.startswith(beginning) for name in names) for beginning in beginnings)
    assert not any(name.startswith(tuple(beginnings)) for name in running)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "pointpillars", "", "my_config.py", "os"])
def test_a_configuration_that_mmdet3d_does_not_ship_is_refused(name):
    with pytest.raises(InvalidInputError, match=r"ships no configuration.*give the shipped one that it derives from"):
        MMDet3DModel(config=name)


def test_second_lacks_the_operator_that_its_refusal_names():
    load()
    from mmengine.config import Config

    from apps.driving.models import structures

    root = importlib.resources.files("mmdet3d") / ".mim" / "configs"
    document = Config.fromfile(root / "second" / "second_hv_secfpn_8xb6-80e_kitti-3d-3class.py")
    detector = build(without_downloads(document.model.to_dict())).eval()
    points = random_sweep(MMDet3DModel().input())
    with pytest.raises(NotImplementedError, match="get_indice_pairs_3d_forward"), torch.inference_mode():
        structures.predict(detector, structures.lidar_data([points]))
    with pytest.raises(InvalidInputError, match="get_indice_pairs_3d_forward"):
        MMDet3DModel(config="second_hv_secfpn_8xb6-80e_kitti-3d-3class")


def test_the_input_is_that_of_the_configuration():
    lidar = MMDet3DModel(config=CENTERPOINT).input()
    assert lidar.range_m == (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    assert [kind.name for kind in lidar.classes][:2] == ["car", "truck"] and len(lidar.classes) == 10
    assert MMDet3DModel().input().classes == KITTI_CLASSES
    camera = MMDet3DModel(config=SMOKE).input()
    assert camera.focal_px is None and [kind.name for kind in camera.classes] == ["pedestrian", "cyclist", "car"]


def test_another_input_than_the_configurations_is_refused():
    from dataclasses import replace

    model = MMDet3DModel(config=CENTERPOINT)
    for change in ({"range_m": (0, -40, -3, 70, 40, 1)}, {"classes": KITTI_CLASSES}):
        with pytest.raises(InvalidInputError, match="Leave input unchanged"):
            model.build(replace(model.input(), **change))
    with pytest.raises(InvalidInputError, match="lidar model, not mmdet3d_camera"):
        MMDet3DModel(config=CENTERPOINT, name="mmdet3d_camera")


def test_building_downloads_nothing(monkeypatch):
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("a download"))
    for family in FAMILIES:
        settings = MMDet3DModel(config=family.configurations[0]).settings()
        assert "Pretrained" not in str(settings) and "http" not in str(settings)


def test_names_with_a_prefix_and_copies_of_averaged_weights():
    own = {"a.weight": torch.zeros(2), "b.num_batches_tracked": torch.tensor(0)}
    found = match({"module.a.weight": torch.ones(2), "module.ema_a_weight": torch.zeros(2)}, own)
    assert found.weights["a.weight"].sum() == 2 and found.weights["b.num_batches_tracked"] == 0
    assert found.missing == found.misshaped == () and found.ignored in ((), ("ema_a_weight",))
    found = match({"a.weight": torch.ones(3), "c": torch.ones(1)}, own)
    assert found.misshaped == ("a.weight ((3,), not (2,))",) and found.ignored == ("c",)


def test_weights_of_another_configuration_are_refused_with_the_mismatches(tmp_path):
    published("pointpillars_hv_secfpn_8xb6-160e_kitti-3d-car", tmp_path / "a.pth", dataset_meta={})
    with pytest.raises(InvalidInputError, match=r"a\.pth do not match .* have another shape: bbox_head\.conv_cls"):
        IMPORTERS["mmdet3d"].load([KITTI, str(tmp_path / "a.pth")], None)
    detector = trained(KITTI)
    weights = {key: value for key, value in detector.state_dict().items() if not key.startswith("neck.")}
    torch.save({"state_dict": weights | {"extra": torch.zeros(1)}}, tmp_path / "b.pth")
    with pytest.raises(InvalidInputError, match=r"are missing: neck\.deblocks.* 1 are not in the configuration: extra"):
        IMPORTERS["mmdet3d"].load([KITTI, str(tmp_path / "b.pth")], None)


def test_the_order_of_classes_is_that_of_the_checkpoint_and_other_classes_are_refused(tmp_path):
    detector = trained(KITTI)
    published(KITTI, tmp_path / "a.pth", detector, dataset_meta={}, CLASSES=("Car", "Pedestrian", "Cyclist"))
    imported = IMPORTERS["mmdet3d"].load([KITTI, str(tmp_path / "a.pth")], None)
    assert [kind.name for kind in imported.recipe.input.classes] == ["car", "pedestrian", "cyclist"]
    published(KITTI, tmp_path / "b.pth", detector, dataset_meta={"CLASSES": ("Car", "Truck", "Tram")})
    with pytest.raises(InvalidInputError, match="was trained for the classes car, truck, tram"):
        IMPORTERS["mmdet3d"].load([KITTI, str(tmp_path / "b.pth")], None)


def test_a_hostile_checkpoint_executes_nothing(tmp_path):
    published(KITTI, tmp_path / "a.pth", author=Hostile(tmp_path / "ran"))
    IMPORTERS["mmdet3d"].load([KITTI, str(tmp_path / "a.pth")], None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.realdata
def test_points_reach_nuscenes_networks_as_mmdet3d_reads_them_from_the_file(data_root):
    from apps.driving.adapters.nuscenes import read_points

    (path,) = (data_root / "driving/nuscenes_sample").glob("*LIDAR_TOP*.bin")
    raw = torch.from_numpy(np.fromfile(path, "<f4").reshape(-1, 5))
    raw[:, 4] = 0  # mmdet3d writes the time over the ring
    points = torch.from_numpy(read_points(path))
    for config, columns in ((CENTERPOINT, [0, 1, 2, 3, 4]), ("ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d", [0, 1, 2, 4])):
        assert torch.allclose(point_layout(MMDet3DModel(config=config)).to_network(points), raw[:, columns], atol=1e-4)


@pytest.mark.realdata
def test_boxes_of_nuscenes_networks_are_rotated_as_the_annotations_are(data_root):
    import json

    from apps.driving.adapters.nuscenes import read

    path = data_root / "driving/nuscenes_sample/sample.json"
    (sample,) = json.loads(path.read_text())["data_list"]
    raw = torch.tensor([instance["bbox_3d"][:7] for instance in sample["instances"]])
    found = point_layout(MMDet3DModel(config=CENTERPOINT)).from_network(raw)
    (frame,) = read(path)
    turn = found[:, 6] - torch.from_numpy(frame.truth.array)[:, 6]
    assert torch.allclose(found[:, :6], torch.from_numpy(frame.truth.array)[:, :6], atol=1e-4)
    assert (torch.remainder(turn + 1, 2 * torch.pi) - 1).abs().max() < 1e-4


def test_kitti_points_and_boxes_stay_as_they_are():
    layout = point_layout(MMDet3DModel())
    assert layout == PointLayout(columns=(0, 1, 2, 3), intensity=1.0, quarter_turn=False)
    points, boxes = torch.rand(5, 4), torch.rand(5, 7)
    assert torch.equal(layout.to_network(points), points) and torch.allclose(layout.from_network(boxes), boxes)


@pytest.mark.parametrize(
    ("shape", "size"), [((375, 1242), (1280, 384)), ((900, 1600), (1280, 384)), ((60, 50), (320, 96))]
)
def test_the_affine_resize_is_that_of_mmdet3d(shape, size):
    """mmdet3d's AffineResize from three points: the centre, one half a width above, and that turned by 90 degrees."""
    height, width = shape
    source = np.float32(
        [[width / 2, height / 2], [width / 2, height / 2 - width / 2], [width / 2 - width / 2, height / 2 - width / 2]]
    )
    target = np.float32(
        [[size[0] / 2, size[1] / 2], [size[0] / 2, size[1] / 2 - size[0] / 2], [0, size[1] / 2 - size[0] / 2]]
    )
    assert np.allclose(centred_affine(shape, size)[:2], cv2.getAffineTransform(source, target), atol=1e-3)


def test_the_table_names_every_configuration_once_and_what_was_tested():
    table = families.table()
    running = [config for family in FAMILIES for config in family.configurations]
    assert [row[0] for row in table.rows][: len(running)] == running
    assert len(table.rows) == len(running) + len(families.REFUSED) == len({row[0] for row in table.rows})
    assert all(len(row) == len(table.columns) for row in table.rows)
    compared = [row[0] for row in table.rows if row[2] == "imported, run and compared"]
    assert compared == [family.configurations[0] for family in FAMILIES]


def test_the_page_lists_every_configuration_and_the_files_that_mmdet3d_names_for_it():
    page = (Path(__file__).parents[3] / "docs" / "driving-models.md").read_text(encoding="utf-8")
    load()
    root = importlib.resources.files("mmdet3d") / ".mim" / "configs"
    published_files = {}
    for file in (folder / "metafile.yml" for folder in root.iterdir() if folder.is_dir()):
        for model in (yaml.safe_load(file.read_text()) or {}).get("Models", []) if file.is_file() else []:
            config = model["Config"].rpartition("/")[2].removesuffix(".py")
            published_files.setdefault(config, []).append(model.get("Weights", "").rpartition("/")[2])
    for family in FAMILIES:
        assert f"**{family.name}**" in page
        for config in family.configurations:
            (row,) = [line for line in page.splitlines() if line.startswith(f"| `{config}`")]
            files = [name for name in published_files.get(config, []) if name]
            assert all(f"`{name}`" in row for name in files) and ("none published" in row) == (not files)
    for name, _, reason in families.REFUSED:
        assert f"| {name} | {reason} |" in page
