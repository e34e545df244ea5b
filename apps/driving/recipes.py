"""The named recipes: PointPillars on LiDAR sweeps and FCOS3D on camera images, from tiny to full.

All train on synthetic scenes made on the fly. The shipped weights started with ``medium`` and ``fcos3d_small``.
``large`` and ``fcos3d_large`` are sized for about ten minutes on one GPU, and have not been measured on one.
"""

from __future__ import annotations

from apps.driving.datasets.sampling import ImageSampling, SweepSampling
from apps.driving.datasets.synthetic import KITTI_FOCAL_PX, Synthetic
from apps.driving.models.fcos3d import FCOS3D
from apps.driving.models.lidar_rcnn import LidarRCNN
from apps.driving.models.pointpillars import PointPillars
from apps.driving.task import BoxTask, CameraTask, LidarTask
from apps.driving.types import BoxInput, CameraInput, LidarInput, ObjectClass
from shared.optimizers import AdamW, CosineRestarts
from shared.recipe import Limits, Recipe


def _adamw(learning_rate: float) -> AdamW:
    return AdamW(learning_rate=learning_rate, weight_decay=0.01, betas=(0.95, 0.99))


def _cosine_to_zero(epochs: int, warmup: int) -> CosineRestarts:
    """Cosine decay to zero at the last epoch, without restarts."""
    return CosineRestarts(warmup_steps=warmup, period=float(epochs))


def _minutes_on_a_gpu(*, epochs: int, batch: int) -> Limits:
    return Limits(
        epochs=epochs,
        batch=batch,
        evaluation_batch=batch,
        monitor="map",
        mode="max",
        patience=100,
        log_every=50,
        checkpoint_every=1000,
        minutes=7,
        loader_threads=8,
    )


def tiny() -> Recipe:
    """Seconds on one core: 20 m of road, pillars of 0.64 m."""
    return Recipe(
        model=PointPillars(
            pillar_m=0.64,
            pillars=(1024, 1024),
            features=16,
            layers=(1, 1, 1),
            widths=(16, 16, 16),
            neck=16,
        ),
        data=Synthetic(scenes=8, validation_scenes=4, field_of_view_deg=90.0),
        input=LidarInput(range_m=(0.0, -10.24, -3.0, 20.48, 10.24, 1.0), intensity=False),
        task=LidarTask(),
        limits=Limits(epochs=2, batch=2, log_every=1, monitor="loss"),
        precision="fp32",
        optimizer=_adamw(2e-3),
        schedule=_cosine_to_zero(2, 2),
    )


def small() -> Recipe:
    """About half an hour on one core: KITTI's range, with twice KITTI's pillar size and half the channels."""
    return Recipe(
        model=PointPillars(
            pillar_m=0.32,
            points_per_pillar=12,
            pillars=(12000, 12000),
            features=32,
            layers=(2, 3, 3),
            widths=(32, 64, 96),
            neck=48,
        ),
        data=Synthetic(scenes=1920, validation_scenes=64),
        input=LidarInput(intensity=False),
        task=LidarTask(),
        limits=Limits(epochs=5, batch=2, monitor="map", mode="max", patience=100, log_every=20, minutes=60),
        optimizer=_adamw(2e-3),
        schedule=_cosine_to_zero(5, 60),
    )


def medium() -> Recipe:
    """90 minutes on one core in bf16: five LiDARs, dynamic pillars, pasted objects, 5 times the steps of ``small``.

    The grid is that of ``small``, which gave the best average precision for the same training time: with pillars of
    0.16 m a step takes 4.3 times as long, with a head of twice the resolution 1.8 times.
    """
    return Recipe(
        model=PointPillars(
            pillar_m=0.32,
            dynamic=True,
            features=32,
            layers=(2, 3, 3),
            widths=(32, 64, 128),
            neck=48,
            box_weight=3.0,
            direction_weight=0.5,
            short_overlaps=(0.4, 0.25, 0.1),
            candidates=500,
            least_score=0.05,
            most_boxes=100,
        ),
        data=Synthetic(
            scenes=4096,
            validation_scenes=80,
            lidars=_LIDARS,
            sweeps=SweepSampling(paste=8, lift_m=0.15),
        ),
        input=LidarInput(
            range_m=(0.0, -39.68, -4.0, 69.12, 39.68, 2.0),
            intensity=False,
            own_vehicle_m=(2.6, 1.1),
            classes=_GROUND_CLASSES,
        ),
        task=LidarTask(),
        limits=Limits(epochs=12, batch=2, clip_norm=20.0, monitor="map", mode="max", patience=100, log_every=50),
        optimizer=_adamw(2e-3),
        schedule=_cosine_to_zero(12, 500),
        ema_decay=0.999,
    )


def second_stage() -> Recipe:
    """The second stage of the shipped PointPillars: one hour on one core, and half an hour for the scenes.

    The detector was not trained on these scenes: it finds more objects in scenes that it has seen.
    """
    return Recipe(
        model=LidarRCNN(),
        data=Synthetic(scenes=6000, validation_scenes=160, seed=8101, lidars=_LIDARS),
        input=BoxInput(),
        task=BoxTask(),
        limits=Limits(epochs=8, batch=128, evaluation_batch=512, clip_norm=5.0, patience=100, log_every=200),
        optimizer=AdamW(learning_rate=2e-3, weight_decay=0.02),
        schedule=_cosine_to_zero(8, 300),
        ema_decay=0.999,
    )


