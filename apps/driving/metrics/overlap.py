"""Intersection over union (IoU) of rotated bird's-eye-view rectangles, of 3D boxes and of image boxes, in NumPy.

Rotated rectangles are intersected by polygon clipping (Sutherland and Hodgman 1974), many pairs at once. Identical and
touching rectangles need no special case.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from apps.driving.types import BEV_COLUMNS

Doubles = NDArray[np.float64]

_CORNERS = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float64) / 2
_MAX_VERTICES = 8
_PAIRS_PER_BATCH = 20_000


def corners(rectangles_N5: Doubles) -> Doubles:
    """(N, 4, 2) corners, counter-clockwise, of rectangles (x, y, length, width, yaw)."""
    plane = rectangles_N5[:, None, 2:4] * _CORNERS
    cosine, sine = np.cos(rectangles_N5[:, 4])[:, None], np.sin(rectangles_N5[:, 4])[:, None]
    x = plane[..., 0] * cosine - plane[..., 1] * sine
    y = plane[..., 0] * sine + plane[..., 1] * cosine
    return np.stack([x, y], axis=-1) + rectangles_N5[:, None, :2]


def bev_iou(first_N5: Doubles, second_M5: Doubles) -> Doubles:
    """(N, M) IoU of rectangles (x, y, length, width, yaw)."""
    return _all_pairs(paired_bev_iou, first_N5, second_M5)


def box_iou(first_N7: Doubles, second_M7: Doubles) -> Doubles:
    """(N, M) IoU of upright 3D boxes (x, y, z of the centre, length, width, height, yaw)."""
    return _all_pairs(paired_box_iou, first_N7, second_M7)


def image_iou(first_N4: Doubles, second_M4: Doubles, *, of_first: bool = False) -> Doubles:
    """(N, M) IoU of image boxes (left, top, right, bottom); with ``of_first``, the intersection over the first's area.

    Boxes with NaN edges intersect nothing.
    """
    return _all_pairs(partial(paired_image_iou, of_first=of_first), first_N4, second_M4)


def paired_intersection_area(first_K5: Doubles, second_K5: Doubles) -> Doubles:
    """(K,) intersection area of the two rectangles (x, y, length, width, yaw) in each row."""
    area = np.zeros(len(first_K5))
    contact_distance = np.hypot(first_K5[:, 2], first_K5[:, 3]) / 2 + np.hypot(second_K5[:, 2], second_K5[:, 3]) / 2
    near_pairs = np.nonzero(np.hypot(*(first_K5[:, :2] - second_K5[:, :2]).T) < contact_distance)[0]
    for start in range(0, len(near_pairs), _PAIRS_PER_BATCH):
        rows = near_pairs[start : start + _PAIRS_PER_BATCH]
        # Moved to the origin, so that cancellation in the area formula does not depend on the boxes' position.
        centre = second_K5[rows, None, :2]
        area[rows] = _area(_clip(corners(first_K5[rows]) - centre, corners(second_K5[rows]) - centre))
    return area


def paired_bev_iou(first_K5: Doubles, second_K5: Doubles) -> Doubles:
    """(K,) IoU of the two rectangles in each row."""
    intersection = paired_intersection_area(first_K5, second_K5)
    return _ratio(intersection, first_K5[:, 2] * first_K5[:, 3] + second_K5[:, 2] * second_K5[:, 3] - intersection)


def paired_box_iou(first_K7: Doubles, second_K7: Doubles) -> Doubles:
    """(K,) IoU of the two upright 3D boxes in each row."""
    common_area = paired_intersection_area(first_K7[:, BEV_COLUMNS], second_K7[:, BEV_COLUMNS])
    top = np.minimum(first_K7[:, 2] + first_K7[:, 5] / 2, second_K7[:, 2] + second_K7[:, 5] / 2)
    bottom = np.maximum(first_K7[:, 2] - first_K7[:, 5] / 2, second_K7[:, 2] - second_K7[:, 5] / 2)
    intersection = common_area * np.maximum(top - bottom, 0)
    return _ratio(intersection, np.prod(first_K7[:, 3:6], axis=1) + np.prod(second_K7[:, 3:6], axis=1) - intersection)


def paired_image_iou(first_K4: Doubles, second_K4: Doubles, *, of_first: bool = False) -> Doubles:
    """(K,) IoU of the two image boxes in each row; with ``of_first``, the intersection over the first's area."""
    low = np.maximum(first_K4[:, :2], second_K4[:, :2])
    high = np.minimum(first_K4[:, 2:], second_K4[:, 2:])
    intersection = np.prod(np.maximum(high - low, 0), axis=1)
    first_area, second_area = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first_K4, second_K4))
    return _ratio(
        np.nan_to_num(intersection),
        np.nan_to_num(first_area + 0 * intersection if of_first else first_area + second_area - intersection),
    )


def _all_pairs(measure: Callable[[Doubles, Doubles], Doubles], first: Doubles, second: Doubles) -> Doubles:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    rows, columns = np.repeat(np.arange(len(first)), len(second)), np.tile(np.arange(len(second)), len(first))
    return measure(first[rows], second[columns]).reshape(len(first), len(second))


def _ratio(part: Doubles, whole: Doubles) -> Doubles:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)


def _clip(subject_K42: Doubles, window_K42: Doubles) -> Doubles:
    """(K, 8, 2) intersection polygons of the subjects with their windows; short polygons repeat a vertex."""
    polygon = np.concatenate([subject_K42, np.repeat(subject_K42[:, :1], _MAX_VERTICES - 4, axis=1)], axis=1)
    for edge in range(4):
        start, end = window_K42[:, edge], window_K42[:, (edge + 1) % 4]
        edge_vector = end - start
        # The inward normal of an edge that runs counter-clockwise.
        inward = np.stack([-edge_vector[:, 1], edge_vector[:, 0]], axis=-1)
        signed_distance = ((polygon - start[:, None]) * inward[:, None]).sum(-1)
        next_vertex, next_distance = np.roll(polygon, -1, axis=1), np.roll(signed_distance, -1, axis=1)
        inside = signed_distance >= 0
        crosses = inside != (next_distance >= 0)
        fraction = signed_distance / np.where(crosses, signed_distance - next_distance, 1)
        crossing = polygon + fraction[..., None] * (next_vertex - polygon)
        points = np.stack([polygon, crossing], axis=2).reshape(len(polygon), -1, 2)
        valid = np.stack([inside, crosses], axis=2).reshape(len(polygon), -1)
        order = np.argsort(~valid, axis=1, kind="stable")[:, :_MAX_VERTICES]
        polygon = np.take_along_axis(points, order[..., None], axis=1)
        is_kept = np.take_along_axis(valid, order, axis=1)
        polygon = np.where(is_kept[..., None], polygon, np.where(is_kept[:, :1, None], polygon[:, :1], 0.0))
    return polygon


def _area(polygon_KV2: Doubles) -> Doubles:
    next_vertex = np.roll(polygon_KV2, -1, axis=1)
    cross = polygon_KV2[..., 0] * next_vertex[..., 1] - polygon_KV2[..., 1] * next_vertex[..., 0]
    area: Doubles = np.maximum(cross.sum(axis=1) / 2, 0)
    return area
