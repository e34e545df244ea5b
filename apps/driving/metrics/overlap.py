"""Intersection over union of boxes: upright and turned in the plane, in space, and in images. No GPU needed.

Turned rectangles are cut against each other by clipping polygons (Sutherland and Hodgman 1974), all pairs at once.
Identical and touching rectangles are no special case.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_CORNERS = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float64) / 2
_MAX_VERTICES = 8
_PAIRS_AT_ONCE = 20_000
_PLANE = [0, 1, 3, 4, 6]


def corners(rectangles_N5: Doubles) -> Doubles:
    """(N, 4, 2) corners, counter-clockwise, of rectangles x, y, length, width, yaw."""
    plane = rectangles_N5[:, None, 2:4] * _CORNERS
    cosine, sine = np.cos(rectangles_N5[:, 4])[:, None], np.sin(rectangles_N5[:, 4])[:, None]
    x = plane[..., 0] * cosine - plane[..., 1] * sine
    y = plane[..., 0] * sine + plane[..., 1] * cosine
    return np.stack([x, y], axis=-1) + rectangles_N5[:, None, :2]


def bev_iou(first_N5: Doubles, second_M5: Doubles) -> Doubles:
    """(N, M) intersection over union of rectangles x, y, length, width, yaw."""
    return _all_pairs(paired_bev_iou, first_N5, second_M5)


def box_iou(first_N7: Doubles, second_M7: Doubles) -> Doubles:
    """(N, M) intersection over union in space of upright boxes x, y, z of the centre, length, width, height, yaw."""
    return _all_pairs(paired_box_iou, first_N7, second_M7)


def image_iou(first_N4: Doubles, second_M4: Doubles, *, of_first: bool = False) -> Doubles:
    """(N, M) intersection over union of left, top, right, bottom; with ``of_first``, over the first one's area.

    Boxes with NaN edges meet nothing.
    """
    return _all_pairs(partial(paired_image_iou, of_first=of_first), first_N4, second_M4)


def paired_intersection_area(first_K5: Doubles, second_K5: Doubles) -> Doubles:
    """(K,) areas that the rectangles x, y, length, width, yaw of each row have in common."""
    area = np.zeros(len(first_K5))
    reach = np.hypot(first_K5[:, 2], first_K5[:, 3]) / 2 + np.hypot(second_K5[:, 2], second_K5[:, 3]) / 2
    near = np.nonzero(np.hypot(*(first_K5[:, :2] - second_K5[:, :2]).T) < reach)[0]
    for start in range(0, len(near), _PAIRS_AT_ONCE):
        rows = near[start : start + _PAIRS_AT_ONCE]
        # Near the origin, so that cancellation in the area formula does not depend on where the boxes are.
        centre = second_K5[rows, None, :2]
        area[rows] = _area(_clip(corners(first_K5[rows]) - centre, corners(second_K5[rows]) - centre))
    return area


def paired_bev_iou(first_K5: Doubles, second_K5: Doubles) -> Doubles:
    """(K,) intersection over union of the rectangles of each row."""
    common = paired_intersection_area(first_K5, second_K5)
    return _ratio(common, first_K5[:, 2] * first_K5[:, 3] + second_K5[:, 2] * second_K5[:, 3] - common)


def paired_box_iou(first_K7: Doubles, second_K7: Doubles) -> Doubles:
    """(K,) intersection over union in space of the upright boxes of each row."""
    plane = paired_intersection_area(first_K7[:, _PLANE], second_K7[:, _PLANE])
    top = np.minimum(first_K7[:, 2] + first_K7[:, 5] / 2, second_K7[:, 2] + second_K7[:, 5] / 2)
    bottom = np.maximum(first_K7[:, 2] - first_K7[:, 5] / 2, second_K7[:, 2] - second_K7[:, 5] / 2)
    common = plane * np.maximum(top - bottom, 0)
    return _ratio(common, np.prod(first_K7[:, 3:6], axis=1) + np.prod(second_K7[:, 3:6], axis=1) - common)


def paired_image_iou(first_K4: Doubles, second_K4: Doubles, *, of_first: bool = False) -> Doubles:
    """(K,) intersection over union of the boxes in the image of each row; with ``of_first``, over the first's area."""
    low = np.maximum(first_K4[:, :2], second_K4[:, :2])
    high = np.minimum(first_K4[:, 2:], second_K4[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    area, other = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first_K4, second_K4))
    return _ratio(np.nan_to_num(common), np.nan_to_num(area + 0 * common if of_first else area + other - common))


def _all_pairs(measure: Callable[[Doubles, Doubles], Doubles], first: Doubles, second: Doubles) -> Doubles:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    rows, columns = np.repeat(np.arange(len(first)), len(second)), np.tile(np.arange(len(second)), len(first))
    return measure(first[rows], second[columns]).reshape(len(first), len(second))


def _ratio(part: Doubles, whole: Doubles) -> Doubles:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)


def _clip(subject_K42: Doubles, window_K42: Doubles) -> Doubles:
    """(K, 8, 2): what of each subject lies within its window; short polygons repeat a vertex."""
    polygon = np.concatenate([subject_K42, np.repeat(subject_K42[:, :1], _MAX_VERTICES - 4, axis=1)], axis=1)
    for edge in range(4):
        start, end = window_K42[:, edge], window_K42[:, (edge + 1) % 4]
        along = end - start
        # Positive on the inner side of an edge that runs counter-clockwise.
        inward = np.stack([-along[:, 1], along[:, 0]], axis=-1)
        height = ((polygon - start[:, None]) * inward[:, None]).sum(-1)
        following, beyond = np.roll(polygon, -1, axis=1), np.roll(height, -1, axis=1)
        inside = height >= 0
        crosses = inside != (beyond >= 0)
        share = height / np.where(crosses, height - beyond, 1)
        crossing = polygon + share[..., None] * (following - polygon)
        points = np.stack([polygon, crossing], axis=2).reshape(len(polygon), -1, 2)
        valid = np.stack([inside, crosses], axis=2).reshape(len(polygon), -1)
        order = np.argsort(~valid, axis=1, kind="stable")[:, :_MAX_VERTICES]
        polygon = np.take_along_axis(points, order[..., None], axis=1)
        kept = np.take_along_axis(valid, order, axis=1)
        polygon = np.where(kept[..., None], polygon, np.where(kept[:, :1, None], polygon[:, :1], 0.0))
    return polygon


def _area(polygon_KV2: Doubles) -> Doubles:
    following = np.roll(polygon_KV2, -1, axis=1)
    cross = polygon_KV2[..., 0] * following[..., 1] - polygon_KV2[..., 1] * following[..., 0]
    area: Doubles = np.maximum(cross.sum(axis=1) / 2, 0)
    return area
