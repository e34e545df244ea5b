"""The peers of ``train_detectors``: MONAI's and mmdetection3d's own data sets, transforms, detectors and training
loops.

The medical side follows MONAI's tutorial for LUNA16 (Project-MONAI/tutorials, ``detection/luna16_training.py``): its
transforms, its scripted network, one scan per step with as many patches as the batch, and its plain loop, which reads
the loss and writes it for TensorBoard at every step. The driving side is mmengine's ``Runner`` with mmdet3d's own
PointPillars configuration for KITTI. Both record wall time and CPU time of each step.
"""

from __future__ import annotations

import pickle
import sys
import time
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from apps.driving.adapters.kitti import to_rectified
from apps.driving.datasets.kitti import KittiFrames
from apps.driving.models.library import load
from apps.medical.models.retinanet import ANCHOR_SCALES, RetinaNet3D, build_network
from apps.medical.types import ChestInput
from shared.optimizers import AdamW

KITTI_CONFIG = "pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py"
KITTI_NAMES = {"pedestrian": "Pedestrian", "cyclist": "Cyclist", "car": "Car"}
MIN_POINTS = 5


class Times(NamedTuple):
    """Wall time and CPU time in seconds."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Times:
        return cls(time.perf_counter(), time.process_time())

    def since(self, before: Times) -> Times:
        return Times(self.wall - before.wall, self.cpu - before.cpu)


@dataclass
class Steps:
    """The times at which each step started, and at which its batch was loaded."""

    starts: list[Times] = field(default_factory=list)
    loaded: list[Times] = field(default_factory=list)

    def medians(self) -> tuple[Times, Times]:
        """The median times of whole steps and of their data, without the first two steps and the unfinished last."""
        whole = [end.since(start) for start, end in zip(self.starts, self.starts[1:], strict=False)][2:]
        data = [end.since(start) for start, end in zip(self.starts, self.loaded, strict=False)][2:-1]
        return _median(whole), _median(data)


def _median(times: Sequence[Times]) -> Times:
    wall, cpu = np.median(np.array(times), axis=0)
    return Times(float(wall), float(cpu))


def monai_transforms(input: ChestInput, patches: int, *, tutorial: bool) -> tuple[Any, Any]:
    """The deterministic and the random transforms of a scan, which give ``patches`` patches.

    With ``tutorial``, the random transforms are all those of the tutorial; otherwise those that ours has too: crops,
    half of them around a nodule, flips, rotations by multiples of 90 degrees, and our changes of brightness.
    """
    from monai import transforms as plain
    from monai.apps.detection.transforms import dictionary as boxes

    low, high = input.window_hu
    image_and_box = {"image_keys": ["image"], "box_keys": ["box"], "box_ref_image_keys": ["image"]}
    box_and_label = {"box_keys": ["box"], "label_keys": ["label"]}
    deterministic = [
        plain.LoadImaged(keys=["image"], image_only=False, meta_key_postfix="meta_dict"),
        plain.EnsureChannelFirstd(keys=["image"]),
        plain.EnsureTyped(keys=["image", "box"], dtype=torch.float32),
        plain.EnsureTyped(keys=["label"], dtype=torch.long),
        boxes.StandardizeEmptyBoxd(box_keys=["box"], box_ref_image_keys="image"),
        plain.Orientationd(keys=["image"], axcodes="RAS"),
        plain.ScaleIntensityRanged(keys=["image"], a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
        plain.EnsureTyped(keys=["image"], dtype=torch.float16),
        boxes.ConvertBoxToStandardModed(box_keys=["box"], mode="cccwhd"),
        boxes.AffineBoxToImageCoordinated(
            box_keys=["box"], box_ref_image_keys="image", image_meta_key_postfix="meta_dict", affine_lps_to_ras=False
        ),
    ]
    zoom = boxes.RandZoomBoxd(
        **image_and_box, prob=0.2, min_zoom=0.7, max_zoom=1.4, padding_mode="constant", keep_size=True
    )
    max_angle = np.pi / 6
    rotation = [
        boxes.BoxToMaskd(
            **box_and_label, box_mask_keys=["mask"], box_ref_image_keys="image", min_fg_label=0, ellipse_mask=True
        ),
        plain.RandRotated(
            keys=["image", "mask"],
            mode=["nearest", "nearest"],
            prob=0.2,
            range_x=max_angle,
            range_y=max_angle,
            range_z=max_angle,
            keep_size=True,
            padding_mode="zeros",
        ),
        boxes.MaskToBoxd(**box_and_label, box_mask_keys=["mask"], min_fg_label=0),
        plain.DeleteItemsd(keys=["mask"]),
    ]
    sigma = (0.5, 1.0)
    noise = [
        plain.RandGaussianNoised(keys=["image"], prob=0.1, mean=0, std=0.1),
        plain.RandGaussianSmoothd(keys=["image"], prob=0.1, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma),
        plain.RandScaleIntensityd(keys=["image"], prob=0.15, factors=0.25),
        plain.RandShiftIntensityd(keys=["image"], prob=0.15, offsets=0.1),
        plain.RandAdjustContrastd(keys=["image"], prob=0.3, gamma=(0.7, 1.5)),
    ]
    brightness = [
        plain.RandScaleIntensityd(keys=["image"], prob=1.0, factors=0.1),
        plain.RandShiftIntensityd(keys=["image"], prob=1.0, offsets=0.03),
    ]
    random = [
        boxes.RandCropBoxByPosNegLabeld(
            image_keys=["image"],
            box_keys="box",
            label_keys="label",
            spatial_size=input.patch_size,
            whole_box=True,
            num_samples=patches,
            pos=1,
            neg=1,
        ),
        *([zoom] if tutorial else []),
        boxes.ClipBoxToImaged(box_keys="box", label_keys=["label"], box_ref_image_keys="image", remove_empty=True),
        *(boxes.RandFlipBoxd(**image_and_box, prob=0.5, spatial_axis=axis) for axis in range(3)),
        boxes.RandRotateBox90d(**image_and_box, prob=0.75, max_k=3, spatial_axes=(0, 1)),
        *([*rotation, *noise] if tutorial else brightness),
        plain.EnsureTyped(keys=["image", "box"], dtype=torch.float32),
        plain.EnsureTyped(keys=["label"], dtype=torch.long),
    ]
    return deterministic, random


def monai_detector(settings: RetinaNet3D, weights: Mapping[str, Tensor]) -> Any:
    """Builds the tutorial's detector in the sizes of ``settings``, with the given weights of its network."""
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape

    network = build_network(settings)
    network.load_state_dict(dict(weights))
    anchors = AnchorGeneratorWithAnchorShape(
        feature_map_scales=ANCHOR_SCALES, base_anchor_shapes=settings.anchors_voxels
    )
    detector = RetinaNetDetector(network=torch.jit.script(network), anchor_generator=anchors, debug=False)
    detector.set_atss_matcher(num_candidates=4, center_in_gt=False)
    detector.set_hard_negative_sampler(
        batch_size_per_image=settings.samples_per_image,
        positive_fraction=settings.positive_fraction,
        pool_size=settings.pool_size,
        min_neg=settings.least_negatives,
    )
    detector.set_target_keys(box_key="box", label_key="label")
    return detector.train()


