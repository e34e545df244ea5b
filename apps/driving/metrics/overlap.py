"""Intersection over union of boxes: upright and turned in the plane, in space, and in images. No GPU needed.

Turned rectangles are cut against each other by clipping polygons (Sutherland and Hodgman 1974), all pairs at once.
Identical and touching rectangles are no special case.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_CORNERS = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float64) / 2
_MOST_VERTICES = 8


def corners(rectangles_N5: Doubles) -> Doubles:
    """(N, 4, 2) corners, counter-clockwise, of rectangles x, y, length, width, yaw."""
    plane = rectangles_N5[:, None, 2:4] * _CORNERS
    cosine, sine = np.cos(rectangles_N5[:, 4])[:, None], np.sin(rectangles_N5[:, 4])[:, None]
    x = plane[..., 0] * cosine - plane[..., 1] * sine
    y = plane[..., 0] * sine + plane[..., 1] * cosine
    return np.stack([x, y], axis=-1) + rectangles_N5[:, None, :2]


def intersection_area(first_N5: Doubles, second_M5: Doubles) -> Doubles:
    """(N, M) areas that rectangles x, y, length, width, yaw have in common."""
    first, second = np.asarray(first_N5, np.float64), np.asarray(second_M5, np.float64)
    area = np.zeros((len(first), len(second)))
    reach = np.hypot(first[:, 2], first[:, 3])[:, None] / 2 + np.hypot(second[:, 2], second[:, 3])[None] / 2
    apart = np.hypot(*(first[:, None, :2] - second[None, :, :2]).transpose(2, 0, 1))
    rows, columns = np.nonzero(apart < reach)
    if len(rows):
        # Near the origin, so that cancellation in the area formula does not depend on where the boxes are.
        centre = second[columns, :2]
        subject = corners(first[rows]) - centre[:, None]
        window = corners(second[columns]) - centre[:, None]
        area[rows, columns] = _area(_clip(subject, window))
    return area


def bev_iou(first_N5: Doubles, second_M5: Doubles) -> Doubles:
    """(N, M) intersection over union of rectangles x, y, length, width, yaw."""
    first, second = np.asarray(first_N5, np.float64), np.asarray(second_M5, np.float64)
    common = intersection_area(first, second)
    return _ratio(common, (first[:, 2] * first[:, 3])[:, None] + (second[:, 2] * second[:, 3])[None] - common)


def box_iou(first_N7: Doubles, second_M7: Doubles) -> Doubles:
    """(N, M) intersection over union in space of upright boxes x, y, z of the centre, length, width, height, yaw."""
    first, second = np.asarray(first_N7, np.float64), np.asarray(second_M7, np.float64)
    plane = intersection_area(first[:, [0, 1, 3, 4, 6]], second[:, [0, 1, 3, 4, 6]])
    top = np.minimum((first[:, 2] + first[:, 5] / 2)[:, None], (second[:, 2] + second[:, 5] / 2)[None])
    bottom = np.maximum((first[:, 2] - first[:, 5] / 2)[:, None], (second[:, 2] - second[:, 5] / 2)[None])
    common = plane * np.maximum(top - bottom, 0)
    volume = np.prod(first[:, 3:6], axis=1)[:, None] + np.prod(second[:, 3:6], axis=1)[None] - common
    return _ratio(common, volume)


def image_iou(first_N4: Doubles, second_M4: Doubles, *, of_first: bool = False) -> Doubles:
    """(N, M) intersection over union of left, top, right, bottom; with ``of_first``, over the first one's area.

    Boxes with NaN edges meet nothing.
    """
    first, second = np.asarray(first_N4, np.float64), np.asarray(second_M4, np.float64)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    area, other = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second))
    whole = area[:, None] + 0 * common if of_first else area[:, None] + other[None] - common
    return _ratio(np.nan_to_num(common), np.nan_to_num(whole))


def _ratio(part: Doubles, whole: Doubles) -> Doubles:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)


def _clip(subject_K42: Doubles, window_K42: Doubles) -> Doubles:
    """(K, 8, 2): what of each subject lies within its window; short polygons repeat a vertex."""
    polygon = np.concatenate([subject_K42, np.repeat(subject_K42[:, :1], _MOST_VERTICES - 4, axis=1)], axis=1)
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
        order = np.argsort(~valid, axis=1, kind="stable")[:, :_MOST_VERTICES]
        polygon = np.take_along_axis(points, order[..., None], axis=1)
        kept = np.take_along_axis(valid, order, axis=1)
        polygon = np.where(kept[..., None], polygon, np.where(kept[:, :1, None], polygon[:, :1], 0.0))
    return polygon


def _area(polygon_KV2: Doubles) -> Doubles:
    following = np.roll(polygon_KV2, -1, axis=1)
    cross = polygon_KV2[..., 0] * following[..., 1] - polygon_KV2[..., 1] * following[..., 0]
    area: Doubles = np.maximum(cross.sum(axis=1) / 2, 0)
    return area
