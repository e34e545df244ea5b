"""How MONAI and mmdetection3d train by themselves: their data sets, transforms, detectors and loops, for comparison.

The medical side follows MONAI's tutorial for LUNA16 (Project-MONAI/tutorials, ``detection/luna16_training.py``): its
transforms, its scripted network, one scan a step with as many patches as the batch has, and its plain loop, which reads
the loss and writes it for TensorBoard at every step. The driving side is mmengine's ``Runner`` with mmdet3d's own
configuration of PointPillars for KITTI. Both note each step by the clock and by the processor's time.
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
    """Seconds by the clock, and of the processor."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Times:
        return cls(time.perf_counter(), time.process_time())

    def since(self, before: Times) -> Times:
        return Times(self.wall - before.wall, self.cpu - before.cpu)


@dataclass
class Steps:
    """When each step began, and when its batch was there."""

    began: list[Times] = field(default_factory=list)
    loaded: list[Times] = field(default_factory=list)

    def medians(self) -> tuple[Times, Times]:
        """Of whole steps, and of their data; without the first two, and the last, which has no end."""
        whole = [end.since(start) for start, end in zip(self.began, self.began[1:], strict=False)][2:]
        data = [end.since(start) for start, end in zip(self.began, self.loaded, strict=False)][2:-1]
        return _median(whole), _median(data)


def _median(times: Sequence[Times]) -> Times:
    wall, cpu = np.median(np.array(times), axis=0)
    return Times(float(wall), float(cpu))


