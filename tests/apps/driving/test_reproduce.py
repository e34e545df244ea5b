"""The headline table for a detector with known answers."""

from dataclasses import replace

import numpy as np
import pytest

from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.inference.detect import LidarDetector
from apps.driving.inference.evaluation import in_image
from apps.driving.metrics.kitti_ap import evaluate
from apps.driving.reproduce import (
    bar_verdict,
    count_beyond_range,
    count_right_headings,
    real_rows,
    synthetic_rows,
    with_scored_classes,
)
from apps.driving.types import Boxes3D, Frame, LidarInput


class TruthDetector:
    """Returns the ground truth of a frame, changed as a test requires."""

    sensor, input = "lidar", LidarInput()

    def __init__(self, change=lambda boxes: boxes):
        self.change = change

    def detect(self, frame):
        return self.change(replace(frame.truth, scores=np.full(len(frame.truth), 0.9, np.float32)))


@pytest.fixture(scope="module")
def frames():
    sensors = Sensors(field_of_view_deg=120.0, azimuth_step_deg=0.3, image_scale=0.25)
    return [scene(np.random.default_rng(seed), sensors=sensors, kind="street") for seed in range(3)]


def moved(boxes, metres):
    return replace(boxes, centre_lidar_m=boxes.centre_lidar_m + np.float32([metres, metres, 0]))


def turned(boxes):
    return replace(boxes, yaw=boxes.yaw + np.float32(np.pi))


def test_bar_verdicts_match_the_scores(frames):
    rows = dict(synthetic_rows(TruthDetector(), frames))
    expected = evaluate(frames, [in_image(frame, TruthDetector().detect(frame)) for frame in frames])
    value, objects = expected["car/bev/moderate"], int(expected["car/objects/moderate"])
    verdict = "met" if value >= 70 else f"missed by {70 - value:.1f}"
    assert objects >= 2 and rows["car, AP R40 BEV, synthetic"] == f"{value:.1f} ({objects} objects; bar 70 {verdict})"
    assert rows["cars with the right heading, synthetic"].startswith("100 % of")
    about = dict(synthetic_rows(TruthDetector(turned), frames))
    assert about["cars with the right heading, synthetic"].startswith("0 % of")
    right, ridden = count_right_headings(frames, [TruthDetector().detect(frame) for frame in frames], "cyclist")
    assert right == ridden > 0
    assert bar_verdict(70.0, 70.0) == "; bar 70 met" and bar_verdict(66.6, 70.0) == "; bar 70 missed by 3.4"


def test_real_frames_count_the_scored_classes_and_the_own_vehicle(frames):
    def with_own_vehicle(boxes):
        own = Boxes3D(
            centre_lidar_m=np.array([[0.5, 0, -1]], np.float32),
            size_m=np.array([[4, 1.7, 1.5]], np.float32),
            yaw=np.zeros(1, np.float32),
            names=("car",),
            scores=np.array([0.8], np.float32),
        )
        both = {
            name: np.concatenate([getattr(boxes, name), getattr(own, name)])
            for name in ("centre_lidar_m", "size_m", "yaw", "scores")
        }
        return Boxes3D(names=boxes.names + own.names, **both)

    first_frame = frames[:1]
    cars = sum(
        name == "car" and count >= 5
        for name, count in zip(first_frame[0].truth.names, first_frame[0].truth.point_counts, strict=True)
    )
    rows = dict(real_rows("nuScenes", TruthDetector(with_own_vehicle), {}, first_frame))
    assert f"BEV IoU 0.7: {cars} of {cars}, 1 false" in rows["car, nuScenes, frames: 1"]
    assert rows["car, nuScenes, frames: 1"].endswith("bar (62 % within 2 m, at most 3 false): met")
    assert rows["boxes on the own vehicle, nuScenes"] == "1"
    # Hard KITTI objects are not scored, and boxes on them are ignored.
    easier = with_scored_classes(first_frame[0])
    left = sum(name == "car" for name in easier.truth.names)
    assert 0 < left < sum(name == "car" for name in first_frame[0].truth.names)
    kitti = dict(real_rows("KITTI", TruthDetector(), {}, [easier]))
    assert kitti["car, KITTI, frames: 1"].endswith("at most 5 false): met") == (left >= 2)
    away = dict(real_rows("KITTI", TruthDetector(lambda boxes: moved(boxes, 1.0)), {}, [easier]))
    assert away["car, KITTI, frames: 1"].endswith("at most 5 false): missed")
    assert kitti["boxes on the own vehicle, KITTI"] == "0" and ", 0 false" in kitti["car, KITTI, frames: 1"]


def test_classes_of_other_data_sets_get_the_trained_names(frames):
    names = ("regular_vehicle", "box_truck") + frames[0].truth.names[2:]
    scored = with_scored_classes(replace(frames[0], truth=replace(frames[0].truth, names=names, occlusion=None)))
    assert scored.truth.names[:2] == ("car", "truck")


@pytest.mark.parametrize(
    ("all_round", "place", "seen"),
    [
        (True, (66.0, 39.0), True),
        (True, (-66.0, -39.0), True),
        (True, (67.0, 0.0), False),
        (True, (0.0, 40.0), False),
        (False, (68.0, 0.0), True),
        (False, (-1.0, 0.0), False),
    ],
)
def test_objects_outside_a_networks_range_are_counted(frames, all_round, place, seen):
    detector = LidarDetector(network=None, input=LidarInput())
    centre = np.array([[*place, -1]], np.float32)
    truth = frames[0].truth.take(np.array([0]))
    truth = replace(truth, centre_lidar_m=centre, names=("car",), point_counts=np.array([9]))
    ahead, behind = np.float32([[20, 0, -1, 0]]), np.float32([[-20, 0, -1, 0]])
    points = np.concatenate([ahead, behind] if all_round else [ahead])
    frame = Frame(name="a", cameras={}, points_lidar_m=points, truth=truth)
    assert detector.in_range(frame, truth).tolist() == [seen]
    assert (
        count_beyond_range(detector, [frame], "car") == int(not seen)
        and count_beyond_range(detector, [frame], "cyclist") == 0
    )
    few = replace(frame, truth=replace(truth, point_counts=np.array([4])))
    assert count_beyond_range(detector, [few], "car") == 0 and count_beyond_range(TruthDetector(), [frame], "car") == 0
