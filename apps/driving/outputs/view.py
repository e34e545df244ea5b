"""What the form's viewer reads: points, image and boxes of a frame, small enough to be looked at in a browser."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from apps.driving.adapters.projection import edge_pixels
from apps.driving.types import Boxes3D, Camera, Floats, Frame

MOST_POINTS = 60_000


def files(frames: Sequence[Frame], boxes: Sequence[Boxes3D]) -> dict[str, bytes]:
    """``boxes.json``, and for each frame ``points.bin`` and ``image.jpg`` (further cameras under their own names).

    ``points.bin`` is float32 little-endian x, y, z, intensity. With several frames, all names but ``boxes.json`` begin
    with the frame's name; ``boxes.json`` says which file is whose.
    """
    views = [describe(frame, found, many=len(frames) > 1) for frame, found in zip(frames, boxes, strict=True)]
    made = {"boxes.json": json.dumps({"frames": views}, separators=(",", ":")).encode()}
    for frame, view in zip(frames, views, strict=True):
        if frame.points_lidar_m is not None:
            made[view["points_file"]] = thin(frame.points_lidar_m).astype("<f4").tobytes()
        for camera in view["cameras"]:
            made[camera["file"]] = jpeg(frame.cameras[camera["name"]])
    return made


def describe(frame: Frame, boxes: Boxes3D, *, many: bool = False) -> dict[str, Any]:
    """Boxes in JSON types: class, score, size, place, corners in the LiDAR frame, and edges in each image (pixels).

    Sorted from the nearest to the farthest. ``truth`` is there where the frame brought labels.
    """
    prefix = f"{_plain(frame.name)}_" if many else ""
    return {
        "frame": frame.name,
        "points": None if frame.points_lidar_m is None else len(frame.points_lidar_m),
        "points_drawn": None if frame.points_lidar_m is None else len(thin(frame.points_lidar_m)),
        "points_file": None if frame.points_lidar_m is None else f"{prefix}points.bin",
        "cameras": [
            {
                "name": name,
                "file": f"{prefix}image.jpg" if number == 0 else f"{prefix}{_plain(name).lower()}.jpg",
                "width": int(camera.image_HWC.shape[1]),
                "height": int(camera.image_HWC.shape[0]),
            }
            for number, (name, camera) in enumerate(frame.cameras.items())
        ],
        "boxes": _boxes(frame, boxes),
        "truth": None if frame.truth is None else _boxes(frame, frame.truth),
    }


def _plain(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-_" else "-" for character in name)


def thin(points_lidar_m: Floats, most: int = MOST_POINTS) -> Floats:
    """At most ``most`` points, evenly out of all; near the vehicle, where they lie densest, more are left out."""
    if len(points_lidar_m) <= most:
        return points_lidar_m
    distance = np.linalg.norm(points_lidar_m[:, :2], axis=1)
    weight = np.cumsum(np.clip(distance, 3, 30))
    # Equal steps in the cumulative weight: no random numbers, so the same frame gives the same file.
    chosen = np.unique(np.searchsorted(weight, np.linspace(weight[0], weight[-1], most)))
    thinned: Floats = points_lidar_m[chosen]
    return thinned


def jpeg(camera: Camera, quality: int = 85) -> bytes:
    """The camera's picture as JPEG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(camera.image_HWC)).save(out, "JPEG", quality=quality)
    return out.getvalue()


def _boxes(frame: Frame, boxes: Boxes3D) -> list[dict[str, Any]]:
    distance = np.hypot(boxes.centre_lidar_m[:, 0], boxes.centre_lidar_m[:, 1])
    corners = boxes.corners_lidar_m()
    edges = {name: _edges(boxes, camera) for name, camera in frame.cameras.items()}
    return [
        {
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
    """For each box its edges x1, y1, x2, y2; none where the image does not show it."""
    height, width = camera.image_HWC.shape[:2]
    ends = edge_pixels(boxes, camera.intrinsics, camera.lidar_to_camera).reshape(len(boxes), 12, 4)
    lines: list[list[list[float]]] = []
    for box in ends:
        known = box[~np.isnan(box).any(axis=1)]
        x, y = known[:, [0, 2]], known[:, [1, 3]]
        seen = len(known) and x.max() > 0 and x.min() < width and y.max() > 0 and y.min() < height
        # An edge that passes close to the camera may end far outside; the viewer cuts it at the border.
        bounded = np.clip(known, -20 * width, 20 * width)
        lines.append([[round(float(v), 1) for v in edge] for edge in bounded] if seen else [])
    return lines
