"""nuScenes' detection protocol: the devkit's own published figure, cases by hand, and a plain implementation."""

import math
import random as stdlib_random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apps.driving.metrics.nuscenes_boxes import DetectionBoxes
from apps.driving.metrics.nuscenes_detection import ERRORS, RANGES_M, THRESHOLDS_M, UNDEFINED, evaluate
from apps.driving.types import Boxes3D, Frame

ATTRIBUTES = {"pedestrian": 3, "bicycle": 2, "motorcycle": 2, "traffic_cone": 0, "barrier": 0}


def boxes(rows):
    """Rows of sample, name, x, y, then by keyword: score, size, yaw, velocity, attribute, distance, points."""
    rows = sorted(rows, key=lambda row: row["sample"])
    column = lambda name, default, shape=(): np.array(  # noqa: E731
        [row.get(name, default) for row in rows], float
    ).reshape(len(rows), *shape)
    return DetectionBoxes(
        sample_N=column("sample", 0).astype(int),
        names_N=np.array([row.get("name", "car") for row in rows], np.str_),
        centre_m_N2=column("at", (0, 0), (2,)),
        size_m_N3=column("size", (4, 2, 1.5), (3,)),
        yaw_N=column("yaw", 0),
        distance_m_N=column("distance", 0),
        scores_N=column("score", 0),
        velocity_N2=column("velocity", (0, 0), (2,)),
        attributes_N=np.array([row.get("attribute", "vehicle.parked") for row in rows], np.str_),
        point_counts_N=column("points", 5).astype(int),
    )


def test_the_devkit_s_own_random_case_has_its_published_score():
    """nuscenes-devkit, test_algo.py, test_weighted_sum: seed 42, all matches at 2 m, NDS 0.08606662159639042."""
    stdlib_random.seed(42)
    np.random.seed(42)

    def random_rows(name, samples, count, spread):
        rows = []
        for sample in range(samples):
            for _ in range(count):
                at, size, (w, x, y, z) = np.random.rand(2) * spread, np.random.rand(3) * 4, np.random.rand(4)
                velocity, score = np.random.rand(3)[:2] * 4, stdlib_random.random()
                kinds = ATTRIBUTES.get(name, 3)
                attribute = str(np.random.randint(0, kinds)) if kinds else ""
                stdlib_random.random()
                yaw = math.atan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)
                rows.append(
                    {
                        "sample": sample, "name": name, "at": at, "size": size, "yaw": yaw, "velocity": velocity,
                        "score": score, "attribute": attribute,
                    }
                )  # fmt: skip
        return rows

    truth, found = [], []
    for name in RANGES_M:
        truth += random_rows(name, 30, 3, 15)
        found += random_rows(name, 30, 25, 10)
    result = evaluate(boxes(truth), boxes(found), thresholds_m=(2.0,))
    assert result["nds"] == pytest.approx(0.08606662159639042, abs=1e-15)


NEAR, FAR = {"sample": 0, "at": (1, 1)}, {"sample": 0, "at": (30, 3)}


def car_ap(truth, found):
    return evaluate(boxes(truth), boxes(found))["car/ap/2"]


def test_average_precision_by_hand():
    near, far = {**NEAR, "score": 1.0}, {**FAR, "score": 0.7}
    assert car_ap([NEAR], [near]) == pytest.approx(1)
    # At full recall the precision is that after the false alarm, a half, at one of 90 recalls.
    assert car_ap([NEAR], [near, far]) == pytest.approx(1 - 0.5 / 0.9 / 90)
    assert car_ap([NEAR], []) == 0
    assert car_ap([], [near]) == 0
    # Recall 0.5 at full precision: 0.11 to 0.5, 40 of 90 recalls.
    assert car_ap([NEAR, FAR], [near]) == pytest.approx(40 / 90)
    # A false alarm above the only hit: precision rises from 0 to 0.5 over the recalls.
    precision = np.interp(np.linspace(0, 1, 101), [0, 1], [0, 0.5])[11:]
    assert car_ap([FAR], [near, far]) == pytest.approx(np.maximum(precision - 0.1, 0).mean() / 0.9)
    # The same in another sample is no hit; in another class no false alarm.
    assert car_ap([NEAR], [{**near, "sample": 1}]) == 0
    assert car_ap([NEAR], [near, {**near, "name": "bicycle"}]) == pytest.approx(1)


