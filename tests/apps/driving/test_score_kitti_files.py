"""Scores of KITTI's result files against its labels: object folders and tracking sequences."""

import shutil

import numpy as np
import pytest

from apps.driving.app import app
from shared.errors import InvalidInputError

ROW = "Car 0.00 0 {alpha:.4f} {left} 150 {right} 250 1.5 1.6 3.9 {x} 1.7 {z} {turn} {score}"
MEASURES = ("2D 0.7", "AOS 0.7", "BEV 0.7", "3D 0.7")


@pytest.fixture
def folders(tmp_path):
    """Labels of 60 cars in 20 frames with a van and a DontCare region, and the same cars as results."""
    labels, results = tmp_path / "label_2", tmp_path / "results"
    labels.mkdir(), results.mkdir()
    for number in range(20):
        cars = [
            ROW.format(
                alpha=0.3 - np.arctan2(4 * k - 4, 15 + number), left=100 + 200 * k, right=250 + 200 * k,
                x=4 * k - 4, z=15 + number, turn=0.3, score=round(0.9 - 0.01 * number - 0.2 * k, 3),
            )
            for k in range(3)
        ]  # fmt: skip
        others = [
            "DontCare -1 -1 -10 800 100 900 200 -1 -1 -1 -1000 -1000 -1000 -10",
            "Van 0 0 0 950 100 1100 250 2 2 5 9 1.7 15 0",
        ]
        truth = [car.rsplit(" ", 1)[0] for car in cars]
        (labels / f"{number:06d}.txt").write_text("\n".join([*truth, *others]) + "\n")
        (results / f"{number:06d}.txt").write_text("\n".join(cars) + "\n")
    return labels, results


def score(labels, results, **more):
    """Values of cars by measure, and the notes."""
    table = app.score_files({"labels": labels, "results": results, **more})
    return {measure: values for name, measure, *values in table.rows if name == "car"}, " ".join(table.notes)


def changed(results, column, value):
    for file in results.rglob("*.txt"):
        lines = [line.split() for line in file.read_text().splitlines()]
        for line in lines:
            line[column] = value
        file.write_text("".join(" ".join(line) + "\n" for line in lines))


def test_labels_against_themselves_score_100(folders):
    found, notes = score(*folders)
    assert "20 of 20 labelled frames are scored, 60 detections" in notes
    assert found.pop("objects") == ["60"] * 3
    assert found == {measure: ["100.00"] * 3 for measure in MEASURES}


def test_labels_are_found_in_the_benchmarks_own_folders(folders, tmp_path):
    labels, results = folders
    training = tmp_path / "kitti" / "training"
    shutil.copytree(labels, training / "label_2")
    shutil.copytree(labels, training / "calib")
    assert score(training, results) == score(training.parent, results) == score(labels, results)


def test_missed_and_shifted_objects_lower_the_score(folders):
    labels, results = folders
    for file in sorted(results.iterdir())[:10]:
        file.write_text("")
    for file in sorted(results.iterdir())[10:15]:
        file.write_text(file.read_text().replace(" 1.7 ", " 9.7 "))
    found, _ = score(labels, results)
    assert float(found["2D 0.7"][0]) == float(found["BEV 0.7"][0]) < 51
    assert float(found["3D 0.7"][0]) < 26


def test_frames_without_results_are_left_out_or_named_as_empty(folders, tmp_path):
    labels, results = folders
    for file in sorted(results.iterdir())[:10]:
        file.unlink()
    found, notes = score(labels, results)
    assert found["objects"] == ["30"] * 3
    assert "10 of 20 labelled frames" in notes and "left out" in notes
    (tmp_path / "val.txt").write_text("".join(f"{number:06d}\n" for number in range(5, 20)))
    found, notes = score(labels, results, frames=tmp_path / "val.txt")
    assert found["objects"] == ["45"] * 3
    assert "15 of 20" in notes and "5 of them have no result file" in notes
    assert 60 < float(found["3D 0.7"][0]) < 70