def monai_loader(scans: Sequence[Mapping[str, Any]], deterministic: Any, random: Any, *, cached: bool) -> Any:
    """The tutorial's loader. With ``cached`` it uses a ``CacheDataset``, which keeps every prepared scan in memory."""
    from monai.data import CacheDataset, DataLoader, Dataset
    from monai.data.utils import no_collation
    from monai.transforms import Compose

    transforms = Compose([*deterministic, *random])
    dataset = (
        CacheDataset(data=scans, transform=transforms, progress=False)
        if cached
        else Dataset(data=scans, transform=transforms)
    )
    return DataLoader(dataset, batch_size=1, shuffle=True, num_workers=0, collate_fn=no_collation)


def train_monai(detector: Any, loader: Any, optimizer: AdamW, steps: int, folder: Path) -> Steps:
    """Runs the tutorial's training loop."""
    from torch.utils.tensorboard import SummaryWriter

    torch_optimizer = torch.optim.AdamW(
        detector.network.parameters(),
        lr=optimizer.learning_rate,
        betas=optimizer.betas,
        weight_decay=optimizer.weight_decay,
    )
    writer = SummaryWriter(str(folder))
    steps_of_run = Steps()
    while len(steps_of_run.starts) < steps:
        batches = iter(loader)
        for _ in range(len(loader)):
            steps_of_run.starts.append(Times.now())
            batch = next(batches)
            steps_of_run.loaded.append(Times.now())
            patches = [patch for scan in batch for patch in scan]
            for parameter in detector.network.parameters():
                parameter.grad = None
            losses = detector(
                [patch["image"] for patch in patches],
                [{"label": patch["label"], "box": patch["box"]} for patch in patches],
            )
            loss = losses[detector.cls_key] + losses[detector.box_reg_key]
            loss.backward()
            torch_optimizer.step()
            losses[detector.cls_key].item(), losses[detector.box_reg_key].item()
            writer.add_scalar("train_loss", loss.item(), len(steps_of_run.starts))
    writer.close()
    return steps_of_run