def test_a_detection_takes_the_nearest_object_that_is_free():
    truth = [{"sample": 0, "at": (0, 0)}, {"sample": 0, "at": (1.5, 0)}]
    found = [{"sample": 0, "at": (0.7, 0), "score": 0.9}, {"sample": 0, "at": (0.1, 0), "score": 0.8}]
    result = evaluate(boxes(truth), boxes(found))
    assert result["car/ap/2"] == pytest.approx(1)
    # At 1 m the second detection's object is already matched and the other one is too far; at 0.5 m the first detection
    # matches nothing.
    assert result["car/ap/1"] < 0.5
    assert 0 < result["car/ap/0.5"] < result["car/ap/1"]
    assert evaluate(boxes([NEAR]), boxes([{**NEAR, "at": (3, 1), "score": 1.0}]))["car/ap/2"] == 0


def test_errors_of_matched_detections():
    truth = [{**NEAR, "yaw": 0.1, "velocity": (1, 0), "attribute": "vehicle.moving"}]
    found = [{**NEAR, "at": (1.6, 1.8), "size": (4, 2, 3), "yaw": 0.4 + 2 * np.pi, "velocity": (1, 2), "score": 0.5}]
    result = evaluate(boxes(truth), boxes(found))
    assert [result[f"car/{error}"] for error in ERRORS] == pytest.approx([1.0, 0.5, 0.3, 2.0, 1.0])
    turned = evaluate(
        boxes([{**NEAR, "name": "barrier"}]), boxes([{**NEAR, "name": "barrier", "yaw": np.pi, "score": 1}])
    )
    assert turned["barrier/aoe"] == pytest.approx(0, abs=1e-12)
    assert "barrier/ave" not in turned and "traffic_cone/aoe" not in turned
    missed = evaluate(boxes(truth), boxes([{**FAR, "score": 1.0}]))
    assert [missed[f"car/{error}"] for error in ERRORS] == [1.0] * 5


def test_distant_objects_and_those_without_returns_are_ignored():
    truth = [NEAR, {**FAR, "distance": 50.0}, {**FAR, "points": 0}]
    result = evaluate(boxes(truth), boxes([{**NEAR, "score": 1.0}, {**FAR, "distance": 50.0, "score": 2.0}]))
    assert (result["car/objects"], result["car/detections"]) == (1, 1)
    assert result["car/ap"] == pytest.approx(1)
    assert (result["map"], result["map_present"]) == pytest.approx((0.1, 1))


def test_without_velocities_and_attributes_there_is_no_nds():
    truth = replace(boxes([NEAR]), velocity_N2=np.full((1, 2), np.nan), attributes_N=np.array([""]))
    result = evaluate(truth, boxes([{**NEAR, "score": 1.0}]), ranges_m={"car": 50})
    assert "nds" not in result and "mave" not in result and "maae" not in result
    assert result["nds_known"] == pytest.approx(1)


def test_frames_and_predictions_are_taken_as_they_are():
    truth = Boxes3D(
        centre_lidar_m=np.array([[10, 2, -1], [60, 0, -1]], np.float32),
        size_m=np.array([[4, 2, 1.5]] * 2, np.float32),
        yaw=np.zeros(2, np.float32),
        names=("car", "car"),
        point_counts=np.array([9, 9]),
    )
    frame = Frame(name="one", points_lidar_m=None, cameras={}, truth=truth)
    found = replace(truth, scores=np.array([0.9, 0.8], np.float32))
    result = evaluate(DetectionBoxes.of_frames([frame]), DetectionBoxes.of_detections([found]))
    assert (result["car/objects"], result["car/ap"]) == pytest.approx((1, 1))
    with pytest.raises(ValueError, match="no truth"):
        DetectionBoxes.of_frames([replace(frame, truth=None)])
    with pytest.raises(ValueError, match="no scores"):
        DetectionBoxes.of_detections([truth])


