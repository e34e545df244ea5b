"""Between the LiDAR frame and a camera's: points, boxes, their visible part in the image, and focal lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.driving.types import Boxes3D, Camera, Floats

EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
"""The twelve edges of a box, as pairs of the corners of ``Boxes3D.corners_lidar_m``."""

_MIN_DEPTH_M = 0.1


def to_camera(points_lidar_m: Floats, lidar_to_camera: Floats) -> Floats:
    """Transforms points (..., 3) from the LiDAR frame to a camera's frame."""
    moved: Floats = points_lidar_m @ lidar_to_camera[:3, :3].T + lidar_to_camera[:3, 3]
    return moved


def to_pixels(points_camera_m: Floats, intrinsics: Floats) -> Floats:
    """Pixels (..., 2) of points (..., 3) in the camera's frame, all in front of the camera."""
    projected = points_camera_m @ intrinsics.T
    pixels: Floats = projected[..., :2] / projected[..., 2:]
    return pixels


def edge_pixels(boxes: Boxes3D, intrinsics: Floats, lidar_to_camera: Floats) -> Floats:
    """(N, 12, 2, 2): both ends, in pixels, of the edges of each box, clipped where they pass behind the camera.

    NaN for an edge entirely behind the camera.
    """
    corners = to_camera(boxes.corners_lidar_m(), lidar_to_camera).astype(np.float64)
    ends = corners[:, np.array(EDGES)]
    depth = ends[..., 2]
    start, end = ends[..., 0, :], ends[..., 1, :]
    behind: NDArray[np.bool_] = depth < _MIN_DEPTH_M
    hidden: NDArray[np.bool_] = np.all(behind, axis=-1)
    cut: NDArray[np.bool_] = np.any(behind, axis=-1) & ~hidden
    depth_change = np.where(cut, depth[..., 1] - depth[..., 0], 1)
    crossing = start + ((_MIN_DEPTH_M - depth[..., 0]) / depth_change)[..., None] * (end - start)
    ends = np.where((behind & cut[..., None])[..., None], crossing[..., None, :], ends)
    ends = np.where(hidden[..., None, None], np.array([np.nan, np.nan, 1.0]), ends)
    return to_pixels(ends.astype(np.float32), intrinsics)


def image_boxes(
    boxes: Boxes3D, intrinsics: Floats, lidar_to_camera: Floats, size: tuple[int, int]
) -> tuple[Floats, Floats]:
    """The visible part of each box in an image of ``size`` (height, width).

    Returns left, top, right, bottom (N, 4) of the rectangle around the projected corners, clipped to the image; and the
    truncation (N,), the fraction of the rectangle that was clipped. If nothing is in the image, they are NaN and 1.
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


def to_camera_boxes(boxes_N7: Floats, lidar_to_camera: Floats) -> Floats:
    """Transforms (N, 7) from the LiDAR frame to a camera's: centre, length, height, width, yaw about y."""
    boxes = np.asarray(boxes_N7, np.float64).reshape(-1, 7)
    rotation, translation = lidar_to_camera[:3, :3].astype(np.float64), lidar_to_camera[:3, 3].astype(np.float64)
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), 0 * boxes[:, 6]], 1) @ rotation.T
    yaw = np.arctan2(-heading[:, 2], heading[:, 0])
    centre = boxes[:, :3] @ rotation.T + translation
    return np.concatenate([centre, boxes[:, [3, 5, 4]], yaw[:, None]], axis=1).astype(np.float32)


def to_lidar_boxes(boxes_N7: Floats, lidar_to_camera: Floats) -> Floats:
    """The inverse of ``to_camera_boxes``; exact if the camera's y axis is the LiDAR's -z axis."""
    boxes = np.asarray(boxes_N7, np.float64).reshape(-1, 7)
    rotation, translation = lidar_to_camera[:3, :3].astype(np.float64), lidar_to_camera[:3, 3].astype(np.float64)
    heading = np.stack([np.cos(boxes[:, 6]), 0 * boxes[:, 6], -np.sin(boxes[:, 6])], 1) @ rotation
    yaw = np.arctan2(heading[:, 1], heading[:, 0])
    centre = (boxes[:, :3] - translation) @ rotation
    return np.concatenate([centre, boxes[:, [3, 5, 4]], yaw[:, None]], axis=1).astype(np.float32)


def size_at_focal_length(camera: Camera, focal_px: float) -> tuple[int, int]:
    """Width and height of the camera's image resized to the focal length ``focal_px``, at least 32 pixels each."""
    height, width = camera.image_HWC.shape[:2]
    factor = focal_px / float(camera.intrinsics[0, 0])
    return max(32, round(width * factor)), max(32, round(height * factor))


def bring_to_focal_length(camera: Camera, focal_px: float) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """The image (H, W, 3) resized to the focal length ``focal_px``, and the scale factors of width and height."""
    height, width = camera.image_HWC.shape[:2]
    size = size_at_focal_length(camera, focal_px)
    if size == (width, height):
        return camera.image_HWC.copy(), (1.0, 1.0)
    image = Image.fromarray(camera.image_HWC).resize(size, Image.Resampling.BILINEAR)
    return np.array(image), (size[0] / width, size[1] / height)
