"""The KITTI protocol: cases by hand, and what must hold for any detections."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.driving.datasets.synth.image import black_camera
from apps.driving.datasets.synth.scenes import scene
from apps.driving.metrics.kitti_ap import evaluate
from apps.driving.types import Boxes3D, Frame

MOUNT = np.array([[0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27], [0, 0, 0, 1]], np.float32)


def cars(places, *, names=None, scores=None, occlusion=None, truncation=None, height_px=60.0, yaw=0.0):
    """Cars at (x, y), each with a 2D box 60 pixels high that overlaps no other."""
    count = len(places)
    left = np.arange(count) * 30.0
    return Boxes3D(
        centre_lidar_m=np.array([[x, y, -0.9] for x, y in places], np.float32).reshape(-1, 3),
        size_m=np.tile(np.array([[4.0, 1.6, 1.5]], np.float32), (count, 1)),
        yaw=np.full(count, yaw, np.float32),
        names=tuple(names or ["car"] * count),
        scores=None if scores is None else np.array(scores, np.float32),
        truncation=np.array(truncation or [0.0] * count, np.float32),
        occlusion=np.array(occlusion or [0] * count, np.int64),
        box_2d=np.column_stack([left, 0 * left + 100, left + 25, 0 * left + 100 + height_px]).astype(np.float32),
    )


def frame(truth, **more):
    return Frame(name="case", points_lidar_m=None, cameras={"image_2": black_camera(MOUNT)}, truth=truth, **more)


PLACES = [(10.0 + 5 * (i % 10), -12.0 + 5 * (i // 10)) for i in range(41)]


def test_perfect_detections_score_100():
    truth = cars(PLACES)
    result = evaluate([frame(truth)], [replace(truth, scores=np.linspace(0.9, 0.1, 41, dtype=np.float32))])
    for measure in ("2d", "bev", "3d", "aos"):
        for level in ("easy", "moderate", "hard"):
            assert result[f"car/{measure}/{level}"] == pytest.approx(100)
    assert result["car/objects/easy"] == 41
    assert "pedestrian/3d/easy" not in result


def test_few_objects_lose_the_first_recall_position():
    truth = cars(PLACES[:9])
    result = evaluate([frame(truth)], [replace(truth, scores=np.linspace(0.9, 0.1, 9, dtype=np.float32))])
    assert result["car/3d/easy"] == pytest.approx(100 * 8 / 40)


def test_a_false_positive_with_the_highest_score_counts_at_every_threshold():
    truth = cars(PLACES)
    found = cars([*PLACES, (5.0, 12.0)], scores=[*np.linspace(0.9, 0.1, 41), 0.99])
    precision = [k / (k + 1) for k in range(1, 42)]
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    expected = 100 * sum(best_from_here[1:]) / 40
    assert evaluate([frame(truth)], [found])["car/3d/easy"] == pytest.approx(expected)


def test_half_of_the_objects_found_is_half_of_the_score():
    truth = cars(PLACES[:40])
    found = cars(PLACES[:20], scores=np.linspace(0.9, 0.5, 20))
    # Twenty thresholds, at recalls 1/40 to 20/40; the precision at the first is dropped.
    assert evaluate([frame(truth)], [found])["car/bev/easy"] == pytest.approx(100 * 19 / 40)


def test_objects_harder_than_the_difficulty_are_ignored():
    hidden = [0] * 39 + [1, 2]
    cut = [0.0] * 38 + [0.2, 0.0, 0.0]
    truth = cars(PLACES, occlusion=hidden, truncation=cut)
    result = evaluate([frame(truth)], [replace(truth, scores=np.linspace(0.9, 0.1, 41, dtype=np.float32))])
    assert result["car/objects/easy"] == 38
    assert result["car/objects/moderate"] == 40
    assert result["car/objects/hard"] == 41
    # Detections of objects that are too hard are not false positives.
    assert result["car/3d/easy"] == pytest.approx(100 * 37 / 40)


def test_small_boxes_count_only_where_they_are_not_too_low():
    truth = cars(PLACES, height_px=30)
    result = evaluate([frame(truth)], [replace(truth, scores=np.ones(41, np.float32))])
    assert result["car/objects/easy"] == 0
    assert result["car/objects/moderate"] == 41


def test_vans_and_sitting_people_are_ignored():
    names = ["car"] * 41 + ["van"]
    places = [*PLACES, (6.0, 9.0)]
    truth = cars(places, names=names)
    found = cars(places, scores=[*np.linspace(0.8, 0.1, 41), 0.9])
    assert evaluate([frame(truth)], [found])["car/3d/moderate"] == pytest.approx(100)
    truck = cars(places, names=["car"] * 41 + ["truck"])
    assert evaluate([frame(truck)], [found])["car/3d/moderate"] < 100


def test_a_sitting_person_is_neither_hit_nor_missed():
    names = ["pedestrian"] * 41 + ["person_sitting"]
    places = [*PLACES, (6.0, 9.0)]
    truth = cars(places, names=names)
    walking = ["pedestrian"] * 42
    scores = [*np.linspace(0.8, 0.1, 41), 0.9]
    result = evaluate([frame(truth)], [cars(places, names=walking, scores=scores)])
    assert result["pedestrian/objects/easy"] == 41
    assert result["pedestrian/3d/easy"] == pytest.approx(100)
    # It takes one detection; a second one on it, with the highest score, is a false positive: k of k + 1 are matches.
    twice = cars([*places, places[-1]], names=[*walking, "pedestrian"], scores=[*scores, 0.95])
    precision = [k / (k + 1) for k in range(1, 42)]
    assert evaluate([frame(truth)], [twice])["pedestrian/3d/easy"] == pytest.approx(
        100 * sum(np.maximum.accumulate(precision[::-1])[::-1][1:]) / 40
    )
    # No object is detected as one of a neighbouring class.
    found = cars(places, names=["person_sitting"] * 42, scores=scores)
    assert evaluate([frame(truth)], [found])["pedestrian/3d/easy"] == 0


def test_a_too_small_detection_is_no_false_positive_and_matches_only_without_another():
    # 41 cars of 60 px. One more detection beside all of them: 39 px are too low to be a claim at easy, 40 px are not.
    truth = cars(PLACES)
    precision = [k / (k + 1) for k in range(1, 42)]
    with_one = 100 * sum(np.maximum.accumulate(precision[::-1])[::-1][1:]) / 40
    for height, expected in ((39.0, 100.0), (40.0, with_one)):
        found = cars([*PLACES, (5.0, 12.0)], scores=[*np.linspace(0.9, 0.1, 41), 0.99])
        found.box_2d[-1, 3] = found.box_2d[-1, 1] + height
        assert evaluate([frame(truth)], [found])["car/3d/easy"] == pytest.approx(expected)


def test_a_label_must_be_higher_than_the_minimum_height():
    low = cars(PLACES, height_px=40)
    assert evaluate([frame(low)], [Boxes3D.empty()])["car/objects/easy"] == 0
    assert evaluate([frame(low)], [Boxes3D.empty()])["car/objects/moderate"] == 41


def test_a_dontcare_region_must_cover_more_than_the_minimum_overlap_of_a_detection():
    truth = cars(PLACES)
    found = cars([*PLACES, (6.0, 9.0)], scores=[*np.linspace(0.8, 0.1, 41), 0.9])
    precision = [k / (k + 1) for k in range(1, 42)]
    with_one = 100 * sum(np.maximum.accumulate(precision[::-1])[::-1][1:]) / 40
    # The detection is 25 px wide: 17 px of it are 68 %, 18 px are 72 % of its area.
    for covered, expected in ((17.0, with_one), (18.0, 100.0)):
        region = found.box_2d[-1:].copy()
        region[0, 2] = region[0, 0] + covered
        result = evaluate([frame(truth, ignore_boxes_2d={"image_2": region})], [found])
        assert result["car/2d/easy"] == pytest.approx(expected)


def test_objects_at_a_difficultys_truncation_and_occlusion_limits_count():
    truth = cars(PLACES[:6], truncation=[0.15, 0.16, 0.30, 0.31, 0.50, 0.51])
    counts = evaluate([frame(truth)], [Boxes3D.empty()])
    assert [counts[f"car/objects/{level}"] for level in ("easy", "moderate", "hard")] == [1, 3, 5]


def test_dontcare_regions_apply_only_in_2d():
    truth = cars(PLACES)
    found = cars([*PLACES, (6.0, 9.0)], scores=[*np.linspace(0.8, 0.1, 41), 0.9])
    region = {"image_2": found.box_2d[-1:] + np.array([[-2, -2, 2, 2]], np.float32)}
    result = evaluate([frame(truth, ignore_boxes_2d=region)], [found])
    assert result["car/2d/easy"] == pytest.approx(100)
    assert result["car/3d/easy"] < 100


def test_a_car_needs_an_overlap_of_more_than_seven_tenths():
    truth = cars(PLACES)
    scores = np.linspace(0.9, 0.1, 41)
    # Moved along its 4 m by d, the overlap is (4 - d) / (4 + d): 0.7 at d = 0.7059.
    near = cars([(x + 0.70, y) for x, y in PLACES], scores=scores)
    far = cars([(x + 0.72, y) for x, y in PLACES], scores=scores)
    assert evaluate([frame(truth)], [near])["car/bev/easy"] == pytest.approx(100)
    assert evaluate([frame(truth)], [far])["car/bev/easy"] == 0


def test_turned_round_halves_nothing_but_the_orientation():
    truth = cars(PLACES)
    quarter = replace(cars(PLACES, scores=np.linspace(0.9, 0.1, 41)), yaw=np.full(41, np.pi, np.float32))
    result = evaluate([frame(truth)], [quarter])
    assert result["car/3d/easy"] == pytest.approx(100)
    assert result["car/aos/easy"] == pytest.approx(0, abs=1e-6)


def test_two_detections_of_one_car_are_one_match_and_one_false_positive():
    truth = cars(PLACES)
    twice = cars([*PLACES, PLACES[0]], scores=[*np.linspace(0.9, 0.1, 41), 0.05])
    assert evaluate([frame(truth)], [twice])["car/3d/easy"] == pytest.approx(100)
    first = cars([*PLACES, PLACES[0]], scores=[*np.linspace(0.9, 0.1, 41), 0.95])
    assert evaluate([frame(truth)], [first])["car/3d/easy"] < 100


def test_predictions_of_another_number_of_frames_are_refused():
    with pytest.raises(ValueError, match="1 frames, but predictions for 2"):
        evaluate([frame(cars(PLACES))], [Boxes3D.empty(), Boxes3D.empty()])
    with pytest.raises(ValueError, match="no truth"):
        evaluate([frame(None)], [Boxes3D.empty()])


@pytest.fixture(scope="module")
def scenes():
    return [scene(np.random.default_rng(seed)) for seed in range(4)]


def noisy(frames, seed):
    draw = np.random.default_rng(seed)
    found = []
    for item in frames:
        truth = item.truth.take(draw.random(len(item.truth)) < 0.8)
        found.append(
            replace(
                truth,
                centre_lidar_m=truth.centre_lidar_m
                + draw.normal(0, 0.1, truth.centre_lidar_m.shape).astype(np.float32),
                scores=draw.random(len(truth)).astype(np.float32),
                box_2d=None,
            )
        )
    return found


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_detections_and_frames_does_not_matter(scenes, seed):
    found = noisy(scenes, seed)
    draw = np.random.default_rng(seed)
    shuffled = [boxes.take(draw.permutation(len(boxes))) for boxes in found]
    order = draw.permutation(len(scenes))
    assert evaluate(scenes, found) == pytest.approx(evaluate([scenes[i] for i in order], [shuffled[i] for i in order]))


@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_stricter_measures_score_no_higher(scenes, seed):
    result = evaluate(scenes, noisy(scenes, seed))
    for level in ("easy", "moderate", "hard"):
        if f"car/3d/{level}" in result:
            assert 0 <= result[f"car/3d/{level}"] <= result[f"car/bev/{level}"] + 1e-9 <= 100 + 1e-9
            assert result[f"car/aos/{level}"] <= result[f"car/2d/{level}"] + 1e-9
