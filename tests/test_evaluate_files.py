"""``trivium evaluate APP`` on result files: the commands of docs/evaluate.md, on small generated files."""

import json

import pytest

from shared.cli import main

CAR = "Car 0 0 -1.5 600 150 700 250 1.5 1.6 3.9 2 1.7 20 -1.4"


@pytest.fixture
def luna16(tmp_path):
    header = "seriesuid,coordX,coordY,coordZ,"
    contents = {
        "marks": f"{header}probability\n1.2.3,10,20,30,0.9\n1.2.3,99,20,30,0.5\n",
        "annotations": f"{header}diameter_mm\n1.2.3,10,20,31,6\n",
        "annotations_excluded": f"{header}diameter_mm\n1.2.3,99,20,30,-1\n",
        "seriesuids": "1.2.3\n1.2.4\n",
    }
    for name, text in contents.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def test_a_luna16_submission_is_scored(luna16, capsys):
    words = ["--submission", "marks", "--annotations", "annotations", "--excluded", "annotations_excluded"]
    words += ["--series", "seriesuids"]
    paths = [word if word.startswith("--") else str(luna16 / f"{word}.csv") for word in words]
    assert main(["evaluate", "medical", *paths]) == 0
    output = capsys.readouterr().out
    assert "CPM" in output and "1.0000" in output and "marks ignored: on excluded findings" in output


def test_kitti_result_files_are_scored(tmp_path, capsys):
    for folder, line in (("label_2", CAR), ("out", f"{CAR} 0.9")):
        (tmp_path / folder).mkdir()
        for number in range(3):
            (tmp_path / folder / f"{number:06d}.txt").write_text(line + "\n")
    (tmp_path / "val.txt").write_text("000000\n000001\n")
    words = ["--results", str(tmp_path / "out"), f"--labels={tmp_path / 'label_2'}", "--frames"]
    assert main(["evaluate", "driving", *words, str(tmp_path / "val.txt")]) == 0
    output = capsys.readouterr().out
    assert "2 of 3 labelled frames" in output and "3D 0.7" in output


def test_detector_scores_are_evaluated_on_nab(tmp_path, capsys):
    rows = [f"2015-01-{1 + n // 24:02d} {n % 24:02d}:00:00" for n in range(100)]
    (tmp_path / "A.csv").write_text(
        "timestamp,anomaly_score\n" + "".join(f"{time},{float(n == 50)}\n" for n, time in enumerate(rows))
    )
    (tmp_path / "combined_windows.json").write_text(json.dumps({"folder/A.csv": [[rows[50], rows[60]]]}))
    words = ["--scores", str(tmp_path / "A.csv"), "--labels", str(tmp_path / "combined_windows.json")]
    assert main(["evaluate", "finance", *words]) == 0
    assert capsys.readouterr().out.count("100.00") == 3


def test_a_missing_option_is_reported(tmp_path, capsys):
    assert main(["evaluate", "driving", "--labels", str(tmp_path)]) == 2
    assert "--results DIR --labels DIR" in capsys.readouterr().err
