"""Boxes as the Cityscapes 3D benchmark takes them: one JSON file an image, in the vehicle's frame.

The layout is that which cityscapesscripts' evalObjectDetection3d states: ``objects`` with ``2d`` (x, y, width, height
in pixels, of the whole object, cut at the image's border), ``3d`` (center, dimensions length, width, height, rotation
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
"""Of the files of many images: the benchmark's script takes every JSON file that lies in the folder it is given."""
_CLASSES = frozenset(("car", "truck", "bus", "train", "motorcycle", "bicycle"))


def file_name(frame: Frame) -> str | None:
    """What the file of a frame must be called; None where the frame is none of Cityscapes."""
    return f"{frame.name}{LABELS}" if CAMERA in frame.cameras else None


def write(boxes: Boxes3D, frame: Frame) -> str:
    """The text of a frame's file. Classes that the benchmark has not, and boxes beyond the image, are left out."""
    camera = frame.cameras[CAMERA]
    height, width = camera.image_HWC.shape[:2]
    edges, _ = image_boxes(boxes, camera.intrinsics, camera.lidar_to_camera, (height, width))
    objects = []
    for index, name in enumerate(boxes.names):
        if name not in _CLASSES or np.isnan(edges[index]).any():
            continue
        left, top, right, bottom = edges[index].tolist()
        half = float(boxes.yaw[index]) / 2
        described = {
            "label": name,
            "2d": {"amodal": [left, top, right - left, bottom - top]},
            "3d": {
                "center": boxes.centre_lidar_m[index].tolist(),
                "dimensions": boxes.size_m[index].tolist(),
                "rotation": [math.cos(half), 0.0, 0.0, math.sin(half)],
            },
        }
        objects.append(described | ({} if boxes.scores is None else {"score": float(boxes.scores[index])}))
    return json.dumps({"objects": objects}) + "\n"
