"""Writes frames in KITTI's object layout, so that other software can read synthetic scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from apps.driving.outputs.kitti import write
from apps.driving.types import Frame


def write_frame(frame: Frame, root: Path, frame_id: str) -> None:
    """Writes ``velodyne``, ``image_2``, ``calib`` and, if there is ground truth, ``label_2`` below ``root``.

    As in KITTI, the labels contain what is visible in the first camera. The folder that contains ``root`` must exist.
    """
    root.mkdir(exist_ok=True)
    for folder in ("velodyne", "image_2", "calib", "label_2"):
        (root / folder).mkdir(exist_ok=True)
    if frame.points_lidar_m is not None:
        (root / "velodyne" / f"{frame_id}.bin").write_bytes(frame.points_lidar_m.astype("<f4").tobytes())
    camera = next(iter(frame.cameras.values()))
    Image.fromarray(np.ascontiguousarray(camera.image_HWC)).save(root / "image_2" / f"{frame_id}.png")
    reference = camera.lidar_to_camera.astype(np.float64).copy()
    reference[:3, 3] -= camera.reference_offset_m
    projection = camera.intrinsics.astype(np.float64) @ np.column_stack([np.eye(3), camera.reference_offset_m])
    rows = {"P2": projection, "R0_rect": np.eye(3), "Tr_velo_to_cam": reference[:3]}
    text = "".join(f"{name}: {' '.join(f'{v:.12e}' for v in matrix.ravel())}\n" for name, matrix in rows.items())
    (root / "calib" / f"{frame_id}.txt").write_text(text, encoding="utf-8")
    if frame.truth is not None:
        (root / "label_2" / f"{frame_id}.txt").write_text(write(frame.truth, camera), encoding="utf-8")