def import_mmdet3d() -> None:
    """Imports mmdet3d's data sets and transforms, without pyquaternion, which only nuScenes' boxes need."""
    load()
    stub = types.ModuleType("pyquaternion")
    stub.Quaternion = None  # type: ignore[attr-defined]
    sys.modules.setdefault("pyquaternion", stub)
    # mmengine's Runner looks up the compiled module by its spec, which our replacement lacks.
    sys.modules["mmcv._ext"].__spec__ = ModuleSpec("mmcv._ext", None)
    import mmdet3d.datasets  # noqa: F401


def write_kitti_infos(root: Path, frames: KittiFrames) -> None:
    """Writes the files of mmdet3d's ``create_data.py`` for KITTI: infos, reduced sweeps, and the points of each object.

    Objects are of the three classes of the configuration; each object for pasting has its own file.
    """
    reduced, object_folder = root / "training" / "velodyne_reduced", root / "kitti_gt_database"
    for folder in (reduced, object_folder):
        folder.mkdir(parents=True, exist_ok=True)
    infos, objects = [], {name: [] for name in KITTI_NAMES.values()}
    labels = {name: number for number, name in enumerate(KITTI_NAMES.values())}
    for index, frame_id in enumerate(frames.ids):
        frame = frames.read(index)
        camera = next(iter(frame.cameras.values()))
        assert frame.truth is not None and frame.points_lidar_m is not None
        frame.points_lidar_m.tofile(reduced / f"{frame_id}.bin")
        labels_of_frame = frame.truth.take(np.array([name in KITTI_NAMES for name in frame.truth.names], bool))
        location, rotation_y = to_rectified(labels_of_frame, camera)
        instances = [
            {
                "bbox": [0.0, 0.0, 50.0, 50.0],
                "bbox_label": labels[KITTI_NAMES[name]],
                "bbox_3d": [
                    *map(float, location[index_of_object]),
                    *map(float, labels_of_frame.size_m[index_of_object, [0, 2, 1]]),
                    float(rotation_y[index_of_object]),
                ],
                "bbox_label_3d": labels[KITTI_NAMES[name]],
            }
            for index_of_object, name in enumerate(labels_of_frame.names)
        ]
        lidar_to_camera = camera.lidar_to_camera.astype(np.float64)
        lidar_to_camera[:3, 3] -= camera.reference_offset_m
        infos.append(
            {
                "sample_idx": index,
                "images": {"CAM2": {"lidar2cam": lidar_to_camera.tolist(), "cam2img": np.eye(4).tolist()}},
                "lidar_points": {"num_pts_feats": 4, "lidar_path": f"{frame_id}.bin"},
                "instances": instances,
            }
        )
        for index_of_object, is_inside in enumerate(labels_of_frame.inside(frame.points_lidar_m)):
            if is_inside.sum() < 1:
                continue
            box = labels_of_frame.array[index_of_object].copy()
            box[2] -= box[5] / 2
            points = frame.points_lidar_m[is_inside].copy()
            points[:, :3] -= box[:3]
            name = KITTI_NAMES[labels_of_frame.names[index_of_object]]
            file = object_folder / f"{frame_id}_{name}_{index_of_object}.bin"
            points.tofile(file)
            objects[name].append(
                {
                    "name": name,
                    "path": file.relative_to(root).as_posix(),
                    "image_idx": index,
                    "gt_idx": index_of_object,
                    "box3d_lidar": box,
                    "num_points_in_gt": int(is_inside.sum()),
                    "difficulty": 0,
                    "group_id": index_of_object,
                }
            )
    metainfo = {"categories": labels, "dataset": "kitti", "info_version": "1.1"}
    (root / "kitti_infos_train.pkl").write_bytes(pickle.dumps({"metainfo": metainfo, "data_list": infos}))
    (root / "kitti_dbinfos_train.pkl").write_bytes(pickle.dumps(objects))