def monai_transforms(input: ChestInput, patches: int, *, tutorial: bool) -> tuple[Any, Any]:
    """What is the same for a scan every time, and what is random, of ``patches`` patches.

    The random part is all that the tutorial has, or what ours does too: crops of which half are around a nodule, flips,
    turns by a right angle, and changes of brightness in our strength.
    """
    from monai import transforms as plain
    from monai.apps.detection.transforms import dictionary as boxes

    low, high = input.window_hu
    here = {"image_keys": ["image"], "box_keys": ["box"], "box_ref_image_keys": ["image"]}
    of_boxes = {"box_keys": ["box"], "label_keys": ["label"]}
    same = [
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
    zoom = boxes.RandZoomBoxd(**here, prob=0.2, min_zoom=0.7, max_zoom=1.4, padding_mode="constant", keep_size=True)
    third = np.pi / 6
    turn = [
        boxes.BoxToMaskd(
            **of_boxes, box_mask_keys=["mask"], box_ref_image_keys="image", min_fg_label=0, ellipse_mask=True
        ),
        plain.RandRotated(
            keys=["image", "mask"],
            mode=["nearest", "nearest"],
            prob=0.2,
            range_x=third,
            range_y=third,
            range_z=third,
            keep_size=True,
            padding_mode="zeros",
        ),
        boxes.MaskToBoxd(**of_boxes, box_mask_keys=["mask"], min_fg_label=0),
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
        *(boxes.RandFlipBoxd(**here, prob=0.5, spatial_axis=axis) for axis in range(3)),
        boxes.RandRotateBox90d(**here, prob=0.75, max_k=3, spatial_axes=(0, 1)),
        *([*turn, *noise] if tutorial else brightness),
        plain.EnsureTyped(keys=["image", "box"], dtype=torch.float32),
        plain.EnsureTyped(keys=["label"], dtype=torch.long),
    ]
    return same, random


def monai_detector(settings: RetinaNet3D, weights: Mapping[str, Tensor]) -> Any:
    """The detector that the tutorial builds, in the sizes of ``settings``, with the weights of its network."""
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


def monai_loader(scans: Sequence[Mapping[str, Any]], same: Any, random: Any, *, cached: bool) -> Any:
    """The tutorial's loader; ``cached``: of a ``CacheDataset``, which keeps every scan in memory as it is prepared."""
    from monai.data import CacheDataset, DataLoader, Dataset
    from monai.data.utils import no_collation
    from monai.transforms import Compose

    steps = Compose([*same, *random])
    made = CacheDataset(data=scans, transform=steps, progress=False) if cached else Dataset(data=scans, transform=steps)
    return DataLoader(made, batch_size=1, shuffle=True, num_workers=0, collate_fn=no_collation)


def train_monai(detector: Any, loader: Any, optimizer: AdamW, steps: int, folder: Path) -> Steps:
    """The tutorial's loop."""
    from torch.utils.tensorboard import SummaryWriter

    settings = torch.optim.AdamW(
        detector.network.parameters(),
        lr=optimizer.learning_rate,
        betas=optimizer.betas,
        weight_decay=optimizer.weight_decay,
    )
    writer = SummaryWriter(str(folder))
    noted = Steps()
    while len(noted.began) < steps:
        batches = iter(loader)
        for _ in range(len(loader)):
            noted.began.append(Times.now())
            batch = next(batches)
            noted.loaded.append(Times.now())
            patches = [patch for scan in batch for patch in scan]
            for parameter in detector.network.parameters():
                parameter.grad = None
            losses = detector(
                [patch["image"] for patch in patches],
                [{"label": patch["label"], "box": patch["box"]} for patch in patches],
            )
            loss = losses[detector.cls_key] + losses[detector.box_reg_key]
            loss.backward()
            settings.step()
            losses[detector.cls_key].item(), losses[detector.box_reg_key].item()
            writer.add_scalar("train_loss", loss.item(), len(noted.began))
    writer.close()
    return noted


def import_mmdet3d() -> None:
    """mmdet3d's data sets and transforms. pyquaternion, which nuScenes' boxes alone need, is not installed."""
    load()
    absent = types.ModuleType("pyquaternion")
    absent.Quaternion = None  # type: ignore[attr-defined]
    sys.modules.setdefault("pyquaternion", absent)
    # mmengine's Runner looks for the compiled module by its specification, which the stand-in has not.
    sys.modules["mmcv._ext"].__spec__ = ModuleSpec("mmcv._ext", None)
    import mmdet3d.datasets  # noqa: F401


def write_kitti_infos(root: Path, frames: KittiFrames) -> None:
    """What mmdet3d's ``create_data.py`` makes of KITTI's files: infos, reduced sweeps, and the objects' own points.

    Objects are the three classes of the configuration; those to be pasted are read from a file each.
    """
    reduced, bank = root / "training" / "velodyne_reduced", root / "kitti_gt_database"
    for folder in (reduced, bank):
        folder.mkdir(parents=True, exist_ok=True)
    infos, objects = [], {name: [] for name in KITTI_NAMES.values()}
    labels = {name: number for number, name in enumerate(KITTI_NAMES.values())}
    for index, frame_id in enumerate(frames.ids):
        frame = frames.read(index)
        camera = next(iter(frame.cameras.values()))
        assert frame.truth is not None and frame.points_lidar_m is not None
        frame.points_lidar_m.tofile(reduced / f"{frame_id}.bin")
        truth = frame.truth.take(np.array([name in KITTI_NAMES for name in frame.truth.names], bool))
        location, turn = to_rectified(truth, camera)
        instances = [
            {
                "bbox": [0.0, 0.0, 50.0, 50.0],
                "bbox_label": labels[KITTI_NAMES[name]],
                "bbox_3d": [*map(float, location[n]), *map(float, truth.size_m[n, [0, 2, 1]]), float(turn[n])],
                "bbox_label_3d": labels[KITTI_NAMES[name]],
            }
            for n, name in enumerate(truth.names)
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
        for n, inside in enumerate(truth.inside(frame.points_lidar_m)):
            if inside.sum() < 1:
                continue
            box = truth.array[n].copy()
            box[2] -= box[5] / 2
            points = frame.points_lidar_m[inside].copy()
            points[:, :3] -= box[:3]
            name = KITTI_NAMES[truth.names[n]]
            file = bank / f"{frame_id}_{name}_{n}.bin"
            points.tofile(file)
            objects[name].append(
                {
                    "name": name,
                    "path": file.relative_to(root).as_posix(),
                    "image_idx": index,
                    "gt_idx": n,
                    "box3d_lidar": box,
                    "num_points_in_gt": int(inside.sum()),
                    "difficulty": 0,
                    "group_id": n,
                }
            )
    metainfo = {"categories": labels, "dataset": "kitti", "info_version": "1.1"}
    (root / "kitti_infos_train.pkl").write_bytes(pickle.dumps({"metainfo": metainfo, "data_list": infos}))
    (root / "kitti_dbinfos_train.pkl").write_bytes(pickle.dumps(objects))


def mmdet3d_config(root: Path, model: Mapping[str, Any], batch: int, optimizer: AdamW, clip_norm: float) -> Any:
    """mmdet3d's configuration with this model and batch, for one epoch on these files, in one process."""
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
            step["use_ground_plane"] = False  # planes are files of mmdet3d's own, beside KITTI's
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
    # It draws predictions, of which training has none, and is all that would need open3d.
    config.default_hooks.pop("visualization")
    config.randomness = {"seed": 0}
    config.log_level = "ERROR"
    return config


def train_mmdet3d(config: Any, weights: Mapping[str, Tensor], folder: Path) -> Steps:
    """One epoch of mmengine's ``Runner``, from these weights."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    noted = Steps()

    class Clock(Hook):  # type: ignore[misc]
        priority = "LOWEST"

        def before_train(self, runner: Any) -> None:
            runner.model.load_state_dict(dict(weights))

        def before_train_epoch(self, runner: Any) -> None:
            noted.began.append(Times.now())

        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            noted.loaded.append(Times.now())

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            noted.began.append(Times.now())

    config.work_dir = str(folder)
    runner = Runner.from_cfg(config)
    runner.register_hook(Clock())
    runner.train()
    return noted


def mmdet3d_batch(config: Any) -> tuple[nn.Module, Any]:
    """The detector of the configuration and its first batch, without what is random."""
    from mmdet3d.registry import DATASETS, MODELS
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DefaultScope

    settings = config.copy()
    data = settings.train_dataloader.dataset.dataset.copy()
    random = ("ObjectSample", "RandomFlip3D", "GlobalRotScaleTrans", "PointShuffle")
    data.pipeline = [step for step in data.pipeline if step["type"] not in random]
    with DefaultScope.overwrite_default_scope("mmdet3d"):
        dataset = DATASETS.build(data)
        return MODELS.build(settings.model), pseudo_collate([dataset[n] for n in range(2)])
