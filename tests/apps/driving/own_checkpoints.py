"""Checkpoints of a detector with a user-defined configuration, as mmengine's Runner saves them."""

import copy
import importlib.resources

import torch

from apps.driving.models.configurations import without_downloads
from apps.driving.models.library import build, load

CLASSES = ("Car", "Truck", "Forklift", "Person")
SIZES = [[4.2, 1.8, 1.6], [8.0, 2.5, 3.0], [2.6, 1.2, 2.1], [0.7, 0.7, 1.75]]
RANGE = [0.0, -20.48, -2.0, 40.96, 20.48, 2.0]
_VOXEL = [0.32, 0.32, 4.0]
_GRID = [128, 128]


def shipped(name):
    """mmengine's own ``Config`` of a configuration that mmdet3d ships."""
    load()
    from mmengine.config import Config

    root = importlib.resources.files("mmdet3d") / ".mim" / "configs"
    return Config.fromfile(next(root.glob(f"*/{name}.py")))


def own_config(dataset="ForkliftDataset"):
    """KITTI's PointPillars with four other classes, another range, coarser pillars and other widths."""
    config = shipped("pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class")
    model = config.model
    model.data_preprocessor.voxel_layer.update(
        point_cloud_range=RANGE, voxel_size=_VOXEL, max_num_points=20, max_voxels=(8000, 12000)
    )
    model.voxel_encoder.update(point_cloud_range=RANGE, voxel_size=_VOXEL, feat_channels=[16])
    model.middle_encoder.update(in_channels=16, output_shape=_GRID)
    model.backbone.update(in_channels=16, layer_nums=[1, 1, 1], out_channels=[16, 24, 32])
    model.neck.update(in_channels=[16, 24, 32], out_channels=[16, 16, 16])
    model.bbox_head.update(num_classes=4, in_channels=48, feat_channels=48)
    x0, y0, _, x1, y1, _ = RANGE
    model.bbox_head.anchor_generator.update(sizes=SIZES, ranges=[[x0, y0, -1.7, x1, y1, -1.7]] * 4)
    model.train_cfg.assigner = [copy.deepcopy(model.train_cfg.assigner[2]) for _ in CLASSES]
    config.test_dataloader.dataset.update(type=dataset, metainfo={"classes": list(CLASSES)})
    return config


def trained(config, raised=2.8):
    """mmdet3d's detector from its own builder, with statistics other than the initial ones."""
    torch.manual_seed(1)
    detector = build(without_downloads(config.model.to_dict())).eval()
    for name, value in detector.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    for name, value in detector.named_parameters():
        if name.endswith("conv_cls.bias"):
            value.data += raised
    return detector


def literals(config):
    """``config`` as assignments of literals, as in ``config.pretty_text``, without yapf's formatting: it takes half a
    second."""
    return "".join(f"{name} = {value!r}\n" for name, value in config.to_dict().items())


def save(path, detector, config_text, classes=CLASSES):
    """The part of what ``Runner.save_checkpoint`` writes that an import reads."""
    meta = {"epoch": 80, "iter": 9, "cfg": config_text, "experiment_name": "own_20260101_120000", "seed": 0}
    if classes is not None:
        meta["dataset_meta"] = {"classes": classes, "palette": [(255, 0, 0)]}
    torch.save({"meta": meta, "state_dict": detector.state_dict(), "message_hub": {}}, path)
    return path
