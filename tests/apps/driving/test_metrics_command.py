"""Scores of result files against labels, from the command line."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from apps.driving.metrics.__main__ import main

ROW = "Car 0.00 0 {alpha:.4f} {left} 150 {right} 250 1.5 1.6 3.9 {x} 1.7 {z} {turn} {score}"


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


def rows(text):
    """Values by measure, of the first class in the table."""
    lines = [line.split() for line in text.splitlines()]
    start = next(n for n, line in enumerate(lines) if line[0] == "car")
    end = next(n for n, line in enumerate(lines) if line[0] == "pedestrian")
    return {line[-5 if line[-4] == "0.7" else -4]: line[-3:] for line in lines[start:end]}


def test_labels_against_themselves_score_100(folders):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "apps.driving.metrics", *folders], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "20 of 20 labelled frames" in done.stdout
    found = rows(done.stdout)
    assert found.pop("objects") == ["60"] * 3
    assert found == {measure: ["100.00"] * 3 for measure in ("2D", "AOS", "BEV", "3D")}
    assert "torch" not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}


def test_what_is_not_found_and_what_is_moved_costs(folders, capsys):
    labels, results = folders
    for file in sorted(results.iterdir())[:10]:
        file.write_text("")
    for file in sorted(results.iterdir())[10:15]:
        file.write_text(file.read_text().replace(" 1.7 ", " 9.7 "))
    assert main([str(labels), str(results)]) == 0
    found = rows(capsys.readouterr().out)
    assert float(found["2D"][0]) == float(found["BEV"][0]) < 51
    assert float(found["3D"][0]) < 26


def test_results_without_2d_boxes_and_in_several_folders(folders, capsys):
    labels, results = folders
    for number, file in enumerate(sorted(results.iterdir())):
        lines = [line.split() for line in file.read_text().splitlines()]
        part = results / str(number // 8)
        part.mkdir(exist_ok=True)
        flat = [" ".join([*line[:4], "-1", "-1", "-1", "-1", *line[8:]]) for line in lines]
        (part / file.name).write_text("\n".join(flat))
        file.unlink()
    shutil.rmtree(results / "2")
    assert main([str(labels), str(results)]) == 0
    text = capsys.readouterr().out
    assert "16 of 20 labelled frames" in text and "no 2D boxes" in text
    assert {measure: values[0] for measure, values in rows(text).items()} == {
        "objects": "48", "BEV": "100.00", "3D": "100.00",
    }  # fmt: skip


def test_what_cannot_be_scored_is_refused(folders, capsys):
    labels, results = folders
    for arguments, sentence in (
        ([labels], "give two folders"),
        ([labels, results / "none"], "is no folder"),
        ([labels, labels], "has no scores"),
        ([results, labels.parent], "are both frame 000000"),
    ):
        assert main([str(path) for path in arguments]) == 2
        assert sentence in capsys.readouterr().err
    (results / "77.txt").write_text("")
    assert main([str(labels), str(results)]) == 2
    assert "77.txt has no label file" in capsys.readouterr().err