def test_results_without_2d_boxes_and_in_several_folders(folders):
    labels, results = folders
    for number, file in enumerate(sorted(results.iterdir())):
        part = results / str(number // 8)
        part.mkdir(exist_ok=True)
        file.rename(part / file.name)
    for column in range(4, 8):
        changed(results, column, "-1")
    shutil.rmtree(results / "2")
    found, notes = score(labels, results)
    assert "16 of 20 labelled frames" in notes and "no 2D boxes" in notes
    assert {measure: values[0] for measure, values in found.items()} == {
        "objects": "48", "BEV 0.7": "100.00", "3D 0.7": "100.00",
    }  # fmt: skip


def test_results_without_3d_boxes_or_without_an_angle_are_scored_in_2d(folders):
    labels, results = folders
    for column, value in ((3, "-10"), *((n, "-1") for n in (8, 9, 10)), *((n, "-1000") for n in (11, 12, 13))):
        changed(results, column, value)
    found, notes = score(labels, results)
    assert found == {"objects": ["60"] * 3, "2D 0.7": ["100.00"] * 3, "AOS 0.7": ["-"] * 3}
    assert "no 3D boxes" in notes


def test_orientation_is_scored_by_the_observation_angle(folders):
    labels, results = folders
    for file in results.iterdir():
        lines = [line.split() for line in file.read_text().splitlines()]
        for line in lines:
            line[3] = f"{float(line[3]) + np.pi / 2:.4f}"
        file.write_text("".join(" ".join(line) + "\n" for line in lines))
    found, _ = score(labels, results)
    assert found["2D 0.7"] == ["100.00"] * 3
    assert float(found["AOS 0.7"][0]) == pytest.approx(50, abs=0.01)


@pytest.fixture
def sequences(folders, tmp_path):
    """The same 20 frames as two sequences of the tracking benchmark, with numbers of tracks."""
    tracking_folders = tmp_path / "label_02", tmp_path / "tracks"
    for source, target in zip(folders, tracking_folders, strict=True):
        target.mkdir()
        for sequence in range(2):
            lines = [
                f"{frame} {track} {line}\n"
                for frame in range(10)
                for track, line in enumerate((source / f"{10 * sequence + frame:06d}.txt").read_text().splitlines())
            ]
            (target / f"{sequence:04d}.txt").write_text("".join(lines))
    return tracking_folders


def test_tracking_files_score_like_their_frames(folders, sequences):
    for file in folders[1].iterdir():
        file.write_text(file.read_text().replace(" 1.7 ", " 2.0 ", 1))
    for file in sequences[1].iterdir():
        lines = file.read_text().splitlines()
        file.write_text(
            "".join((line.replace(" 1.7 ", " 2.0 ") if " 0 Car" in line else line) + "\n" for line in lines)
        )
    expected, _ = score(*folders)
    found, notes = score(*sequences)
    assert "2 of 2 labelled sequences" in notes
    assert found == expected
    assert float(found["3D 0.7"][0]) < 99


def test_detections_in_frames_without_labels_are_false_positives(sequences):
    labels, results = sequences
    before, _ = score(labels, results)
    lines = (results / "0000.txt").read_text().splitlines()
    with (results / "0000.txt").open("a") as file:
        file.writelines(
            f"{frame} 0 {line.split(' ', 2)[2].rsplit(' ', 1)[0]} 0.99\n" for frame in (11, 12) for line in lines[:1]
        )
    after, _ = score(labels, results)
    assert float(after["3D 0.7"][0]) < float(before["3D 0.7"][0])


def test_a_sitting_person_of_the_tracking_benchmark_is_ignored(tmp_path):
    person = "0 0 300 100 340 200 1.7 0.6 0.8 0 1.7 {z} 0"
    labels, results = tmp_path / "label_02", tmp_path / "tracks"
    labels.mkdir(), results.mkdir()
    truth = [f"{n} 1 Pedestrian 0 {person.format(z=10 + n)}\n" for n in range(41)]
    found = [f"{n} 1 Pedestrian 0 {person.format(z=10 + n)} {0.9 - n / 100:.2f}\n" for n in range(41)]
    (labels / "0000.txt").write_text("".join(truth) + f"50 2 Person 0 {person.format(z=12)}\n")
    (results / "0000.txt").write_text("".join(found) + f"50 2 Pedestrian 0 {person.format(z=12)} 0.95\n")
    table = app.score_files({"labels": labels, "results": results})
    rows = {measure: values for name, measure, *values in table.rows if name == "pedestrian"}
    assert rows["objects"] == ["41"] * 3
    assert rows["3D 0.5"] == ["100.00"] * 3


def test_what_cannot_be_scored_is_refused(folders, sequences, tmp_path):
    labels, results = folders
    (tmp_path / "list.txt").write_text("000000\n999999\n")
    for files, sentence in (
        ({"labels": labels}, "--results DIR --labels DIR"),
        ({"labels": labels, "results": results / "none"}, "is not a folder"),
        ({"labels": labels, "results": labels}, "000000.txt, line 1: 15 columns instead of 16, the last a score"),
        ({"labels": results, "results": labels.parent}, "are both frame 000000"),
        ({"labels": sequences[0], "results": sequences[0]}, "17 columns instead of 18"),
        ({"labels": labels, "results": results, "frames": tmp_path / "list.txt"}, "999999 has no label file"),
        ({"labels": labels, "results": results, "frames": tmp_path / "none.txt"}, "cannot be read"),
    ):
        with pytest.raises(InvalidInputError, match=sentence):
            app.score_files(files)
    for name in ("0000.txt", "0001.txt"):
        shutil.copy(results / "000000.txt", sequences[1] / name)
    with pytest.raises(InvalidInputError, match=r"tracking labels, but .* object results"):
        score(*sequences)
    (results / "000001.txt").write_text("Car 0 0 0 1 2 3 4 5 6 7 8 9 ten 11 12\n")
    with pytest.raises(InvalidInputError, match=r"000001.txt, line 1: could not convert"):
        score(labels, results)
    (results / "000001.txt").write_text("Car 0 0 0 1 2 3 4 5 6 7 8 9 nan 11 12\n")
    with pytest.raises(InvalidInputError, match="not a finite number"):
        score(labels, results)
    (results / "77.txt").write_text("")
    with pytest.raises(InvalidInputError, match=r"77.txt has no label file"):
        score(labels, results)
