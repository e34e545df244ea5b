"""NAB scores of result files: names, layouts, and a reference implementation of the benchmark's procedure."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.finance.app import app
from apps.finance.metrics.nab import PROFILES, Scored, probation, score_corpus
from shared.errors import InvalidInputError

ROWS = 200
FIRST, LAST = 100, 109


def stamp(row):
    return f"2015-03-{1 + row // 24:02d} {row % 24:02d}:00:00"


@pytest.fixture
def benchmark(tmp_path):
    """Labels of two series with one window each and one without, and a folder for a detector's scores."""
    windows = [[f"{stamp(FIRST)}.000000", f"{stamp(LAST)}.000000"]]
    labels = {"realTweets/Twitter_volume_A.csv": windows, "realTweets/B.csv": windows, "artificialNoAnomaly/C.csv": []}
    (tmp_path / "combined_windows.json").write_text(json.dumps(labels))
    return tmp_path


def write(path, detections, series=None):
    """A result file with the score 0.1 in every row except those in ``detections``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lead = "" if series is None else f"{series},"
    heading = ("" if series is None else "series,") + "timestamp,value,anomaly_score,label\n"
    body = "".join(f"{lead}{stamp(row)},5.0,{detections.get(row, 0.1)},0\n" for row in range(ROWS))
    path.write_text(heading + body)
    return path


def scored(benchmark, scores):
    table = app.score_files({"scores": scores, "labels": benchmark / "combined_windows.json"})
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}, " ".join(table.notes)


def test_a_detector_s_folder_is_read_as_nab_writes_it(benchmark):
    folder = benchmark / "results" / "mine"
    write(folder / "realTweets" / "mine_Twitter_volume_A.csv", {FIRST: 0.9})
    write(folder / "realTweets" / "mine_B.csv", {FIRST: 0.9})
    write(folder / "artificialNoAnomaly" / "mine_C.csv", {})
    (folder / "mine_standard_scores.csv").write_text("Detector,Profile\n")
    rows, notes = scored(benchmark, folder)
    assert list(rows) == ["standard", "reward_low_FP_rate", "reward_low_FN_rate"]
    assert all(row["score"] == "100.00" and row["windows hit"] == "2 of 2" for row in rows.values())
    assert all(row["threshold"] == "0.9" and row["false detections"] == "0" for row in rows.values())
    assert "3 of 3 labelled series, 2 windows, 600 rows, of which 90 are probationary" in notes


def test_the_profiles_weigh_a_false_detection_and_a_missed_window(benchmark):
    folder = benchmark / "results"
    write(folder / "realTweets" / "Twitter_volume_A.csv", {FIRST: 0.9, 60: 0.9})
    write(folder / "realTweets" / "B.csv", {})
    rows, notes = scored(benchmark, folder)
    assert "2 of 3 labelled series" in notes and "part of the benchmark" in notes
    # Raw: a hit, a miss, and a false detection before all windows; perfect is 2, null the misses of both.
    assert float(rows["standard"]["score"]) == pytest.approx(100 * (1 - 1 - 0.11 + 2) / 4, abs=0.005)
    assert float(rows["reward_low_FP_rate"]["score"]) == pytest.approx(100 * (1 - 1 - 0.22 + 2) / 4, abs=0.005)
    assert float(rows["reward_low_FN_rate"]["score"]) == pytest.approx(100 * (1 - 2 - 0.11 + 4) / 6, abs=0.005)
    assert rows["standard"]["false events per series"] == "0.50"


def test_one_file_by_its_name_alone_and_several_series_in_one_file(benchmark):
    rows, _ = scored(benchmark, write(benchmark / "Twitter_volume_A.csv", {FIRST: 0.9}))
    assert rows["standard"]["score"] == "100.00"
    first = write(benchmark / "one.csv", {FIRST: 0.9}, series="Twitter_volume_A").read_text()
    second = write(benchmark / "two.csv", {}, series="realTweets/B.csv").read_text().split("\n", 1)[1]
    (benchmark / "both.csv").write_text(first + second)
    rows, notes = scored(benchmark, benchmark / "both.csv")
    assert rows["standard"]["windows hit"] == "1 of 2"
    assert "2 of 3 labelled series" in notes


def test_a_useless_detector_has_no_threshold(benchmark):
    detections = {row: 0.1 if FIRST <= row <= LAST else 0.5 for row in range(ROWS)}
    rows, _ = scored(benchmark, write(benchmark / "B.csv", detections))
    assert rows["standard"] == {
        "score": "0.00", "threshold": "none", "windows hit": "0 of 1", "false detections": "0",
        "false events per series": "0.00",
    }  # fmt: skip


def test_scores_outside_0_to_1_are_accepted_with_a_note(benchmark):
    rows, notes = scored(benchmark, write(benchmark / "B.csv", {FIRST: 40.0}))
    assert rows["standard"]["threshold"] == "40" and "outside [0, 1]" in notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timestamp,value\n", "lacks the columns anomaly_score"),
        ("timestamp,anomaly_score\n", "has no rows"),
        (f"timestamp,anomaly_score\n{stamp(1)},high\n", "row 2 has no valid timestamp and score"),
        (f"timestamp,anomaly_score\n{stamp(1)},nan\n", "row 2 has a score that is not finite"),
        (f"timestamp,anomaly_score\n{stamp(5)},0.1\n{stamp(1)},0.1\n", "not sorted"),
        ("timestamp,anomaly_score\nyesterday,0.1\n", "write timestamps as"),
        (f"timestamp,anomaly_score\n{stamp(1)},0.1\n", "no row in the labelled window from"),
    ],
)
def test_files_that_are_not_in_the_layout_are_refused(benchmark, text, message):
    (benchmark / "B.csv").write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        scored(benchmark, benchmark / "B.csv")


def test_names_and_labels_that_do_not_fit_are_refused(benchmark):
    file = write(benchmark / "unknown.csv", {})
    with pytest.raises(InvalidInputError, match=r"unknown.csv has no labels"):
        scored(benchmark, file)
    with pytest.raises(InvalidInputError, match="has a labelled window"):
        scored(benchmark, write(benchmark / "C.csv", {}))
    write(benchmark / "two" / "x_B.csv", {}), write(benchmark / "two" / "y_B.csv", {})
    with pytest.raises(InvalidInputError, match=r"both have scores of realTweets/B.csv"):
        scored(benchmark, benchmark / "two")
    with pytest.raises(InvalidInputError, match=r"none\.csv does not exist; give a file"):
        scored(benchmark, benchmark / "none.csv")
    with pytest.raises(InvalidInputError, match="--labels JSON"):
        app.score_files({"scores": file})
    for content, message in (
        ("[]", "is not a mapping from file names to windows"),
        ("{", "as JSON"),
        ('{"a.csv": ["2015-01-01"]}', "combined_labels"),
    ):
        (benchmark / "combined_windows.json").write_text(content)
        with pytest.raises(InvalidInputError, match=message):
            scored(benchmark, file)


def procedure(corpus, profile):
    """NAB 1.1's sweep over all rows by decreasing score, as in its sweeper: (best raw score, its threshold)."""
    sigmoid = lambda x: -1.0 if x > 3 else 2 / (1 + math.exp(5 * x)) - 1  # noqa: E731
    points, parts = [], {"fp": 0.0}
    for number, item in enumerate(corpus):
        width = previous = None
        for row, score in enumerate(item.scores.tolist()):
            window = next(((a, b) for a, b in item.windows.tolist() if a <= row <= b), None)
            if window is not None:
                a, b = window
                worth = sigmoid(-(b - row + 1) / (b - a + 1)) * profile.true_positive / sigmoid(-1.0)
                name = (number, a)
                if row == b:
                    previous, width = b, b - a + 1
            else:
                past = math.inf if previous is None else (row - previous) / (width - 1)
                worth = profile.false_positive * sigmoid(past)
                name = None
            if row >= probation(len(item.scores)):
                points.append((score, worth, name))
                if name is not None:
                    parts[name] = -profile.false_negative
    best, threshold, level = sum(parts.values()), math.inf, math.inf
    for score, worth, name in [*sorted(points, key=lambda point: -point[0]), (-math.inf, 0.0, None)]:
        if score != level and sum(parts.values()) > best + 1e-12:
            best, threshold = sum(parts.values()), level
        level = score
        if name is None:
            parts["fp"] += worth
        else:
            parts[name] = max(parts[name], worth)
    return best, threshold


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(PROFILES))
def test_the_threshold_and_the_score_are_those_of_nab_s_sweep(seed, profile):
    random = np.random.default_rng(seed)
    corpus = [
        Scored(scores=random.integers(0, 8, 90) / 7, windows=np.array([[20, 29], [50, 54]])[: random.integers(3)])
        for _ in range(2)
    ]
    best, threshold = procedure(corpus, profile)
    found = score_corpus(corpus, profile)
    assert found.raw == pytest.approx(best)
    assert found.threshold == threshold


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_an_increasing_function_of_the_scores_does_not_change_the_result(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 30, 120) / 30
    first, second = (
        score_corpus([Scored(scores=values, windows=np.array([[40, 51], [80, 91]]))])
        for values in (scores, np.exp(3 * scores) - 9)
    )
    assert first.normalised == pytest.approx(second.normalised)


@pytest.mark.realdata
def test_the_real_benchmark_is_scored_from_files(data_root, tmp_path):
    """A detector that knows the labels scores 100: it hits every window of the real files."""
    root = data_root / "finance" / "nab"
    labels = json.loads((root / "labels" / "combined_windows.json").read_text())
    for name in labels:
        if not (root / "data" / name).is_file():
            continue
        with (root / "data" / name).open(newline="") as file:
            times = [row[0] for row in list(csv.reader(file))[1:]]
        starts = {window[0].split(".")[0] for window in labels[name]}
        folder, file_name = name.split("/")
        out = tmp_path / "oracle" / folder / f"oracle_{file_name}"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            "timestamp,value,anomaly_score,label\n" + "".join(f"{time},0,{float(time in starts)},0\n" for time in times)
        )
    table = app.score_files({"scores": tmp_path / "oracle", "labels": root / "labels" / "combined_windows.json"})
    assert [row[1] for row in table.rows] == ["100.00"] * 3
    hit, _, windows = table.rows[0][3].partition(" of ")
    assert hit == windows and int(hit) > 50
