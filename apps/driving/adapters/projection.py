"""From the LiDAR frame into images: points, boxes, and what of a box lies outside of the picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.driving.types import Boxes3D, Floats

EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
"""The twelve edges of a box, as pairs of the corners of ``Boxes3D.corners_lidar_m``."""

_NEAR_M = 0.1


def to_camera(points_lidar_m: Floats, lidar_to_camera: Floats) -> Floats:
    """Points (..., 3) of the LiDAR frame in a camera's frame."""
    moved: Floats = points_lidar_m @ lidar_to_camera[:3, :3].T + lidar_to_camera[:3, 3]
    return moved


def to_pixels(points_camera_m: Floats, intrinsics: Floats) -> Floats:
    """Pixels (..., 2) of points (..., 3) in the camera's frame, all before the camera."""
    projected = points_camera_m @ intrinsics.T
    pixels: Floats = projected[..., :2] / projected[..., 2:]
    return pixels


def edge_pixels(boxes: Boxes3D, intrinsics: Floats, lidar_to_camera: Floats) -> Floats:
    """(N, 12, 2, 2): both ends, in pixels, of the edges of each box, cut where they pass behind the camera.

    NaN for an edge that lies behind altogether.
    """
    corners = to_camera(boxes.corners_lidar_m(), lidar_to_camera).astype(np.float64)
    ends = corners[:, np.array(EDGES)]
    depth = ends[..., 2]
    start, end = ends[..., 0, :], ends[..., 1, :]
    behind: NDArray[np.bool_] = depth < _NEAR_M
    hidden: NDArray[np.bool_] = np.all(behind, axis=-1)
    cut: NDArray[np.bool_] = np.any(behind, axis=-1) & ~hidden
    reach = np.where(cut, depth[..., 1] - depth[..., 0], 1)
    at = start + ((_NEAR_M - depth[..., 0]) / reach)[..., None] * (end - start)
    ends = np.where((behind & cut[..., None])[..., None], at[..., None, :], ends)
    ends = np.where(hidden[..., None, None], np.array([np.nan, np.nan, 1.0]), ends)
    return to_pixels(ends.astype(np.float32), intrinsics)


def image_boxes(
    boxes: Boxes3D, intrinsics: Floats, lidar_to_camera: Floats, size: tuple[int, int]
) -> tuple[Floats, Floats]:
    """What an image of ``size`` (height, width) shows of each box: left, top, right, bottom (N, 4); truncation (N,).

    The rectangle around the projected corners, cut at the border of the image; truncation is the share of it that was
    cut off, 1 and NaN edges where nothing is in the image.
    """
    if len(boxes) == 0:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    pixels = edge_pixels(boxes, intrinsics, lidar_to_camera).reshape(len(boxes), -1, 2)
    known = ~np.isnan(pixels)
    low = np.where(known, pixels, np.inf).min(1)
    high = np.where(known, pixels, -np.inf).max(1)
    border = np.array([size[1] - 1, size[0] - 1], np.float32)
    left_top, right_bottom = np.clip(low, 0, border), np.clip(high, 0, border)
    sides, whole = right_bottom - left_top, high - low
    shown = (sides > 0).all(1) & np.isfinite(whole).all(1)
    part = np.prod(sides, axis=1) / np.where(shown, np.prod(whole, axis=1), 1)
    clipped = np.concatenate([left_top, right_bottom], axis=1)
    return (
        np.where(shown[:, None], clipped, np.nan).astype(np.float32),
        np.where(shown, 1 - part, 1).astype(np.float32),
    )
