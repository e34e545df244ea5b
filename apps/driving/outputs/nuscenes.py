"""A submission to nuScenes' detection task: boxes by sample in the global frame, as nuscenes-devkit evaluates them.

The layout is that of the devkit's python-sdk/nuscenes/eval/detection/README.md. Sizes are width, length, height. The
networks predict neither velocities nor attributes; these are 0 and empty, which the devkit accepts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters.nuscenes_tables import DETECTION_NAMES

if TYPE_CHECKING:
    from apps.driving.schemas import DrivingFrame

FILE = "results_nusc.json"
MAX_BOXES = 500
_NAMES = {name: name for name in DETECTION_NAMES.values()} | {"cyclist": "bicycle"}
"""The task's name for each class of the networks; a bicycle's box includes its rider. Other classes are skipped."""


def submission(lines: Iterable[DrivingFrame]) -> Iterator[str]:
    """The text, in pieces, for frames as ``result.frame_line`` describes them, by sample token; frames without a pose
    are skipped."""
    models: set[str] = set()
    yield '{"results": {'
    for line in lines:
        if "lidar_to_global" in line:
            yield f"{', ' if models else ''}{json.dumps(line['name'])}: {json.dumps(_boxes(line))}"
            models.add(line["model"])
    camera = any(name in ("fcos3d", "mmdet3d_camera") for name in models)
    lidar = any(name in ("pointpillars", "mmdet3d_lidar") for name in models)
    meta = {"use_camera": camera, "use_lidar": lidar, "use_radar": False, "use_map": False, "use_external": True}
    yield f'}}, "meta": {json.dumps(meta)}}}\n'


def _boxes(line: DrivingFrame) -> list[dict[str, Any]]:
    """The best ``MAX_BOXES`` boxes of a frame, the highest score first."""
    to_global = np.array(line["lidar_to_global"], np.float64)
    rotation = _quaternion(to_global[:3, :3])
    known = [box for box in line["boxes"] if box["name"] in _NAMES]
    best = sorted(known, key=lambda box: -box["score"])[:MAX_BOXES]
    return [
        {
            "sample_token": line["name"],
            "translation": (to_global[:3, :3] @ box["centre_lidar_m"] + to_global[:3, 3]).tolist(),
            "size": [box["size_m"][1], box["size_m"][0], box["size_m"][2]],
            "rotation": _rotate_by_yaw(rotation, box["yaw"]),
            "velocity": [0.0, 0.0],
            "detection_name": _NAMES[box["name"]],
            "detection_score": box["score"],
            "attribute_name": "",
        }
        for box in best
    ]


def _rotate_by_yaw(wxyz: NDArray[np.float64], yaw: float) -> list[float]:
    """The quaternion of a rotation about z by ``yaw``, followed by ``wxyz``."""
    w, x, y, z = wxyz.tolist()
    cosine, sine = float(np.cos(yaw / 2)), float(np.sin(yaw / 2))
    return [w * cosine - z * sine, x * cosine + y * sine, y * cosine - x * sine, z * cosine + w * sine]


def _quaternion(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4,), scalar first, of a rotation matrix (3, 3) that need not be exactly orthogonal (Bar-Itzhack 2000)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    symmetric = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    found: NDArray[np.float64] = np.linalg.eigh(symmetric)[1][:, -1]
    return found if found[0] >= 0 else -found
