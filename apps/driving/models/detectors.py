"""mmdet3d's detectors for points, cameras and boxes in the conventions of ``Frame``.

The preprocessing of mmdet3d's test pipelines (columns of a point, axes of nuScenes' LiDAR, colour order, SMOKE's affine
resize) is done here, with the settings of the configuration's own steps.
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
from apps.driving.models.decoding import BoxTensors
from apps.driving.models.fast import FastPointPillars, fast_camera, fold_batch_norms, has_fast_pillars
from apps.driving.models.head_maps import compute_by
from apps.driving.models.own_camera import ImageResize
from apps.driving.types import Camera, Floats, Frame
from shared.deploy.programs.program import Program

_OWN_VEHICLE_HALF_SIDE_M = 1.0


@dataclass(frozen=True, slots=True)
class PointLayout:
    """Converts a point of ``Frame`` (x, y, z in metres, intensity in [0, 1]) to a network's input.

    ``columns`` are indices into the columns of the data set's files: 0 to 2 are x, y, z, 3 is the intensity,
    multiplied by ``intensity``, and 4 the seconds since the sweep. ``quarter_turn`` is the number of clockwise
    90-degree rotations, seen from above, from our axes (x forward, y left) to the network's: 1 if they are x right and
    y forward, as in nuScenes. ``earlier_sweeps`` is the number of earlier sweeps that the network was trained on with
    each frame; with ``remove_close`` their points within a metre of the sensor, the vehicle itself, are removed.
    """

    columns: tuple[int, ...]
    intensity: float
    quarter_turn: int
    earlier_sweeps: int = 0
    remove_close: bool = False

    def points(self, frame: Frame) -> Floats:
        """(N, 4) points of a frame. For a network trained on several sweeps (N, 5): the points of all sweeps in the
        frame's LiDAR coordinates, with the seconds since their sweep in the last column (mmdet3d's
        ``LoadPointsFromMultiSweeps``).
        """
        assert frame.points_lidar_m is not None
        if not self.earlier_sweeps:
            return frame.points_lidar_m
        sweeps = [np.pad(frame.points_lidar_m, ((0, 0), (0, 1)))]
        for sweep in frame.earlier_sweeps[: self.earlier_sweeps]:
            points = sweep.points_lidar_m
            if self.remove_close:
                points = points[(np.abs(points[:, :2]) >= _OWN_VEHICLE_HALF_SIDE_M).any(axis=1)]
            moved = points[:, :3] @ sweep.to_frame[:3, :3].T + sweep.to_frame[:3, 3]
            seconds = np.full((len(points), 1), sweep.seconds)
            sweeps.append(np.concatenate([moved, points[:, 3:4], seconds], axis=1).astype(np.float32))
        return np.concatenate(sweeps)

    def to_network(self, points_NC: Tensor) -> Tensor:
        """(N, C) network input from points (N, 4), or (N, 5) with the seconds since their sweep."""
        x, y, z, intensity, *seconds = points_NC.unbind(1)
        for _ in range(self.quarter_turn):
            x, y = -y, x
        columns = (x, y, z, intensity * self.intensity, seconds[0] if seconds else torch.zeros_like(x))
        return torch.stack([columns[column] for column in self.columns], dim=1)

    def from_network(self, boxes_N7: Tensor) -> Tensor:
        """(N, 7) the network's boxes in the LiDAR frame of ``Frame``, with yaw in [-pi, pi)."""
        x, y, yaw = boxes_N7[:, 0:1], boxes_N7[:, 1:2], boxes_N7[:, 6:7]
        for _ in range(self.quarter_turn):
            x, y, yaw = y, -x, yaw - torch.pi / 2
        return torch.cat([x, y, boxes_N7[:, 2:6], structures.wrap(yaw)], dim=1)


def point_layout(model: MMDet3DModel) -> PointLayout:
    """The point layout of the configuration's test pipeline."""
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
        # mmdet3d overwrites the fifth column with the time, and omits the intensity by default.
        columns=_columns(sweeps.get("use_dim", [0, 1, 2, 4])),
        earlier_sweeps=sweeps.get("sweeps_num", 10),
        remove_close=sweeps.get("remove_close", False),
    )


