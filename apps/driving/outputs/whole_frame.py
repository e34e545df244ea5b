"""A complete frame in one archive: all points, earlier sweeps, images and calibration, for servers that keep inputs."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from apps.driving.types import Camera, EarlierSweep, Frame


def input_name(index: int) -> str:
    """The name under which frame ``index`` of a request, counted from 0, is kept."""
    return f"frame-{index:04d}.npz"


def whole_frame(frame: Frame) -> bytes:
    """A NumPy archive: points as float32, also of earlier sweeps, images as PNG, their cameras; no ground truth."""
    arrays: dict[str, Any] = {"cameras": np.frombuffer(json.dumps(list(frame.cameras)).encode(), np.uint8)}
    if frame.points_lidar_m is not None:
        arrays["points"] = frame.points_lidar_m.astype("<f4")
    if frame.lidar_to_global is not None:
        arrays["lidar_to_global"] = frame.lidar_to_global
    for number, sweep in enumerate(frame.earlier_sweeps):
        arrays[f"earlier {number} points"] = sweep.points_lidar_m.astype("<f4")
        arrays[f"earlier {number} to_frame"] = sweep.to_frame
        arrays[f"earlier {number} seconds"] = np.float64(sweep.seconds)
    for number, camera in enumerate(frame.cameras.values()):
        arrays[f"{number} image"] = np.frombuffer(png(camera), np.uint8)
        arrays[f"{number} intrinsics"] = camera.intrinsics
        arrays[f"{number} lidar_to_camera"] = camera.lidar_to_camera
        arrays[f"{number} reference_offset_m"] = camera.reference_offset_m
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def read_whole_frame(content: bytes, name: str) -> Frame:
    """The frame from an archive of ``whole_frame``, with the given name; older archives have no earlier sweeps."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        cameras = {
            camera: Camera(
                image_HWC=np.asarray(Image.open(io.BytesIO(arrays[f"{number} image"].tobytes()))),
                intrinsics=arrays[f"{number} intrinsics"],
                lidar_to_camera=arrays[f"{number} lidar_to_camera"],
                reference_offset_m=arrays.get(f"{number} reference_offset_m", np.zeros(3, np.float32)),
            )
            for number, camera in enumerate(json.loads(arrays["cameras"].tobytes()))
        }
        earlier = tuple(
            EarlierSweep(
                points_lidar_m=arrays[f"earlier {number} points"],
                to_frame=arrays[f"earlier {number} to_frame"],
                seconds=float(arrays[f"earlier {number} seconds"]),
            )
            for number in range(sum(key.endswith(" to_frame") for key in arrays))
        )
        return Frame(
            name=name,
            points_lidar_m=arrays.get("points"),
            cameras=cameras,
            earlier_sweeps=earlier,
            lidar_to_global=arrays.get("lidar_to_global"),
        )


def png(camera: Camera) -> bytes:
    """The image as PNG, lossless, with the fastest compression."""
    content = io.BytesIO()
    Image.fromarray(camera.image_HWC).save(content, "PNG", compress_level=1)
    return content.getvalue()
