"""A nuScenes submission against tables in the data set's layout; the tables are made here."""

import json
import math

import numpy as np
import pytest

from apps.driving.app import app
from apps.driving.metrics.nuscenes_files import read_submission
from shared.errors import InvalidInputError

EGO = (400.0, 1100.0, 0.0)
CATEGORIES = ("vehicle.car", "vehicle.bicycle", "static_object.bicycle_rack", "animal")


def turned(yaw):
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def annotation(token, sample, category, at, **more):
    return {
        "token": token, "sample_token": sample, "instance_token": f"i-{category}", "attribute_tokens": ["moving"],
        "translation": [EGO[0] + at[0], EGO[1] + at[1], 1.0], "size": [2.0, 4.0, 1.5], "rotation": turned(0.3),
        "prev": "", "next": "", "num_lidar_pts": 5, "num_radar_pts": 0, **more,
    }  # fmt: skip


@pytest.fixture
def tables(tmp_path):
    """Two samples half a second apart: a car that moves at 4 m/s, a second car, a bicycle in a rack, an animal."""
    annotations = [
        annotation("car-1", "s1", "vehicle.car", (10, 0), next="car-2"),
        annotation("car-2", "s2", "vehicle.car", (12, 0), prev="car-1"),
        annotation("unseen", "s1", "vehicle.car", (20, 5), num_lidar_pts=0),
        annotation("far", "s1", "vehicle.car", (60, 0)),
        annotation("bicycle", "s1", "vehicle.bicycle", (5, 5)),
        annotation("rack", "s1", "static_object.bicycle_rack", (5, 6), size=[6.0, 6.0, 2.0]),
        annotation("cat", "s1", "animal", (3, 3)),
    ]
    content = {
        "sample": [{"token": "s1", "timestamp": 10_000_000}, {"token": "s2", "timestamp": 10_500_000}],
        "ego_pose": [{"token": "p", "translation": list(EGO)}],
        "sample_data": [
            {"sample_token": s, "ego_pose_token": "p", "is_key_frame": True, "filename": f"samples/LIDAR_TOP/{s}.bin"}
            for s in ("s1", "s2")
        ],
        "category": [{"token": name, "name": name} for name in CATEGORIES],
        "instance": [{"token": f"i-{name}", "category_token": name} for name in CATEGORIES],
        "attribute": [{"token": "moving", "name": "vehicle.moving"}],
        "sample_annotation": annotations,
    }
    folder = tmp_path / "v1.0-mini"
    folder.mkdir()
    for name, rows in content.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def detection(sample, at, score, name="car", **more):
    return {
        "sample_token": sample, "translation": [EGO[0] + at[0], EGO[1] + at[1], 1.0], "size": [2.0, 4.0, 1.5],
        "rotation": turned(0.3), "velocity": [4.0, 0.0], "detection_name": name, "detection_score": score,
        "attribute_name": "vehicle.moving", **more,
    }  # fmt: skip


def submission(tables, results):
    file = tables.parent / "results_nusc.json"
    file.write_text(json.dumps({"meta": {"use_lidar": True}, "results": results}))
    return file


PERFECT = {"s1": [detection("s1", (10, 0), 0.9)], "s2": [detection("s2", (12, 0), 0.8)]}


def test_a_perfect_detector_of_the_class_that_is_there(tables):
    table = app.score_files({"labels": tables, "results": submission(tables, PERFECT)})
    rows = {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}
    assert rows["car"] == {
        "objects": "2", "detections": "2", "AP": "1.000", **{f"AP {at} m": "1.000" for at in (0.5, 1, 2, 4)},
        **dict.fromkeys(("ATE", "ASE", "AOE", "AVE", "AAE"), "0.000"),
    }  # fmt: skip
    assert rows["mean"]["AP"] == "0.100"
    notes = " ".join(table.notes)
    assert "2 of 2 samples" in notes and "1 boxes in bicycle racks" in notes
    assert "No objects of truck" in notes and "over the classes with objects it is 1.000" in notes
    # Errors of the other classes are 1, of those that have them; mAP 0.1: (5 * 0.1 + 1/10 + 1/10 + 1/9 + 2 * 1/8) / 10.
    assert f"NDS {(0.5 + 0.2 + 1 / 9 + 0.25) / 10:.4f}." in notes


def test_velocities_positions_and_rotations_are_read_as_the_devkit_does(tables):
    found = {"s1": [detection("s1", (10, 1.5), 0.9, rotation=[2 * part for part in turned(0.7)], velocity=[4.0, 3.0])]}
    files = read_submission(submission(tables, found), tables)
    assert files.truth.velocity_N2[files.truth.names_N == "car"][0].tolist() == pytest.approx([4.0, 0.0])
    assert np.isnan(files.truth.velocity_N2[1]).all()
    assert files.truth.distance_m_N.tolist() == pytest.approx([10, math.hypot(20, 5), 60])
    assert files.truth.size_m_N3[0].tolist() == [4.0, 2.0, 1.5]
    assert files.detections.yaw_N.tolist() == pytest.approx([0.7])
    table = app.score_files({"labels": tables, "results": submission(tables, found)})
    car = dict(zip(table.columns, table.rows[0], strict=True))
    assert (car["objects"], car["ATE"], car["AOE"], car["AVE"]) == ("1", "1.500", "0.400", "3.000")
    assert "1 of 2 samples" in " ".join(table.notes)


def test_a_detection_in_a_bicycle_rack_is_not_a_false_positive(tables):
    more = {**PERFECT, "s1": [*PERFECT["s1"], detection("s1", (5, 6), 0.9, name="bicycle")]}
    files = read_submission(submission(tables, more), tables)
    assert files.in_racks == 2 and len(files.detections) == 2


def test_without_velocities_there_is_no_nds(tables):
    results = {token: [{**box, "velocity": None} for box in boxes] for token, boxes in PERFECT.items()}
    table = app.score_files({"labels": tables, "results": submission(tables, results)})
    assert "AVE" not in table.columns
    assert "No NDS" in table.notes[0]


def test_files_in_another_layout_are_refused(tables):
    def assert_refused(results, message, labels=tables):
        with pytest.raises(InvalidInputError, match=message):
            app.score_files({"labels": labels, "results": submission(tables, results)})

    assert_refused({"elsewhere": []}, "have no sample elsewhere")
    assert_refused({"s1": [detection("s1", (1, 1), 0.5)] * 501}, "501 detections")
    assert_refused({"s1": [detection("s1", (1, 1), float("nan"))]}, "not finite")
    assert_refused({"s1": [{"translation": [0, 0, 0]}]}, "not in nuScenes' layout: KeyError 'size'")
    assert_refused({}, "is not a submission")
    assert_refused(PERFECT, "cannot be read as JSON", labels=tables.parent)
