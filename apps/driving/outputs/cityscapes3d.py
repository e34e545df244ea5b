"""Boxes in the format of the Cityscapes 3D benchmark: one JSON file per image, in the vehicle frame.

The layout is the one documented in cityscapesscripts' evalObjectDetection3d: ``objects`` with ``2d`` (x, y, width,
height in pixels, of the whole object, clipped to the image), ``3d`` (center, dimensions length, width, height, rotation
as a quaternion, scalar first), ``label`` and ``score``.
"""

from __future__ import annotations

import json
import math

import numpy as np

from apps.driving.adapters.cityscapes3d import CAMERA, LABELS
from apps.driving.adapters.projection import image_boxes
from apps.driving.types import Boxes3D, Frame

FOLDER = "cityscapes3d"
"""The folder for the files of many images; the benchmark's script reads every JSON file in the folder it gets."""
_CLASSES = frozenset(("car", "truck", "bus", "train", "motorcycle", "bicycle"))


def file_name(frame: Frame) -> str | None:
    """The required name of a frame's file; None if the frame is not from Cityscapes."""
    return f"{frame.name}{LABELS}" if CAMERA in frame.cameras else None


def write(boxes: Boxes3D, frame: Frame) -> str:
    """The text of a frame's file. Skips classes that the benchmark does not have, and boxes outside the image."""
    camera = frame.cameras[CAMERA]
    height, width = camera.image_HWC.shape[:2]
    box_2d, _ = image_boxes(boxes, camera.intrinsics, camera.lidar_to_camera, (height, width))
    objects = []
    for index, name in enumerate(boxes.names):
        if name not in _CLASSES or np.isnan(box_2d[index]).any():
            continue
        left, top, right, bottom = box_2d[index].tolist()
        half = float(boxes.yaw[index]) / 2
        entry = {
            "label": name,
            "2d": {"amodal": [left, top, right - left, bottom - top]},
            "3d": {
                "center": boxes.centre_lidar_m[index].tolist(),
                "dimensions": boxes.size_m[index].tolist(),
                "rotation": [math.cos(half), 0.0, 0.0, math.sin(half)],
            },
        }
        objects.append(entry | ({} if boxes.scores is None else {"score": float(boxes.scores[index])}))
    return json.dumps({"objects": objects}) + "\n"
