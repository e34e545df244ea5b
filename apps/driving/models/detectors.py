"""mmdet3d's detectors as ``Frame`` sees the world: points and cameras in our conventions in, boxes in them out.

What mmdet3d's test pipelines do to a file before the network (columns of a point, axes of nuScenes' LiDAR, order of an
image's colours, SMOKE's affine resize) is done here, after the steps that the configuration itself lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.driving.models import structures
from apps.driving.models.configurations import MMDet3DModel, configuration
from apps.driving.models.fast import FastPointPillars, fast_camera, folded, has_fast_pillars
from apps.driving.models.own_camera import ImageResize
from apps.driving.types import Camera, Floats, Frame
from shared.deploy.programs.program import Program

_CLOSE_M = 1.0

Found = tuple[Tensor, Tensor, Tensor]
"""Boxes (N, 7; gravity centre, sizes, yaw), scores (N,) and labels (N,)."""


@dataclass(frozen=True, slots=True)
class PointLayout:
    """How a configuration's network takes a point of ``Frame`` (x, y, z in metres, intensity in [0, 1]).

    ``columns`` are those of the data set's files: 0 to 2 for x, y, z, 3 for the intensity, ``intensity`` times ours,
    and 4 for the seconds since the sweep. ``quarter_turn`` is by how many quarters its axes are turned clockwise, seen
    from above, from ours (x forward, y left): 1 where they are x right and y forward, as in nuScenes.
    ``earlier_sweeps`` is the number of sweeps before the frame's own that it learnt from together with it; with
    ``remove_close`` without what lies within a metre of their sensor, the vehicle itself.
    """

    columns: tuple[int, ...]
    intensity: float
    quarter_turn: int
    earlier_sweeps: int = 0
    remove_close: bool = False

    def points(self, frame: Frame) -> Floats:
        """(N, 4) points of a frame; of a network that learnt from several sweeps (N, 5), all of them in the frame's own
        LiDAR frame, the last column the seconds since each was seen (mmdet3d's ``LoadPointsFromMultiSweeps``).
        """
        assert frame.points_lidar_m is not None
        if not self.earlier_sweeps:
            return frame.points_lidar_m
        parts = [np.pad(frame.points_lidar_m, ((0, 0), (0, 1)))]
        for sweep in frame.earlier_sweeps[: self.earlier_sweeps]:
            points = sweep.points_lidar_m
            if self.remove_close:
                points = points[(np.abs(points[:, :2]) >= _CLOSE_M).any(axis=1)]
            place = points[:, :3] @ sweep.to_frame[:3, :3].T + sweep.to_frame[:3, 3]
            lag = np.full((len(points), 1), sweep.seconds)
            parts.append(np.concatenate([place, points[:, 3:4], lag], axis=1).astype(np.float32))
        return np.concatenate(parts)

    def to_network(self, points_NC: Tensor) -> Tensor:
        """(N, C) points as the network takes them, of (N, 4), or of (N, 5) with the seconds since they were seen."""
        x, y, z, intensity, *lag = points_NC.unbind(1)
        for _ in range(self.quarter_turn):
            x, y = -y, x
        known = (x, y, z, intensity * self.intensity, lag[0] if lag else torch.zeros_like(x))
        return torch.stack([known[column] for column in self.columns], dim=1)

    def from_network(self, boxes_N7: Tensor) -> Tensor:
        """(N, 7) boxes in the LiDAR frame of ``Frame``, yaw in [-pi, pi)."""
        x, y, yaw = boxes_N7[:, 0:1], boxes_N7[:, 1:2], boxes_N7[:, 6:7]
        for _ in range(self.quarter_turn):
            x, y, yaw = y, -x, yaw - torch.pi / 2
        return torch.cat([x, y, boxes_N7[:, 2:6], structures.wrap(yaw)], dim=1)


def point_layout(model: MMDet3DModel) -> PointLayout:
    """The layout that the steps of the configuration's test pipeline give."""
    if model.own is not None:
        return PointLayout(
            columns=model.own.columns,
            intensity=model.own.intensity,
            quarter_turn=model.own.quarter_turn,
            earlier_sweeps=model.own.earlier_sweeps,
            remove_close=model.own.remove_close,
        )
    document = configuration(model.config)
    loads, sweeps = document.step("LoadPointsFromFile"), document.step("LoadPointsFromMultiSweeps")
    assert loads is not None
    nuscenes = model.family.data == "nuScenes"
    single = PointLayout(
        columns=_columns(loads["use_dim"]), intensity=255.0 if nuscenes else 1.0, quarter_turn=int(nuscenes)
    )
    if sweeps is None:
        return single
    return replace(
        single,
        # mmdet3d writes the time over the fifth column, and by default leaves the intensity out.
        columns=_columns(sweeps.get("use_dim", [0, 1, 2, 4])),
        earlier_sweeps=sweeps.get("sweeps_num", 10),
        remove_close=sweeps.get("remove_close", False),
    )


def _columns(use_dim: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(range(use_dim)) if isinstance(use_dim, int) else tuple(use_dim)


class LidarNetwork:
    """A LiDAR detector of mmdet3d, for prediction: the fast path, or mmdet3d's own modules."""

    def __init__(
        self, detector: nn.Module, layout: PointLayout, *, fast: bool = True, program: Program | None = None
    ) -> None:
        self.layout = layout
        self.detector: nn.Module = detector.eval()
        if fast and has_fast_pillars(detector):
            place = next(detector.parameters()).device
            self.detector = FastPointPillars(detector, program=program).to(place)
        elif fast:
            self.detector = folded(detector)

    def predict(self, points_NC: Tensor) -> Found:
        """What is found in points (N, 4 or 5): boxes in the LiDAR frame of ``Frame``. Without a point, nothing."""
        if not len(points_NC):
            return points_NC.new_zeros(0, 7), points_NC.new_zeros(0), points_NC.new_zeros(0, dtype=torch.long)
        points = self.layout.to_network(points_NC)
        if isinstance(self.detector, FastPointPillars):
            boxes, scores, labels = self.detector.predict(points)
        else:
            boxes, scores, labels = structures.predict(self.detector, structures.lidar_data([points]))[0]
        return self.layout.from_network(boxes), scores, labels


class CameraNetwork:
    """A camera detector for prediction: one image at a time, as mmdet3d tests it.

    ``resize`` and ``affine`` are those of ``OwnCamera``.
    """

    def __init__(
        self,
        detector: nn.Module,
        affine: tuple[int, int, int] | None = None,
        *,
        resize: ImageResize | None = None,
        fast: bool = True,
    ) -> None:
        self.affine, self.resize = affine, resize
        self.detector: nn.Module = fast_camera(detector) if fast else detector.eval()

    def predict(self, camera: Camera, device: str | torch.device = "cpu") -> Found:
        """What is found in an image: boxes in the camera's frame (centre; length, height, width; yaw about y)."""
        image = np.ascontiguousarray(camera.image_HWC[:, :, ::-1])  # mmdet3d reads colours as blue, green, red
        facts: dict[str, Any] = {}
        scale = (1.0, 1.0)
        if self.resize is not None:
            image, scale = resized(image, self.resize)
        if self.affine is not None:
            import cv2

            width, height, stride = self.affine
            image = cv2.warpAffine(image, centred_affine(image.shape[:2], (width, height))[:2], (width, height))
            facts["trans_mat"] = centred_affine(camera.image_HWC.shape[:2], (width // stride, height // stride))
        facts["img_shape"] = image.shape[:2]
        tensor = torch.from_numpy(image).permute(2, 0, 1).to(device)
        data = structures.camera_data(
            [tensor], torch.from_numpy(camera.intrinsics[None]), facts=[facts], scales=[scale]
        )
        return structures.predict(self.detector, data)[0]


def resized(image_HWC: NDArray[np.uint8], resize: ImageResize) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """An image as mmcv's ``Resize`` leaves it, and the factors of its width and height."""
    from mmcv.transforms import Resize

    step = Resize(scale=resize.scale, scale_factor=resize.factor, keep_ratio=resize.keep_ratio)
    found = step.transform({"img": image_HWC})
    return found["img"], found["scale_factor"]


def centred_affine(shape: tuple[int, ...], size: tuple[int, int]) -> NDArray[np.float32]:
    """(3, 3): an image of ``shape`` (height, width) to one of ``size`` (width, height), as wide and centre on centre.

    That of mmdet3d's ``AffineResize``: rows that do not fit are cut, or filled with black.
    """
    height, width = shape[:2]
    scale = size[0] / width
    return np.array(
        [
            [scale, 0, size[0] / 2 - scale * width / 2],
            [0, scale, size[1] / 2 - scale * height / 2],
            [0, 0, 1],
        ],
        np.float32,
    )


def network_of(
    model: MMDet3DModel, detector: nn.Module, *, fast: bool = True, program: Program | None = None
) -> LidarNetwork | CameraNetwork:
    """The detector that ``model`` built, with its weights, ready to predict; ``program`` is of ``dense_heads``."""
    fast = fast and model.fast
    if model.sensor == "lidar":
        return LidarNetwork(detector, point_layout(model), fast=fast, program=program)
    if model.own_camera is not None:
        return CameraNetwork(detector, model.own_camera.affine, resize=model.own_camera.resize, fast=fast)
    step = configuration(model.config).step("AffineResize")
    affine = None if step is None else (*step["img_scale"], step["down_ratio"])
    return CameraNetwork(detector, affine, fast=fast)
