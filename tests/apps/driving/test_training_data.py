"""Sweeps in training: which points and boxes are kept, and that augmentation changes both in the same way."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from apps.driving.datasets.sampling import SweepSampling
from apps.driving.datasets.sweeps import augment_sweep
from apps.driving.types import LidarInput, within

RANGE = (0.0, -8.0, -3.0, 16.0, 8.0, 1.0)


@given(
    arrays(np.float32, st.tuples(st.integers(0, 20), st.just(4)), elements=st.sampled_from([-8, -3, 0, 0.5, 1, 8, 16]))
)
def test_a_range_includes_its_lower_bound_but_not_its_upper_bound(points):
    expected = [
        all(low <= value < high for value, low, high in zip(point[:3], RANGE[:3], RANGE[3:], strict=True))
        for point in points.tolist()
    ]
    assert within(points, RANGE).tolist() == expected
    assert LidarInput(range_m=RANGE).crop(points)[:, :3].tolist() == points[expected, :3].tolist()


def test_a_nan_point_is_not_within_any_range():
    assert not within(np.array([[np.nan, 0, 0, 0], [1, np.inf, 0, 0]], np.float32), RANGE).any()


@given(st.integers(0, 2**32 - 1))
def test_augmentation_keeps_points_inside_their_boxes(seed):
    draw = np.random.default_rng(seed)
    boxes = np.array([[10.0, 3, -1, 4, 2, 1.5, 0.4], [20, -5, -1, 0.8, 0.6, 1.8, -2]], np.float32)
    local = draw.uniform(-0.49, 0.49, (60, 3)).astype(np.float32)
    points = np.concatenate([_placed(local, box) for box in boxes])
    marks = np.repeat([0, 1], 60).astype(np.float32)
    points, boxes = augment_sweep(
        np.concatenate([points, marks[:, None]], axis=1), boxes, SweepSampling(most_lost=0.0), draw
    )
    assert len(points) == 120 and not np.array_equal(points[:, 3], marks)
    for number, box in enumerate(boxes):
        away = points[points[:, 3] == number, :3] - box[:3]
        cosine, sine = np.cos(box[6]), np.sin(box[6])
        turned = np.stack(
            [away[:, 0] * cosine + away[:, 1] * sine, away[:, 1] * cosine - away[:, 0] * sine, away[:, 2]], 1
        )
        assert len(turned) == 60 and (np.abs(turned) <= box[3:6] / 2).all()


def _placed(local, box):
    across = local * box[3:6]
    cosine, sine = np.cos(box[6]), np.sin(box[6])
    return np.stack(
        [
            across[:, 0] * cosine - across[:, 1] * sine + box[0],
            across[:, 0] * sine + across[:, 1] * cosine + box[1],
            across[:, 2] + box[2],
        ],
        axis=1,
    ).astype(np.float32)
