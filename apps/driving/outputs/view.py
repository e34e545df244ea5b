"""The files of the form's viewer: points, image and boxes of a frame, small enough for a browser."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from apps.driving.adapters.projection import edge_pixels
from apps.driving.types import ASSUMED_SIZE_M, Boxes3D, Camera, Floats, Frame, ObjectClass, left_to_right

MAX_POINTS = 60_000


def files(
    frames: Sequence[Frame], boxes: Sequence[Boxes3D], classes: Sequence[Sequence[ObjectClass]] | None = None
) -> dict[str, bytes]:
    """``boxes.json``, and for each frame ``points.bin`` and ``image.jpg`` (other cameras under their own names).

    ``points.bin`` is float32 little-endian x, y, z, intensity. With several frames, all names except ``boxes.json``
    begin with the frame's name; ``boxes.json`` maps frames to files and has for each box, nearest first, its number in
    ``result.json``, class, score, size, position, corners in the LiDAR frame, and edges in each image (pixels).
    ``classes`` are those of each frame's network with their sizes, which a reviewer's missed objects have; a size that
    the network does not state is null.
    """
    views, contents, number = [], {}, 0
    for frame, found, known in zip(frames, boxes, classes or [()] * len(frames), strict=True):
        points_file, images = file_names(frame, many=len(frames) > 1)
        thinned_points = None if frame.points_lidar_m is None else thin(frame.points_lidar_m)
        if thinned_points is not None and points_file is not None:
            contents[points_file] = thinned_points.astype("<f4").tobytes()
        contents |= {file: jpeg(frame.cameras[name]) for name, file in images.items()}
        views.append(
            {
                "frame": frame.name,
                "points": None if frame.points_lidar_m is None else len(frame.points_lidar_m),
                "points_drawn": None if thinned_points is None else len(thinned_points),
                "points_file": points_file,
                "all_round": frame.all_round,
                "cameras": [
                    _image(name, images[name], camera) for name, camera in left_to_right(frame.cameras).items()
                ],
                "classes": {kind.name: None if kind.size_m == ASSUMED_SIZE_M else kind.size_m for kind in known},
                "boxes": _boxes(frame, found, number),
                "truth": None if frame.truth is None else _boxes(frame, frame.truth),
            }
        )
        number += len(found)
    return {"boxes.json": json.dumps({"frames": views}, separators=(",", ":")).encode(), **contents}


def file_names(frame: Frame, *, many: bool) -> tuple[str | None, dict[str, str]]:
    """The viewer's file with a frame's points, or None, and its image files by camera."""
    prefix = f"{safe_name(frame.name)}_" if many else ""
    images = {
        name: f"{prefix}image.jpg" if number == 0 else f"{prefix}{safe_name(name).lower()}.jpg"
        for number, name in enumerate(frame.cameras)
    }
    return None if frame.points_lidar_m is None else f"{prefix}points.bin", images


def _image(name: str, file: str, camera: Camera) -> dict[str, Any]:
    height, width = camera.image_HWC.shape[:2]
    return {"name": name, "file": file, "width": int(width), "height": int(height)}


def safe_name(name: str) -> str:
    """A name made safe for use in a file name."""
    return "".join(character if character.isalnum() or character in "-_" else "-" for character in name)


def thin(points_lidar_m: Floats, max_points: int = MAX_POINTS) -> Floats:
    """At most ``max_points`` points of the sweep; near the vehicle, where they are densest, more are dropped."""
    if len(points_lidar_m) <= max_points:
        return points_lidar_m
    distance = np.linalg.norm(points_lidar_m[:, :2], axis=1)
    weight = np.cumsum(np.clip(distance, 3, 30))
    # Equal steps in cumulative weight instead of random numbers, so the same frame always gives the same file.
    chosen = np.searchsorted(weight, np.linspace(weight[0], weight[-1], max_points))
    thinned: Floats = points_lidar_m[chosen[np.diff(chosen, prepend=-1) > 0]]
    return thinned


def jpeg(camera: Camera) -> bytes:
    """The camera's image as JPEG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(camera.image_HWC)).save(out, "JPEG", quality=85)
    return out.getvalue()


def _boxes(frame: Frame, boxes: Boxes3D, before: int | None = None) -> list[dict[str, Any]]:
    """The boxes, nearest first; numbers of detected boxes continue after the ``before`` boxes of other frames."""
    distance = np.hypot(boxes.centre_lidar_m[:, 0], boxes.centre_lidar_m[:, 1])
    corners = boxes.corners_lidar_m()
    edges = {name: _edges(boxes, camera) for name, camera in frame.cameras.items()}
    return [
        {
            **({} if before is None else {"number": before + int(index) + 1}),
            "class": boxes.names[index],
            "score": None if boxes.scores is None else round(float(boxes.scores[index]), 4),
            "distance_m": round(float(distance[index]), 2),
            "centre_lidar_m": [round(float(v), 3) for v in boxes.centre_lidar_m[index]],
            "size_m": [round(float(v), 3) for v in boxes.size_m[index]],
            "yaw": round(float(boxes.yaw[index]), 4),
            "corners_lidar_m": [[round(float(v), 3) for v in corner] for corner in corners[index]],
            "edges_px": {name: lines[index] for name, lines in edges.items() if lines[index]},
        }
        for index in np.argsort(distance, kind="stable")
    ]


def _edges(boxes: Boxes3D, camera: Camera) -> list[list[list[float]]]:
    """For each box its edges as x1, y1, x2, y2; empty if the box is not in the image."""
    height, width = camera.image_HWC.shape[:2]
    ends = edge_pixels(boxes, camera.intrinsics, camera.lidar_to_camera).reshape(len(boxes), 12, 4)
    lines: list[list[list[float]]] = []
    for box in ends:
        known = box[~np.isnan(box).any(axis=1)]
        x, y = known[:, [0, 2]], known[:, [1, 3]]
        visible = len(known) and x.max() > 0 and x.min() < width and y.max() > 0 and y.min() < height
        # An edge that passes close to the camera may end far outside; the viewer clips it at the border.
        bounded = np.clip(known, -20 * width, 20 * width)
        lines.append([[round(float(v), 1) for v in edge] for edge in bounded] if visible else [])
    return lines