def large() -> Recipe:
    """For minutes on one GPU: KITTI's configuration, with a narrower last stage to keep the weights small."""
    return Recipe(
        model=PointPillars(widths=(64, 128, 128), neck=96),
        data=Synthetic(scenes=4096, validation_scenes=128),
        input=LidarInput(intensity=False),
        task=LidarTask(),
        limits=_minutes_on_a_gpu(epochs=6, batch=8),
        optimizer=_adamw(1.5e-3),
        schedule=_cosine_to_zero(6, 200),
    )


def full() -> Recipe:
    """mmdet3d's KITTI 3-class PointPillars as published, for 80 epochs on more scenes, on a GPU."""
    return Recipe(
        model=PointPillars(),
        data=Synthetic(scenes=16384, validation_scenes=512),
        input=LidarInput(),
        task=LidarTask(),
        limits=Limits(
            epochs=80, batch=16, evaluation_batch=8, monitor="map", mode="max", patience=100, loader_threads=8
        ),
        optimizer=_adamw(1e-3),
        schedule=_cosine_to_zero(80, 1000),
    )


def fcos3d_tiny() -> Recipe:
    """Seconds on one core: images of 310 x 94."""
    return Recipe(
        model=FCOS3D(backbone="resnet18", base_width=8, head=32, priors=True),
        data=Synthetic(scenes=8, validation_scenes=4, seed=11, images=ImageSampling(shortest_px=4.0)),
        input=CameraInput(image=(96, 320), focal_px=KITTI_FOCAL_PX / 4),
        task=CameraTask(),
        limits=Limits(epochs=2, batch=2, log_every=1, monitor="loss"),
        precision="fp32",
        optimizer=_adamw(1e-3),
        schedule=_cosine_to_zero(2, 2),
    )


def fcos3d_small() -> Recipe:
    """Half an hour on two cores: ResNet-18 with half the channels, images of 621 x 188."""
    return Recipe(
        model=_SMALL_CAMERA,
        data=Synthetic(scenes=1536, validation_scenes=32, seed=11),
        input=_HALF_SIZE,
        task=CameraTask(),
        limits=Limits(epochs=8, batch=4, monitor="map", mode="max", patience=100, log_every=20, minutes=26),
        precision="fp32",
        optimizer=_adamw(1e-3),
        schedule=_cosine_to_zero(8, 60),
    )


def fcos3d_large() -> Recipe:
    """For minutes on one GPU: the network of ``fcos3d_small``, more scenes."""
    return Recipe(
        model=_SMALL_CAMERA,
        data=Synthetic(scenes=3072, validation_scenes=128, seed=11),
        input=_HALF_SIZE,
        task=CameraTask(),
        limits=_minutes_on_a_gpu(epochs=24, batch=16),
        precision="fp32",
        optimizer=_adamw(8e-4),
        schedule=_cosine_to_zero(24, 300),
    )


def fcos3d_full() -> Recipe:
    """FCOS3D with ResNeXt-101 32x8d on images of KITTI's size, for a GPU."""
    return Recipe(
        model=FCOS3D(),
        data=Synthetic(scenes=16384, validation_scenes=512, seed=11, images=ImageSampling(shortest_px=16.0)),
        input=CameraInput(),
        task=CameraTask(),
        limits=Limits(
            epochs=24, batch=16, evaluation_batch=8, monitor="map", mode="max", patience=100, loader_threads=8
        ),
        precision="fp32",
        optimizer=_adamw(5e-4),
        schedule=_cosine_to_zero(24, 500),
    )


_LIDARS = (
    *("hdl64e", "hdl64e", "hdl32e", "hdl64e", "vlp32c_pair"),
    *("hdl64e", "os1_128", "hdl64e", "hdl32e", "vlp16"),
)
"""Half of the sweeps come from KITTI's LiDAR, the HDL-64E."""
_GROUND_CLASSES = (
    ObjectClass(name="pedestrian", size_m=(0.8, 0.65, 1.75), bottom_m=-1.75, reach_m=0.5),
    ObjectClass(name="cyclist", size_m=(1.76, 0.6, 1.74), bottom_m=-1.75, reach_m=0.5),
    ObjectClass(name="car", size_m=(4.1, 1.7, 1.6), bottom_m=-1.75, reach_m=1.0),
)
"""Anchors stand on the ground below the LiDAR and have the mean sizes of the synthetic scenes' objects."""
_SMALL_CAMERA = FCOS3D(backbone="resnet18", base_width=32, head=64, priors=True)
_HALF_SIZE = CameraInput(image=(192, 640), focal_px=KITTI_FOCAL_PX / 2)

RECIPES = {
    "tiny": tiny,
    "small": small,
    "medium": medium,
    "second_stage": second_stage,
    "large": large,
    "full": full,
    "fcos3d_tiny": fcos3d_tiny,
    "fcos3d_small": fcos3d_small,
    "fcos3d_large": fcos3d_large,
    "fcos3d_full": fcos3d_full,
}
