"""Free-response ROC and the competition performance metric (CPM), as LUNA16 defines them.

Setio et al., Medical Image Analysis 42, 2017, section 4; the rules are those of the challenge's own evaluation
(luna16.grand-challenge.org/Evaluation). Positions and diameters are in millimetres, in any one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPERATING_POINTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan over which CPM averages the sensitivity."""

UNKNOWN_DIAMETER_MM = 10.0
"""Replaces a negative diameter, which LUNA16 uses for findings without a size."""

MAX_MARKS = 100

Position = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A finding of the system under test. A higher ``score`` is more suspicious."""

    scan: str
    centre_mm: Position
    score: float


@dataclass(frozen=True, slots=True)
class Truth:
    """An annotation. Marks on an ``excluded`` annotation count neither as hits nor as false positives."""

    scan: str
    centre_mm: Position
    diameter_mm: float
    excluded: bool = False


@dataclass(frozen=True, slots=True)
class Froc:
    """The points of the curve, sorted by decreasing threshold. The first point is (0, 0)."""

    false_positives_per_scan: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    thresholds: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """The marks of all scans, matched by LUNA16's rules. Scans are numbered by their row in ``nodules_S``.

    ``hit_scores_H`` has the highest score on each detected nodule, ``false_scores_F`` the scores of the false
    positives; ``hit_scans_H`` and ``false_scans_F`` have their scans. Three kinds of marks count neither as hits nor as
    false positives: ``double_marks``, further marks on a nodule that is already detected; ``ignored_marks``, on
    excluded findings; and ``surplus_marks``, beyond the maximum per scan.
    """

    hit_scores_H: NDArray[np.float64]
    hit_scans_H: NDArray[np.int64]
    false_scores_F: NDArray[np.float64]
    false_scans_F: NDArray[np.int64]
    nodules_S: NDArray[np.int64]
    double_marks: int
    ignored_marks: int
    surplus_marks: int


def match(marks: Iterable[Mark], truths: Iterable[Truth], *, scans: int, max_marks: int = MAX_MARKS) -> Matches:
    """Matches the marks with the annotations of each scan.

    A mark is a hit if its distance from the centre is strictly less than the radius. If several marks hit a nodule, the
    one with the highest score counts and the others are double marks. A mark that hits both a nodule and an excluded
    finding counts as a hit. Raises ValueError if marks and annotations name more than ``scans`` scans.
    """
    marks, truths = list(marks), list(truths)
    names = sorted({*(truth.scan for truth in truths), *(mark.scan for mark in marks)})
    scan_numbers = {name: n for n, name in enumerate(names)}
    if len(scan_numbers) > scans:
        raise ValueError(f"marks and annotations name {len(scan_numbers)} scans, but there are {scans}")
    centres = np.array([mark.centre_mm for mark in marks], np.float64).reshape(-1, 3)
    scores = np.array([mark.score for mark in marks], np.float64)
    positions = np.array([truth.centre_mm for truth in truths], np.float64).reshape(-1, 3)
    diameters = np.array([truth.diameter_mm for truth in truths], np.float64)
    squared_radii = (np.where(diameters < 0, UNKNOWN_DIAMETER_MM, diameters) / 2) ** 2
    excluded = np.array([truth.excluded for truth in truths], bool)
    mark_rows = _rows_by_scan([scan_numbers[mark.scan] for mark in marks], scans)
    truth_rows = _rows_by_scan([scan_numbers[truth.scan] for truth in truths], scans)
    nodules = np.array([np.count_nonzero(~excluded[rows]) for rows in truth_rows], np.int64)
    hits, false = [np.zeros(0)] * scans, [np.zeros(0)] * scans
    double = ignored = surplus = 0
    for scan in range(len(scan_numbers)):
        truth_row, all_marks = truth_rows[scan], mark_rows[scan]
        kept_marks = all_marks[_strongest(scores[all_marks], max_marks)]
        surplus += len(all_marks) - len(kept_marks)
        squared_distances = ((centres[kept_marks, None] - positions[None, truth_row]) ** 2).sum(axis=2)
        within_radius = squared_distances < squared_radii[None, truth_row]
        on_nodules = within_radius[:, ~excluded[truth_row]]
        on_excluded = within_radius[:, excluded[truth_row]].any(axis=1)
        is_hit = on_nodules.any(axis=1)
        marks_per_nodule = on_nodules.sum(axis=0)
        strongest = np.where(on_nodules, scores[kept_marks, None], -np.inf).max(axis=0, initial=-np.inf)
        hits[scan] = strongest[marks_per_nodule > 0]
        false[scan] = scores[kept_marks[~is_hit & ~on_excluded]]
        double += int(np.maximum(marks_per_nodule - 1, 0).sum())
        ignored += int((on_excluded & ~is_hit).sum())
    scan_indices = np.arange(scans)
    return Matches(
        hit_scores_H=np.concatenate([np.zeros(0), *hits]),
        hit_scans_H=np.repeat(scan_indices, [len(scores) for scores in hits]),
        false_scores_F=np.concatenate([np.zeros(0), *false]),
        false_scans_F=np.repeat(scan_indices, [len(scores) for scores in false]),
        nodules_S=nodules,
        double_marks=double,
        ignored_marks=ignored,
        surplus_marks=surplus,
    )


def froc(marks: Iterable[Mark], truths: Iterable[Truth], *, scans: int, max_marks: int = MAX_MARKS) -> Froc:
    """The curve over ``scans`` scans, a number that includes scans without marks or annotations."""
    return froc_of(match(marks, truths, scans=scans, max_marks=max_marks))


def froc_of(matches: Matches) -> Froc:
    """The curve of matched marks."""
    return _Ranking(matches).curve(np.ones(len(matches.nodules_S), np.int64))


def sensitivity_at(curve: Froc, false_positives_per_scan: float) -> float:
    """The sensitivity at a rate of false positives, linearly interpolated between the points of the curve."""
    return float(np.interp(false_positives_per_scan, curve.false_positives_per_scan, curve.sensitivity))


def cpm(curve: Froc) -> float:
    """Mean sensitivity at the seven operating points."""
    return float(np.interp(OPERATING_POINTS, curve.false_positives_per_scan, curve.sensitivity).mean())


def score_at(curve: Froc, false_positives_per_scan: float) -> float:
    """The lowest score with at most this many false positives per scan, or 1 if no score has so few."""
    allowed = curve.false_positives_per_scan <= false_positives_per_scan
    return min(float(curve.thresholds[allowed][-1]), 1.0)


def point_at(curve: Froc, score: float) -> tuple[float, float]:
    """False positives per scan and sensitivity of the marks that score at least ``score``."""
    last = int(np.nonzero(curve.thresholds >= score)[0][-1])
    return float(curve.false_positives_per_scan[last]), float(curve.sensitivity[last])


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean and the 95 % limits of a figure over bootstrap samples of the scans."""

    mean: float
    low: float
    high: float


