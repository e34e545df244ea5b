"""Overlap of rotated boxes, against shapely and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon

from apps.driving.metrics.overlap import bev_iou, box_iou, corners, image_iou, paired_intersection_area

rectangles = st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.1, 8), st.floats(0.1, 8), st.floats(-7, 7)).map(
    np.array
)


def test_half_and_rotated_overlaps_by_hand():
    square = np.array([[0.0, 0, 2, 2, 0]])
    assert bev_iou(square, [[1.0, 0, 2, 2, 0]]) == pytest.approx(1 / 3)
    assert bev_iou(square, [[5.0, 0, 2, 2, 0]]) == 0
    # A unit square and one turned by 45 degrees meet in a regular octagon of inradius 1/2: area 8 tan(22.5 deg) / 4.
    unit = np.array([[0.0, 0, 1, 1, 0]])
    octagon = 2 * np.tan(np.pi / 8)
    assert paired_intersection_area(unit, np.array([[0.0, 0, 1, 1, np.pi / 4]])) == pytest.approx(octagon)


@pytest.mark.parametrize("yaw", [0.0, 0.3, np.pi / 2, np.pi, -2.0, 1e-9])
@pytest.mark.parametrize("place", [0.0, 70.0, -1000.0])
def test_identical_boxes_overlap_fully(yaw, place):
    box = np.array([[place, -place, 1.0, 3.9, 1.6, 1.5, yaw]])
    assert box_iou(box, box) == pytest.approx(1, abs=1e-9)
    turned = box + np.array([0, 0, 0, 0, 0, 0, np.pi])
    assert bev_iou(box[:, [0, 1, 3, 4, 6]], turned[:, [0, 1, 3, 4, 6]]) == pytest.approx(1, abs=1e-9)


def test_touching_boxes_do_not_overlap():
    assert bev_iou([[0.0, 0, 2, 2, 0]], [[2.0, 0, 2, 2, 0]]) == pytest.approx(0, abs=1e-12)


def test_height_counts_in_3d():
    low, high = np.array([[0.0, 0, 0, 2, 2, 2, 0]]), np.array([[0.0, 0, 1, 2, 2, 2, 0]])
    assert box_iou(low, high) == pytest.approx(1 / 3)
    assert box_iou(low, high + [0, 0, 5, 0, 0, 0, 0]) == 0


@settings(max_examples=150)
@given(first=rectangles, second=rectangles)
def test_matches_shapely(first, second):
    first_polygon, second_polygon = (Polygon(corners(r[None])[0]) for r in (first, second))
    expected = first_polygon.intersection(second_polygon).area
    assert paired_intersection_area(first[None], second[None])[0] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(max_examples=60)
@given(first=rectangles, second=rectangles, turn=st.floats(-3, 3))
def test_symmetric_bounded_and_blind_to_common_motion(first, second, turn):
    there, back = bev_iou(first[None], second[None]), bev_iou(second[None], first[None])
    assert there == pytest.approx(back.T, abs=1e-9)
    assert 0 <= there[0, 0] <= 1 + 1e-9
    cosine, sine = np.cos(turn), np.sin(turn)
    moved = [
        np.array([cosine * r[0] - sine * r[1] + 3, sine * r[0] + cosine * r[1] - 9, r[2], r[3], r[4] + turn])
        for r in (first, second)
    ]
    assert bev_iou(moved[0][None], moved[1][None]) == pytest.approx(there, abs=1e-7)


def test_many_pairs_give_the_same_as_single_pairs():
    draw = np.random.default_rng(0)
    first = np.column_stack([draw.uniform(-5, 5, (7, 2)), draw.uniform(1, 5, (7, 2)), draw.uniform(-4, 4, 7)])
    second = np.column_stack([draw.uniform(-5, 5, (9, 2)), draw.uniform(1, 5, (9, 2)), draw.uniform(-4, 4, 9)])
    single = np.array([[bev_iou(a[None], b[None])[0, 0] for b in second] for a in first])
    assert bev_iou(first, second) == pytest.approx(single, abs=1e-12)
    assert bev_iou(first[:0], second).shape == (0, 9)


def test_image_overlap_and_its_share_of_the_first():
    first, second = np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 25, 10]])
    assert image_iou(first, second) == pytest.approx(50 / 250)
    assert image_iou(first, second, of_first=True) == pytest.approx(0.5)
    assert image_iou(np.full((1, 4), np.nan), second) == 0
