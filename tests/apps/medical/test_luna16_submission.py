"""A submission's table, against the challenge's procedure written out plainly and scikit-learn's ROC curve."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from apps.medical.app import app
from apps.medical.datasets.luna16_files import read_marks, read_scans, read_truths
from apps.medical.metrics.froc import OPERATING_POINTS, Mark, Truth, bootstrap_of, cpm, froc_of, match, sensitivity_at
from apps.medical.metrics.luna16 import score_submission
from shared.errors import InvalidInputError

HEADING = "seriesuid,coordX,coordY,coordZ,probability\n"


def published(marks, truths, scans, drawn=None):
    """The challenge's procedure, mark by mark: sensitivities at the seven rates, and counts of the ignored marks.

    ``drawn`` are the scans of a bootstrap sample. Follows the description in noduleCADEvaluationLUNA16: a list of
    labels and scores, with the missed nodules left out of the ROC curve, and linear interpolation between its points.
    """
    labels, scores, nodules, counts = [], [], 0, Counter()
    for scan in scans if drawn is None else drawn:
        scan_marks = [mark for mark in marks if mark.scan == scan]
        if len(scan_marks) > 100:
            limit = sorted((mark.score for mark in scan_marks), reverse=True)[100]
            counts["surplus"] += sum(mark.score <= limit for mark in scan_marks)
            scan_marks = [mark for mark in scan_marks if mark.score > limit]
        left = list(range(len(scan_marks)))
        for truth in sorted((truth for truth in truths if truth.scan == scan), key=lambda truth: truth.excluded):
            radius = (truth.diameter_mm if truth.diameter_mm >= 0 else 10.0) / 2
            hits = []
            for number, mark in enumerate(scan_marks):
                if sum((a - b) ** 2 for a, b in zip(mark.centre_mm, truth.centre_mm, strict=True)) < radius**2:
                    if not truth.excluded:
                        hits.append(mark.score)
                    elif number in left:
                        counts["ignored"] += 1
                    if number in left:
                        left.remove(number)
            if not truth.excluded:
                nodules += 1
                counts["double"] += max(len(hits) - 1, 0)
                if hits:
                    labels.append(1)
                    scores.append(max(hits))
        labels += [0] * len(left)
        scores += [scan_marks[number].score for number in left]
    detected = sum(labels)
    if not detected:
        return [0.0] * 7, counts
    false = len(labels) - detected
    if not false:
        return [detected / nodules] * 7, counts
    fpr, tpr, _ = roc_curve(labels, scores)
    return np.interp(OPERATING_POINTS, fpr * false / len(scans), tpr * detected / nodules).tolist(), counts


_points = st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.integers(0, 12))
_findings = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.sampled_from([6.0, 9.0, -1.0, 25.0])))


def _drawn(points, nodules, excluded):
    marks = [Mark(scan, (float(4 * x), 1.0, 0.0), score / 12) for scan, x, score in points]
    truths = [Truth(scan, (4.0 * x, 0.0, 0.0), size) for scan, x, size in nodules]
    return marks, truths + [Truth(scan, (4.0 * x, 0.0, 0.0), size, True) for scan, x, size in excluded]


@given(st.lists(_points, max_size=40), _findings, _findings)
def test_any_submission_scores_as_in_the_challenge_s_procedure(points, nodules, excluded):
    marks, truths = _drawn(points, nodules, excluded)
    matches = match(marks, truths, scans=5)
    expected, counts = published(marks, truths, "abcde")
    curve = froc_of(matches)
    assert [sensitivity_at(curve, rate) for rate in OPERATING_POINTS] == pytest.approx(expected, abs=1e-12)
    assert cpm(curve) == pytest.approx(np.mean(expected), abs=1e-12)
    assert (matches.double_marks, matches.ignored_marks) == (counts["double"], counts["ignored"])


@given(st.lists(_points, max_size=40), _findings, st.randoms(use_true_random=False))
def test_row_order_and_monotonic_changes_of_scores_do_not_matter(points, nodules, random):
    marks, truths = _drawn(points, nodules, [])
    shuffled = [Mark(mark.scan, mark.centre_mm, mark.score**3 - 7) for mark in random.sample(marks, len(marks))]
    others = random.sample(truths, len(truths))
    figures = (cpm, partial(sensitivity_at, false_positives_per_scan=1.0))
    first, second = (
        bootstrap_of(match(m, t, scans=5), figures=figures, random=np.random.default_rng(3), samples=20)
        for m, t in ((marks, truths), (shuffled, others))
    )
    assert first == second


@given(st.lists(_points, max_size=40), _findings, st.lists(_points, max_size=10))
def test_more_false_positives_never_raise_the_cpm(points, nodules, more):
    marks, truths = _drawn(points, nodules, [])
    far = [Mark(scan, (4000.0 + x, 0.0, 0.0), score / 12) for scan, x, score in more]
    before, after = (cpm(froc_of(match(some, truths, scans=5))) for some in (marks, marks + far))
    assert after <= before + 1e-12


@pytest.fixture
def luna16(medical_data):
    return medical_data / "luna16_annotations"


def synthetic_submission(luna16, marks_a_scan=70, seed=0):
    """Synthetic marks: most nodules hit once or twice, some excluded findings, and false positives anywhere."""
    random = np.random.default_rng(seed)
    marks = []
    for truth in read_truths(luna16 / "annotations.csv", luna16 / "annotations_excluded.csv"):
        if random.random() < (0.1 if truth.excluded else 0.95):
            for _ in range(random.integers(1, 3)):
                at = np.add(truth.centre_mm, random.normal(0, 0.5, 3))
                marks.append(Mark(truth.scan, tuple(at.tolist()), round(float(random.beta(4, 2)), 3)))
    for scan in read_scans(luna16 / "seriesuids.csv"):
        for _ in range(random.integers(marks_a_scan)):
            at = random.uniform(-200, 200, 3)
            marks.append(Mark(scan, tuple(at.tolist()), round(float(random.beta(1, 5)), 3)))
    return marks


def written(path, marks, heading=HEADING, separator=",", uid="{}"):
    lines = [
        separator.join([uid.format(mark.scan), *map(repr, mark.centre_mm), repr(mark.score)]) + "\n" for mark in marks
    ]
    path.write_text(heading.replace(",", separator) + "".join(lines))
    return path


def files(luna16, submission):
    return {
        "submission": submission,
        "annotations": luna16 / "annotations.csv",
        "excluded": luna16 / "annotations_excluded.csv",
        "series": luna16 / "seriesuids.csv",
    }


@pytest.mark.realdata
def test_the_annotations_themselves_are_a_perfect_submission(luna16, tmp_path):
    nodules = read_truths(luna16 / "annotations.csv")
    marks = [Mark(nodule.scan, nodule.centre_mm, 0.9) for nodule in nodules]
    table = app.score_files(files(luna16, written(tmp_path / "perfect.csv", marks)))
    rows = {row[0]: row[1] for row in table.rows}
    assert rows["CPM"] == "1.0000"
    assert rows["scans"] == "888"
    assert rows["nodules"] == rows["nodules found at any score"] == rows["marks"] == "1186"
    assert rows["excluded findings"] == "35192"
    assert rows["false positives"] == rows["marks ignored: on excluded findings"] == "0"


@pytest.mark.realdata
def test_a_large_submission_is_scored_as_published_with_its_counts(luna16, tmp_path):
    marks = synthetic_submission(luna16, marks_a_scan=120)
    file = written(tmp_path / "marks.csv", marks)
    truths = read_truths(luna16 / "annotations.csv", luna16 / "annotations_excluded.csv")
    scans = read_scans(luna16 / "seriesuids.csv")
    some = set(scans[:150])
    (tmp_path / "series.csv").write_text("seriesuid\n" + "\n".join(scans[:150]))
    began = time.process_time()
    table = score_submission(
        file, luna16 / "annotations.csv", luna16 / "annotations_excluded.csv", tmp_path / "series.csv", samples=50
    )
    assert time.process_time() - began < 10
    rows = {row[0]: row[1] for row in table.rows}
    expected, counts = published(
        [mark for mark in marks if mark.scan in some], [truth for truth in truths if truth.scan in some], scans[:150]
    )
    for rate, value in zip(("1/8", "1/4", "1/2", "1", "2", "4", "8"), expected, strict=True):
        assert float(rows[f"sensitivity at {rate} FP/scan"]) == pytest.approx(value, abs=5e-5)
    assert counts["double"] and counts["ignored"] and counts["surplus"]
    assert int(rows["marks ignored: further ones on a nodule"]) == counts["double"]
    assert int(rows["marks ignored: on excluded findings"]) == counts["ignored"]
    assert int(rows["marks ignored: beyond 100 of a scan"]) == counts["surplus"]
    assert int(rows["marks ignored: series not listed"]) == sum(mark.scan not in some for mark in marks)


@pytest.mark.realdata
def test_a_thousand_bootstrap_samples_of_888_scans_take_seconds(luna16):
    """The limit is generous, for a busy machine; ``benchmarks/score_submission.py`` prints the actual time."""
    truths = read_truths(luna16 / "annotations.csv", luna16 / "annotations_excluded.csv")
    matches = match(synthetic_submission(luna16), truths, scans=888)
    began = time.process_time()
    (interval,) = bootstrap_of(matches, figures=(cpm,), random=np.random.default_rng(0), samples=1000)
    assert time.process_time() - began < 5
    assert interval.low < cpm(froc_of(matches)) < interval.high


def test_a_bootstrap_sample_is_the_published_curve_of_the_scans_drawn():
    random = np.random.default_rng(5)
    scans = "abcdef"
    marks = [Mark(str(random.choice(list(scans))), (4.0 * random.integers(9), 0.0, 0.0), s / 60) for s in range(60)]
    truths = [Truth(scan, (4.0 * x, 0.0, 0.0), 6.0, x > 5) for scan in "abcde" for x in (1, 3, 7)]
    figures = [partial(sensitivity_at, false_positives_per_scan=rate) for rate in OPERATING_POINTS]
    found = bootstrap_of(match(marks, truths, scans=6), figures=figures, random=np.random.default_rng(7), samples=40)
    draws = np.random.default_rng(7)
    samples = [
        published(marks, truths, scans, drawn=[scans[n] for n in draws.integers(6, size=6)])[0] for _ in range(40)
    ]
    ordered = np.sort(samples, axis=0)
    assert [interval.mean for interval in found] == pytest.approx(np.mean(samples, axis=0).tolist())
    assert [interval.low for interval in found] == pytest.approx(ordered[1].tolist())
    assert [interval.high for interval in found] == pytest.approx(ordered[39].tolist())


@pytest.mark.parametrize(
    ("heading", "separator", "uid"),
    [
        (HEADING, "\t", "{}"),
        (HEADING, ";", "{} "),
        (HEADING, ",", '"{}"'),
        ("\ufeff" + HEADING, ",", "{}\0"),
        (HEADING.upper(), ", ", '"{} "'),
        ("SeriesInstanceUID,x,y,z,score\n", ",", "'{}'"),
    ],
)
def test_separators_padding_quotes_and_column_names_may_vary(tmp_path, heading, separator, uid):
    marks = [Mark("1.2.3", (1.0, -2.5, 3.0), 0.5), Mark("1.2.33", (4.0, 5.0, 6.0), 0.25)]
    assert read_marks(written(tmp_path / "marks.csv", marks, heading, separator, uid)) == marks


def _small(tmp_path, marks, nodules="a,0,0,0,6\n", excluded="a,20,0,0,-1\n", series="a\nb\n"):
    contents = {
        "submission": HEADING + marks,
        "annotations": "seriesuid,coordX,coordY,coordZ,diameter_mm\n" + nodules,
        "excluded": "seriesuid,coordX,coordY,coordZ,diameter_mm\n" + excluded,
        "series": series,
    }
    for name, text in contents.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return {name: tmp_path / f"{name}.csv" for name in contents}


def test_every_mark_is_accounted_for(tmp_path):
    marks = "a,0,0,0,.9\na,1,0,0,.8\na,21,0,0,.7\na,99,0,0,.6\nb,0,0,0,.5\nb,0,0,0,.5\nc,0,0,0,.4\n"
    rows = {row[0]: row[1] for row in app.score_files(_small(tmp_path, marks)).rows}
    assert rows["marks"] == "6"
    assert rows["marks ignored: further ones on a nodule"] == "1"
    assert rows["marks ignored: on excluded findings"] == "1"
    assert rows["false positives"] == "3"
    assert rows["marks ignored: series not listed"] == "1"
    assert rows["marks that repeat another exactly"] == "1"
    assert rows["sensitivity at 1/8 FP/scan"] == "1.0000"


def test_the_table_states_that_there_are_no_excluded_findings(tmp_path):
    files = _small(tmp_path, "a,21,0,0,.7\n")
    del files["excluded"]
    table = app.score_files(files)
    assert {row[0]: row[1] for row in table.rows}["false positives"] == "1"
    assert any("No excluded findings" in note for note in table.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"marks": "a,0,0,x,.9\n"}, "submission.csv, row 2"),
        ({"marks": "a,0,0,0,.9\na,0,0,0\n"}, "submission.csv, row 3"),
        ({"marks": "a,0,0,0,nan\n"}, "not four finite numbers"),
        ({"marks": "z,0,0,0,.9\n"}, "no mark of submission.csv is in a series"),
        ({"marks": "a,0,0,0,.9\n", "nodules": "z,0,0,0,6\n"}, "no nodule of annotations.csv"),
        ({"marks": "a,0,0,0,.9\n", "series": "a\na\n"}, "lists the series a twice"),
        ({"marks": "a,0,0,0,.9\n", "series": ""}, "lists no series"),
    ],
)
def test_unusable_files_are_rejected_with_the_file_and_the_row(tmp_path, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        app.score_files(_small(tmp_path, **changes))


def test_missing_and_unknown_files_are_rejected(tmp_path):
    files = _small(tmp_path, "a,0,0,0,.9\n")
    with pytest.raises(InvalidInputError, match="--series"):
        app.score_files({name: path for name, path in files.items() if name != "series"})
    with pytest.raises(InvalidInputError, match=r"given: .*labels"):
        app.score_files({**files, "labels": tmp_path})
    with pytest.raises(InvalidInputError, match="cannot be read as text"):
        app.score_files({**files, "series": tmp_path})