def mmdet3d_config(root: Path, model: Mapping[str, Any], batch: int, optimizer: AdamW, clip_norm: float) -> Any:
    """mmdet3d's configuration with this model and batch size, for one epoch on these files in one process."""
    import importlib.resources

    from mmengine.config import Config

    import_mmdet3d()
    with importlib.resources.as_file(importlib.resources.files("mmdet3d") / ".mim" / "configs" / KITTI_CONFIG) as file:
        config = Config.fromfile(file)
    config.model = dict(model)
    data = config.train_dataloader.dataset.dataset
    data.update(data_root=str(root), ann_file="kitti_infos_train.pkl")
    for step in data.pipeline:
        if step["type"] == "ObjectSample":
            step["use_ground_plane"] = False  # ground planes are additional files of mmdet3d
            step["db_sampler"].update(data_root=str(root), info_path=str(root / "kitti_dbinfos_train.pkl"))
    config.train_dataloader.update(batch_size=batch, num_workers=0, persistent_workers=False)
    config.optim_wrapper.optimizer.update(
        lr=optimizer.learning_rate, betas=optimizer.betas, weight_decay=optimizer.weight_decay
    )
    config.optim_wrapper.clip_grad.max_norm = clip_norm
    config.train_cfg = {"by_epoch": True, "max_epochs": 1, "val_interval": 1000}
    for name in ("val_dataloader", "val_cfg", "val_evaluator", "test_dataloader", "test_cfg", "test_evaluator"):
        config[name] = None
    config.visualizer = {"type": "Visualizer", "vis_backends": []}
    # This hook draws predictions, which training does not make, and is the only part that needs open3d.
    config.default_hooks.pop("visualization")
    config.randomness = {"seed": 0}
    config.log_level = "ERROR"
    return config


def train_mmdet3d(config: Any, weights: Mapping[str, Tensor], folder: Path) -> Steps:
    """Trains one epoch with mmengine's ``Runner`` from these weights; returns the times of its steps."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    steps_of_run = Steps()

    class Clock(Hook):  # type: ignore[misc]
        priority = "LOWEST"

        def before_train(self, runner: Any) -> None:
            runner.model.load_state_dict(dict(weights))

        def before_train_epoch(self, runner: Any) -> None:
            steps_of_run.starts.append(Times.now())

        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            steps_of_run.loaded.append(Times.now())

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            steps_of_run.starts.append(Times.now())

    config.work_dir = str(folder)
    runner = Runner.from_cfg(config)
    runner.register_hook(Clock())
    runner.train()
    return steps_of_run


def mmdet3d_batch(config: Any) -> tuple[nn.Module, Any]:
    """The detector of the configuration and its first batch, without random transforms."""
    from mmdet3d.registry import DATASETS, MODELS
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DefaultScope

    settings = config.copy()
    data = settings.train_dataloader.dataset.dataset.copy()
    random_transforms = ("ObjectSample", "RandomFlip3D", "GlobalRotScaleTrans", "PointShuffle")
    data.pipeline = [step for step in data.pipeline if step["type"] not in random_transforms]
    with DefaultScope.overwrite_default_scope("mmdet3d"):
        dataset = DATASETS.build(data)
        return MODELS.build(settings.model), pseudo_collate([dataset[index] for index in range(2)])
