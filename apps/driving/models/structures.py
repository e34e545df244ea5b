"""Between plain tensors and mmdet3d's structures. Conventions are converted here and nowhere else.

Ours: gravity centre, length, width, height, yaw about the LiDAR's z, counter-clockwise from x. mmdet3d's LiDAR boxes:
the same with the centre of the bottom face. Its camera boxes: bottom centre in x right, y down, z forward; length,
height, width; yaw about y, turning z towards x, 0 along x (KITTI's ``rotation_y``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apps.driving.models.library import load

_CENTRE = (0.5, 0.5, 0.5)


def wrap(angle: Tensor) -> Tensor:
    """Angles in [-pi, pi)."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi


def lidar_data(
    points: Sequence[Tensor], boxes_N7: Sequence[Tensor] | None = None, labels_N: Sequence[Tensor] | None = None
) -> dict[str, Any]:
    """What mmdet3d's preprocessor takes: points (N, 4 or 5) of each frame, with or without boxes (gravity centre).

    A sweep without a point gets one at the sensor's own place: mmdet3d reads the number of frames off the last pillar.
    """
    load()
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    samples = []
    for number in range(len(points)):
        sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
        if boxes_N7 is not None and labels_N is not None:
            sample.gt_instances_3d = InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes_N7[number].clone(), origin=_CENTRE), labels_3d=labels_N[number]
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
    facts: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """What mmdet3d's preprocessor takes: RGB images 0 to 255, and their intrinsics before their resize by ``scales``.

    ``scales`` are factors of width and height for each image; ``facts`` is what else a head reads of an image's
    metadata (PGD its ``img_shape``, SMOKE its ``trans_mat``).

    ``truth`` holds for each image ``boxes_camera`` (N, 7: gravity centre, length, height, width, yaw about y),
    ``labels`` (N,), ``boxes_2d`` (N, 4), ``centres_2d`` (N, 2) and ``depths`` (N,). The intrinsics serve prediction
    alone: with ``truth`` they stay where they are, so that a training step does not wait for the device.
    """
    load()
    from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample
    from mmengine.structures import InstanceData

    samples = []
    known = intrinsics_B33.cpu().numpy() if truth is None else None
    for number in range(len(images_B3HW)):
        scale = (1.0, 1.0) if scales is None else scales[number]
        sample = Det3DDataSample(metainfo={"box_type_3d": CameraInstance3DBoxes, "scale_factor": scale})
        if facts is not None:
            sample.set_metainfo(dict(facts[number]))
        if known is not None:
            sample.set_metainfo({"cam2img": known[number]})
        if truth is not None:
            sample.gt_instances_3d = InstanceData(
                bboxes_3d=CameraInstance3DBoxes(truth["boxes_camera"][number].clone(), origin=_CENTRE),
                labels_3d=truth["labels"][number],
                centers_2d=truth["centres_2d"][number],
                depths=truth["depths"][number],
            )
            sample.gt_instances = InstanceData(bboxes=truth["boxes_2d"][number], labels=truth["labels"][number].clone())
        samples.append(sample)
    return {"inputs": {"img": list(images_B3HW)}, "data_samples": samples}


def predict(detector: nn.Module, data: dict[str, Any]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """mmdet3d's own prediction of each sample: boxes (N, 7; gravity centre), scores (N,), labels (N,)."""
    network: Any = detector
    data = network.data_preprocessor(data, training=False)
    results = network(data["inputs"], data["data_samples"], mode="predict")
    return [instance_tensors(result.pred_instances_3d) for result in results]


def instance_tensors(found: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 7; gravity centre), scores (N,) and labels (N,) of mmdet3d's ``InstanceData``."""
    boxes = torch.cat([found.bboxes_3d.gravity_center, found.bboxes_3d.tensor[:, 3:7]], dim=1)
    return boxes.float(), found.scores_3d.float(), found.labels_3d