def plain(truth, found, name, threshold):
    """AP and the five errors of one class, box by box."""
    objects = [row for row in truth if row["name"] == name]
    claims = sorted(
        ((row["score"], number, row) for number, row in enumerate([r for r in found if r["name"] == name])),
        key=lambda item: item[:2],
        reverse=True,
    )
    matched, flags, scores, hits = set(), [], [], []
    for score, _, row in claims:
        best, least = None, math.inf
        for number, target in enumerate(objects):
            apart = math.dist(target["at"], row["at"])
            if target["sample"] == row["sample"] and number not in matched and apart < least:
                best, least = number, apart
        flags.append(least < threshold)
        scores.append(score)
        if least < threshold:
            matched.add(best)
            hits.append((score, objects[best], row))
    if not hits:
        return 0.0, dict.fromkeys(ERRORS, 1.0)
    recall, precision, hits_so_far = [], [], 0
    for number, flag in enumerate(flags, 1):
        hits_so_far += flag
        recall.append(hits_so_far / len(objects))
        precision.append(hits_so_far / number)
    # As in the devkit: n / 100 differs in the last digit, which decides between two precisions at one recall.
    grid = np.linspace(0, 1, 101)
    curve, confidence = np.interp(grid, recall, precision, right=0), np.interp(grid, recall, scores, right=0)
    ap = sum(max(value - 0.1, 0) for value in curve[11:]) / 90 / 0.9
    reached = max(n for n in range(101) if confidence[n] > 0)
    errors = {}
    for error in ERRORS:
        total, count, running = 0.0, 0, []
        for _, mine, theirs in hits:
            total, count = total + one_error(error, mine, theirs, name), count + 1
            running.append(total / count)
        at = [np.interp(value, [score for score, *_ in hits][::-1], running[::-1]) for value in confidence]
        errors[error] = float(np.mean(at[11 : reached + 1])) if reached >= 11 else 1.0
    return ap, errors


def one_error(error, mine, theirs, name):
    if error == "ate":
        return math.dist(mine["at"], theirs["at"])
    if error == "ase":
        common = math.prod(map(min, mine["size"], theirs["size"]))
        return 1 - common / (math.prod(mine["size"]) + math.prod(theirs["size"]) - common)
    if error == "aoe":
        period = math.pi if name == "barrier" else 2 * math.pi
        turn = (mine["yaw"] - theirs["yaw"]) % period
        return min(turn, period - turn)
    if error == "ave":
        return math.dist(mine["velocity"], theirs["velocity"])
    return float(mine["attribute"] != theirs["attribute"])


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
@example(6713)
def test_a_plain_implementation_gives_the_same_figures(seed):
    draw = np.random.default_rng(seed)

    def row(score):
        return {
            "sample": int(draw.integers(4)), "name": str(draw.choice(["car", "barrier"])),
            "at": tuple(draw.uniform(0, 9, 2)), "size": tuple(draw.uniform(1, 4, 3)), "yaw": draw.uniform(-3, 3),
            "velocity": tuple(draw.uniform(0, 3, 2)), "attribute": str(draw.choice(["moving", "parked"])),
            "score": score,
        }  # fmt: skip

    truth = [row(0.0) for _ in range(draw.integers(1, 25))]
    scores = draw.permutation(40) / 40 + 0.01
    found = sorted((row(score) for score in scores[: draw.integers(0, 40)]), key=lambda item: item["sample"])
    result = evaluate(boxes(truth), boxes(found))
    for name in ("car", "barrier"):
        for threshold in THRESHOLDS_M:
            ap, errors = plain(truth, found, name, threshold)
            assert result[f"{name}/ap/{threshold:g}"] == pytest.approx(ap, abs=1e-12)
            if threshold == 2.0 and found:
                for error in set(ERRORS) - set(UNDEFINED.get(name, ())):
                    assert result[f"{name}/{error}"] == pytest.approx(errors[error], abs=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_false_positives_never_raise_the_average_precision(seed):
    draw = np.random.default_rng(seed)
    truth = [{"sample": n % 3, "at": tuple(draw.uniform(0, 40, 2))} for n in range(20)]
    found = [
        {**row, "at": tuple(np.add(row["at"], draw.normal(0, 1, 2))), "score": draw.random()} for row in truth[:15]
    ]
    alarms = [{"sample": n % 3, "at": (300.0, 9.0 * n), "score": draw.random()} for n in range(10)]
    with_alarms, without = (evaluate(boxes(truth), boxes(some)) for some in (found + alarms, found))
    for threshold in THRESHOLDS_M:
        assert with_alarms[f"car/ap/{threshold:g}"] <= without[f"car/ap/{threshold:g}"] + 1e-12
