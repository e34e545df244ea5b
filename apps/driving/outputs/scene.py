"""The data from which a case's picture is drawn on request: the viewer's files, plus boxes and calibration."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from apps.driving.outputs.view import file_names
from apps.driving.types import Boxes3D, Camera, Frame

SCENE = "scene.npz"


def scene(frames: Sequence[Frame], boxes: Sequence[Boxes3D], *, many: bool) -> tuple[bytes, tuple[str, ...]]:
    """Boxes and calibration of frames as a NumPy archive, and the names of that archive and of the viewer's files.

    ``many``: whether the request had several frames; the names of the viewer's files depend on it.
    """
    arrays: dict[str, Any] = {}
    entries: list[dict[str, Any]] = []
    files: list[str] = []
    for number, (frame, found) in enumerate(zip(frames, boxes, strict=True)):
        points_file, images = file_names(frame, many=many)
        entry: dict[str, Any] = {"name": frame.name, "points": points_file, "cameras": images}
        for kind, kind_boxes in (("found", found), ("truth", frame.truth)):
            entry[kind] = None if kind_boxes is None else {"names": list(kind_boxes.names)}
            if kind_boxes is not None:
                arrays |= {f"{number} {kind} {name}": array for name, array in _arrays(kind_boxes).items()}
        for name, camera in frame.cameras.items():
            arrays[f"{number} {name} intrinsics"] = camera.intrinsics
            arrays[f"{number} {name} lidar_to_camera"] = camera.lidar_to_camera
        entries.append(entry)
        files += [] if points_file is None else [points_file]
        files += images.values()
    arrays["frames"] = np.frombuffer(json.dumps(entries).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue(), (SCENE, *files)


def read_scene(sources: Mapping[str, bytes]) -> tuple[list[Frame], list[Boxes3D]]:
    """The frames, with the points and images of the viewer, and the boxes found in them."""
    with np.load(io.BytesIO(sources[SCENE]), allow_pickle=False) as arrays:
        frames, boxes = [], []
        for number, entry in enumerate(json.loads(arrays["frames"].tobytes())):
            cameras = {
                name: Camera(
                    image_HWC=np.asarray(Image.open(io.BytesIO(sources[file]))),
                    intrinsics=arrays[f"{number} {name} intrinsics"],
                    lidar_to_camera=arrays[f"{number} {name} lidar_to_camera"],
                )
                for name, file in entry["cameras"].items()
            }
            points = entry["points"] and np.frombuffer(sources[entry["points"]], "<f4").reshape(-1, 4)
            truth = entry["truth"] and _boxes(arrays, f"{number} truth", entry["truth"])
            frames.append(Frame(name=entry["name"], points_lidar_m=points, cameras=cameras, truth=truth))
            boxes.append(_boxes(arrays, f"{number} found", entry["found"]))
    return frames, boxes


def _arrays(boxes: Boxes3D) -> dict[str, Any]:
    found = {"centre_lidar_m": boxes.centre_lidar_m, "size_m": boxes.size_m, "yaw": boxes.yaw}
    return found if boxes.scores is None else {**found, "scores": boxes.scores}


def _boxes(arrays: Any, prefix: str, entry: dict[str, Any]) -> Boxes3D:
    values = {
        name: arrays[f"{prefix} {name}"]
        for name in ("centre_lidar_m", "size_m", "yaw", "scores")
        if f"{prefix} {name}" in arrays
    }
    return Boxes3D(names=tuple(entry["names"]), **values)
