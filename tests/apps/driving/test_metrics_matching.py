"""True and false positives, by hand."""

from dataclasses import replace

import numpy as np

from apps.driving.datasets.synth.image import black_camera
from apps.driving.metrics.matching import Counts, count, match
from apps.driving.types import Boxes3D, Frame

MOUNT = np.array([[0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27], [0, 0, 0, 1]], np.float32)


def boxes(places, names=None, scores=None):
    count_ = len(places)
    return Boxes3D(
        centre_lidar_m=np.array([[x, y, -0.9] for x, y in places], np.float32).reshape(-1, 3),
        size_m=np.tile(np.array([[4.0, 1.6, 1.5]], np.float32), (count_, 1)),
        yaw=np.zeros(count_, np.float32),
        names=tuple(names or ["car"] * count_),
        scores=None if scores is None else np.array(scores, np.float32),
    )


def frame(truth, **more):
    return Frame(name="case", points_lidar_m=None, cameras={"image_2": black_camera(MOUNT)}, truth=truth, **more)


def test_the_highest_score_is_matched_first_and_each_object_once():
    truth = frame(boxes([(10, 0), (20, 0)]))
    found = boxes([(10.5, 0), (10, 0), (40, 0)], scores=[0.9, 0.8, 0.7])
    result = match(truth, found, "car")
    assert result.true_positives.tolist() == [[0, 0]]
    assert result.false_negatives.tolist() == [1]
    assert result.false_positives.tolist() == [1, 2]
    assert count([truth], [found], "car") == Counts(true_positives=1, false_negatives=1, false_positives=2)


def test_centre_distance_ignores_size_but_not_position():
    truth = frame(boxes([(10, 0)]))
    found = replace(boxes([(11.5, 0)], scores=[0.9]), size_m=np.array([[1, 1, 1]], np.float32))
    assert count([truth], [found], "car", criterion="centre", threshold=2).true_positives == 1
    assert count([truth], [found], "car", criterion="centre", threshold=1).true_positives == 0
    assert count([truth], [found], "car", criterion="iou", threshold=0.5).true_positives == 0


def test_detections_on_ignored_classes_sparse_objects_and_regions_are_no_false_positives():
    truth = boxes([(10, 0), (20, 0), (30, 0)], names=["car", "van", "car"])
    truth = replace(truth, point_counts=np.array([100, 100, 2]))
    found = boxes([(10, 0), (20, 0), (30, 0)], scores=[0.9, 0.9, 0.9])
    assert count([frame(truth)], [found], "car", fewest_points=5) == Counts(
        true_positives=1, false_negatives=0, false_positives=0
    )
    assert count([frame(truth)], [found], "car") == Counts(true_positives=2, false_negatives=0, false_positives=0)
    everywhere = {"image_2": np.array([[0, 0, 1241, 374]], np.float32)}
    stray = boxes([(25, 5)], scores=[0.9])
    assert count([frame(truth)], [stray], "car").false_positives == 1
    assert count([frame(truth, ignore_boxes_2d=everywhere)], [stray], "car").false_positives == 0


def test_frames_without_objects_or_detections_count_nothing_false():
    nothing = Boxes3D.empty()
    assert count([frame(boxes([(10, 0)]))], [nothing], "car").false_negatives == 1
    assert count([frame(nothing)], [nothing], "car") == Counts(true_positives=0, false_negatives=0, false_positives=0)
