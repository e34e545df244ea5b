"""Converts between plain tensors and mmdet3d's structures. Box conventions are converted only here.

Ours: gravity centre, length, width, height, yaw about the LiDAR's z, counter-clockwise from x. mmdet3d's LiDAR boxes:
the same, but with the centre of the bottom face. Its camera boxes: centre of the bottom face in x right, y down, z
forward; length, height, width; yaw about y, from z towards x, 0 along x (KITTI's ``rotation_y``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apps.driving.models.library import load

_CENTRE = (0.5, 0.5, 0.5)


def wrap(angle: Tensor) -> Tensor:
    """Angles wrapped into [-pi, pi)."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi


def lidar_data(
    points: Sequence[Tensor], boxes_N7: Sequence[Tensor] | None = None, labels_N: Sequence[Tensor] | None = None
) -> dict[str, Any]:
    """Input of mmdet3d's preprocessor: points (N, 4 or 5) of each frame, with or without boxes (gravity centre).

    An empty sweep gets one point at the sensor, because mmdet3d derives the number of frames from the last pillar.
    """
    load()
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    samples = []
    for index in range(len(points)):
        sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
        if boxes_N7 is not None and labels_N is not None:
            sample.gt_instances_3d = InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes_N7[index].clone(), origin=_CENTRE), labels_3d=labels_N[index]
            )
        samples.append(sample)
    return {
        "inputs": {"points": [sweep if len(sweep) else sweep.new_zeros(1, sweep.shape[1]) for sweep in points]},
        "data_samples": samples,
    }


def camera_data(
    images_B3HW: Tensor | Sequence[Tensor],
    intrinsics_B33: Tensor,
    truth: Mapping[str, Sequence[Tensor]] | None = None,
    scales: Sequence[tuple[float, float]] | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Input of mmdet3d's preprocessor: RGB images, 0 to 255, and their intrinsics before the resize by ``scales``.

    ``scales`` are the factors of width and height of each image; ``metadata`` holds other entries that a head reads
    from an image's metadata (PGD's ``img_shape``, SMOKE's ``trans_mat``).

    ``truth`` holds for each image ``boxes_camera`` (N, 7: gravity centre, length, height, width, yaw about y),
    ``labels`` (N,), ``boxes_2d`` (N, 4), ``centres_2d`` (N, 2) and ``depths`` (N,). The intrinsics are needed only for
    prediction: with ``truth`` they are not copied to the host, so that a training step does not wait for the device.
    """
    load()
    from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample
    from mmengine.structures import InstanceData

    samples = []
    intrinsics = intrinsics_B33.cpu().numpy() if truth is None else None
    for index in range(len(images_B3HW)):
        scale = (1.0, 1.0) if scales is None else scales[index]
        sample = Det3DDataSample(metainfo={"box_type_3d": CameraInstance3DBoxes, "scale_factor": scale})
        if metadata is not None:
            sample.set_metainfo(dict(metadata[index]))
        if intrinsics is not None:
            sample.set_metainfo({"cam2img": intrinsics[index]})
        if truth is not None:
            sample.gt_instances_3d = InstanceData(
                bboxes_3d=CameraInstance3DBoxes(truth["boxes_camera"][index].clone(), origin=_CENTRE),
                labels_3d=truth["labels"][index],
                centers_2d=truth["centres_2d"][index],
                depths=truth["depths"][index],
            )
            sample.gt_instances = InstanceData(bboxes=truth["boxes_2d"][index], labels=truth["labels"][index].clone())
        samples.append(sample)
    return {"inputs": {"img": list(images_B3HW)}, "data_samples": samples}


def predict(detector: nn.Module, data: dict[str, Any]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """mmdet3d's own predictions for each sample: boxes (N, 7; gravity centre), scores (N,), labels (N,)."""
    network: Any = detector
    data = network.data_preprocessor(data, training=False)
    results = network(data["inputs"], data["data_samples"], mode="predict")
    return [instance_tensors(result.pred_instances_3d) for result in results]


def instance_tensors(instances: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 7; gravity centre), scores (N,) and labels (N,) of mmdet3d's ``InstanceData``."""
    boxes = torch.cat([instances.bboxes_3d.gravity_center, instances.bboxes_3d.tensor[:, 3:7]], dim=1)
    return boxes.float(), instances.scores_3d.float(), instances.labels_3d