def _columns(use_dim: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(range(use_dim)) if isinstance(use_dim, int) else tuple(use_dim)


class LidarNetwork:
    """An mmdet3d LiDAR detector for prediction, by the fast path or by mmdet3d's own modules."""

    def __init__(
        self, detector: nn.Module, layout: PointLayout, *, fast: bool = True, program: Program | None = None
    ) -> None:
        self.layout = layout
        self.detector: nn.Module = detector.eval()
        if fast and has_fast_pillars(detector):
            device = next(detector.parameters()).device
            self.detector = FastPointPillars(detector, program=program).to(device)
        elif fast:
            self.detector = fold_batch_norms(detector)
            if program is not None:
                compute_by(program, self.detector)

    def predict(self, points_NC: Tensor) -> BoxTensors:
        """Detections in points (N, 4 or 5), with boxes in the LiDAR frame of ``Frame``; none if there are no points."""
        if not len(points_NC):
            return points_NC.new_zeros(0, 7), points_NC.new_zeros(0), points_NC.new_zeros(0, dtype=torch.long)
        points = self.layout.to_network(points_NC)
        if isinstance(self.detector, FastPointPillars):
            boxes, scores, labels = self.detector.predict(points)
        else:
            boxes, scores, labels = structures.predict(self.detector, structures.lidar_data([points]))[0]
        return self.layout.from_network(boxes), scores, labels


class CameraNetwork:
    """An mmdet3d camera detector for prediction, one image at a time, as in mmdet3d's tests.

    ``resize`` and ``affine`` are as in ``OwnCamera``.
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

    def predict(self, camera: Camera, device: str | torch.device = "cpu") -> BoxTensors:
        """Detections in an image, with boxes in the camera frame (centre; length, height, width; yaw about y)."""
        image = np.ascontiguousarray(camera.image_HWC[:, :, ::-1])  # mmdet3d reads images as BGR
        metadata: dict[str, Any] = {}
        scale = (1.0, 1.0)
        if self.resize is not None:
            image, scale = resized(image, self.resize)
        if self.affine is not None:
            import cv2

            width, height, stride = self.affine
            image = cv2.warpAffine(image, centred_affine(image.shape[:2], (width, height))[:2], (width, height))
            metadata["trans_mat"] = centred_affine(camera.image_HWC.shape[:2], (width // stride, height // stride))
        metadata["img_shape"] = image.shape[:2]
        tensor = torch.from_numpy(image).permute(2, 0, 1).to(device)
        data = structures.camera_data(
            [tensor], torch.from_numpy(camera.intrinsics[None]), metadata=[metadata], scales=[scale]
        )
        return structures.predict(self.detector, data)[0]


def resized(image_HWC: NDArray[np.uint8], resize: ImageResize) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """An image resized by mmcv's ``Resize``, and the factors of its width and height."""
    from mmcv.transforms import Resize

    step = Resize(scale=resize.scale, scale_factor=resize.factor, keep_ratio=resize.keep_ratio)
    result = step.transform({"img": image_HWC})
    return result["img"], result["scale_factor"]


def centred_affine(shape: tuple[int, ...], size: tuple[int, int]) -> NDArray[np.float32]:
    """(3, 3) transform of an image of ``shape`` (height, width) to ``size`` (width, height): the widths match, and the
    centres coincide.

    As in mmdet3d's ``AffineResize``: rows that do not fit are cropped, and missing rows are black.
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
    """Wraps ``detector``, which ``model`` built, with its weights, for prediction; ``program`` is made from
    ``dense_imported``."""
    fast = fast and model.fast
    if model.sensor == "lidar":
        return LidarNetwork(detector, point_layout(model), fast=fast, program=program)
    if model.own_camera is not None:
        return CameraNetwork(detector, model.own_camera.affine, resize=model.own_camera.resize, fast=fast)
    step = configuration(model.config).step("AffineResize")
    affine = None if step is None else (*step["img_scale"], step["down_ratio"])
    return CameraNetwork(detector, affine, fast=fast)
