"""Boxes in the format of the KITTI object benchmark (see its readme.txt): one line each, in the rectified camera."""

from __future__ import annotations

import numpy as np

from apps.driving.adapters.kitti import to_rectified
from apps.driving.adapters.projection import image_boxes
from apps.driving.types import Boxes3D, Camera, wrap_angle

_SPELLING = {"person_sitting": "Person_sitting", "dontcare": "DontCare"}


def write(boxes: Boxes3D, camera: Camera) -> str:
    """The text of a result file (16 columns), or of a label file (15) if the boxes have no scores.

    2D boxes and truncation are projected if the boxes have none. Boxes outside the image are skipped, because the
    benchmark only covers what is in the image. Occlusion is -1 if unknown. Blanks in a class name, which would split
    the column, are written as underscores.
    """
    location, rotation = to_rectified(boxes, camera)
    size = (camera.image_HWC.shape[0], camera.image_HWC.shape[1])
    projected, cut = image_boxes(boxes, camera.intrinsics, camera.lidar_to_camera, size)
    box_2d = projected if boxes.box_2d is None else boxes.box_2d
    truncation = cut if boxes.truncation is None else boxes.truncation
    alpha = wrap_angle(rotation - np.arctan2(location[:, 0], location[:, 2]))
    lines = []
    for index, name in enumerate(boxes.names):
        if np.isnan(box_2d[index]).any():
            continue
        length, width, height = boxes.size_m[index]
        occlusion = -1 if boxes.occlusion is None else int(boxes.occlusion[index])
        values = [*box_2d[index], height, width, length, *location[index], rotation[index]]
        columns = [
            _SPELLING.get(name, "_".join(name.split()).capitalize()),
            f"{truncation[index]:.2f}",
            str(occlusion),
            f"{alpha[index]:.4f}",
            *(f"{value:.4f}" for value in values),
        ]
        if boxes.scores is not None:
            columns.append(f"{boxes.scores[index]:.4f}")
        lines.append(" ".join(columns))
    return "".join(line + "\n" for line in lines)
