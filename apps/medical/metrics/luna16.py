"""Scores a submission in LUNA16's format against the annotations: sensitivities, CPM, and counts of all marks.

Protocol: luna16.grand-challenge.org/Evaluation; Setio et al., Medical Image Analysis 42, 2017, section 4. The challenge
interpolates each bootstrap sample's curve on 10,000 points between 1/8 and 8 false positives per scan and prints its
limits there; here the limits are taken at the seven rates themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from apps.medical.datasets.luna16_files import read_marks, read_scans, read_truths
from apps.medical.metrics.froc import (
    MAX_MARKS,
    OPERATING_POINTS,
    Interval,
    Mark,
    Truth,
    bootstrap_of,
    cpm,
    froc_of,
    match,
    sensitivity_at,
)
from shared.app import Table
from shared.errors import InvalidInputError

BOOTSTRAP_SAMPLES = 1000
SEED = 16


def score_files(files: Mapping[str, Path]) -> Table:
    """``score_submission`` of the files named submission, annotations, series and, optionally, excluded."""
    required, known = {"submission", "annotations", "series"}, {"submission", "annotations", "excluded", "series"}
    if not required <= files.keys() <= known:
        raise InvalidInputError(
            "scoring a submission needs --submission CSV --annotations CSV --series CSV and, if there are excluded "
            f"findings, --excluded CSV; given: {', '.join(sorted(files)) or 'none'}"
        )
    return score_submission(files["submission"], files["annotations"], files.get("excluded"), files["series"])


def score_submission(
    submission: Path,
    annotations: Path,
    excluded: Path | None,
    series: Path,
    *,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = SEED,
) -> Table:
    """The table of a submission: each figure with its 95 % interval over bootstrap samples of the scans.

    Marks and annotations of series that are not listed in ``series`` are left out, and the table counts them. Raises
    InvalidInputError for files that are not in LUNA16's format, and if no nodule is in a listed series.
    """
    listed = read_scans(series)
    scans = set(listed)
    all_marks, all_truths = read_marks(submission), read_truths(annotations, excluded)
    marks = [mark for mark in all_marks if mark.scan in scans]
    truths = [truth for truth in all_truths if truth.scan in scans]
    if not any(not truth.excluded for truth in truths):
        raise InvalidInputError(f"no nodule of {annotations.name} is in a series of {series.name}")
    if all_marks and not marks:
        raise InvalidInputError(
            f"no mark of {submission.name} is in a series of {series.name}; the first mark is in {all_marks[0].scan!r}"
        )
    left_out = [
        ("marks ignored: series not listed", len(all_marks) - len(marks)),
        ("annotations left out: series not listed", len(all_truths) - len(truths)),
    ]
    return froc_table(
        f"LUNA16 FROC of {submission.name}",
        marks,
        truths,
        scans=len(listed),
        left_out=[(name, count) for name, count in left_out if count],
        notes=() if excluded is not None else ("No excluded findings were given: marks on them are false positives.",),
        samples=samples,
        seed=seed,
    )


def froc_table(
    title: str,
    marks: Sequence[Mark],
    truths: Sequence[Truth],
    *,
    scans: int,
    left_out: Sequence[tuple[str, int]] = (),
    notes: Sequence[str] = (),
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = SEED,
) -> Table:
    """The seven sensitivities and CPM with 95 % intervals over the scans, and counts of all marks."""
    matches = match(marks, truths, scans=scans)
    curve = froc_of(matches)
    sensitivities = [partial(sensitivity_at, false_positives_per_scan=rate) for rate in OPERATING_POINTS]
    intervals = bootstrap_of(
        matches, figures=(*sensitivities, cpm), random=np.random.default_rng(seed), samples=samples
    )
    figures = [*(sensitivity_at(curve, rate) for rate in OPERATING_POINTS), cpm(curve)]
    names = [f"sensitivity at {_rate(rate)} FP/scan" for rate in OPERATING_POINTS] + ["CPM"]
    rows = [
        [name, f"{figure:.4f}", _limits(interval)]
        for name, figure, interval in zip(names, figures, intervals, strict=True)
    ]
    nodules, found = int(matches.nodules_S.sum()), len(matches.hit_scores_H)
    counts = [
        ("scans", scans),
        ("scans without marks", scans - len({mark.scan for mark in marks})),
        ("nodules", nodules),
        ("nodules found at any score", found),
        ("nodules missed", nodules - found),
        ("excluded findings", len(truths) - nodules),
        ("marks", len(marks)),
        ("false positives", len(matches.false_scores_F)),
        ("marks ignored: on excluded findings", matches.ignored_marks),
        ("marks ignored: further ones on a nodule", matches.double_marks),
        (f"marks ignored: beyond {MAX_MARKS} of a scan", matches.surplus_marks),
    ]
    counts += left_out
    if repeated := len(marks) - len(set(marks)):
        counts.append(("marks that repeat another exactly", repeated))
    rows += [[name, str(count), ""] for name, count in counts]
    return Table(
        title=title,
        columns=("figure", "value", "95 % interval"),
        rows=rows,
        notes=(
            f"A mark hits within the nodule's radius. Intervals: {samples:,} bootstrap samples of {scans} scans, "
            f"seed {seed}.",
            *notes,
        ),
    )


def _rate(rate: float) -> str:
    return f"1/{round(1 / rate)}" if rate < 1 else f"{rate:.0f}"


def _limits(interval: Interval) -> str:
    return f"{interval.low:.4f} to {interval.high:.4f}"