def bootstrap(
    marks: Iterable[Mark],
    truths: Iterable[Truth],
    *,
    scans: int,
    figures: Sequence[Callable[[Froc], float]],
    random: np.random.Generator,
    samples: int = 1000,
) -> list[Interval]:
    """The interval of each figure of the curve, over samples of the ``scans`` scans drawn with replacement."""
    return bootstrap_of(match(marks, truths, scans=scans), figures=figures, random=random, samples=samples)


def bootstrap_of(
    matches: Matches,
    *,
    figures: Sequence[Callable[[Froc], float]],
    random: np.random.Generator,
    samples: int = 1000,
) -> list[Interval]:
    """``bootstrap`` for matched marks. Each sample only changes the weights of the scans."""
    scans = len(matches.nodules_S)
    ranking = _Ranking(matches)
    values = np.empty((samples, len(figures)))
    for n in range(samples):
        drawn = np.bincount(random.integers(scans, size=scans), minlength=scans)
        curve = ranking.curve(drawn)
        values[n] = [figure(curve) for figure in figures]
    ordered = np.sort(values, axis=0)
    low, high = ordered[int(0.025 * samples)], ordered[min(int(0.975 * samples), samples - 1)]
    return [Interval(*map(float, row)) for row in zip(values.mean(axis=0), low, high, strict=True)]


class _Ranking:
    """All scores in decreasing order, so that the curve for any weights of the scans is two cumulative sums."""

    def __init__(self, matches: Matches) -> None:
        scores = np.concatenate([matches.hit_scores_H, matches.false_scores_F])
        order = np.argsort(-scores, kind="stable")
        self._scores = scores[order]
        self._scans = np.concatenate([matches.hit_scans_H, matches.false_scans_F])[order]
        self._hit_rows = np.nonzero(order < len(matches.hit_scores_H))[0]
        # Marks of equal score share a threshold: the last row of each score.
        self._ends = np.nonzero(np.append(np.diff(self._scores) != 0, True))[0][: len(scores)]
        self._nodules_S = matches.nodules_S

    def curve(self, weights_S: NDArray[np.int64]) -> Froc:
        """The curve of the scans, each counted as many times as its weight."""
        weights = weights_S.astype(np.int32)[self._scans]
        hits = np.zeros_like(weights)
        hits[self._hit_rows] = weights[self._hit_rows]
        detected, claimed = np.cumsum(hits)[self._ends], np.cumsum(weights)[self._ends]
        # Scores that occur only in scans of weight 0 are not points of the curve.
        points = np.nonzero(np.diff(claimed, prepend=0))[0]
        detected, claimed = detected[points], claimed[points]
        # Nodules that no mark hits count in the denominator only.
        nodules = int((weights_S * self._nodules_S).sum())
        return Froc(
            np.concatenate([[0.0], (claimed - detected) / max(int(weights_S.sum()), 1)]),
            np.concatenate([[0.0], detected / max(nodules, 1)]),
            np.concatenate([[np.inf], self._scores[self._ends[points]]]),
        )


def _rows_by_scan(scan_of_row: Sequence[int], scans: int) -> list[NDArray[np.int64]]:
    """The rows of each scan, in their original order."""
    numbers = np.asarray(scan_of_row, np.int64)
    bounds = np.searchsorted(np.sort(numbers), np.arange(1, scans))
    return np.split(np.argsort(numbers, kind="stable"), bounds)


def _strongest(scores: NDArray[np.float64], max_marks: int) -> NDArray[np.bool_]:
    """Whether each mark of a scan is kept. Of more than ``max_marks``, those above the first surplus score."""
    if len(scores) <= max_marks:
        return np.ones(len(scores), bool)
    strongest: NDArray[np.bool_] = scores > np.sort(scores)[::-1][max_marks]
    return strongest
