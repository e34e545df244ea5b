"""Free-response ROC and the competition performance metric, as LUNA16 defines them.

Setio et al., Medical Image Analysis 42, 2017, section 4; the rules are those of the challenge's own evaluation
(luna16.grand-challenge.org/Evaluation). Positions and diameters are in millimetres, in any one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPERATING_POINTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which CPM averages the sensitivity."""

UNKNOWN_DIAMETER_MM = 10.0
"""Stands for a negative diameter, which LUNA16 gives to findings without a size."""

MAX_MARKS = 100

Position = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A finding of the system under test; ``score`` grows with suspicion."""

    scan: str
    centre_mm: Position
    score: float


@dataclass(frozen=True, slots=True)
class Truth:
    """An annotation. Marks on an ``excluded`` one count neither as hits nor as false positives."""

    scan: str
    centre_mm: Position
    diameter_mm: float
    excluded: bool = False


@dataclass(frozen=True, slots=True)
class Froc:
    """Points of the curve in the order of falling thresholds; the first is (0, 0)."""

    false_positives_per_scan: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    thresholds: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """What LUNA16's rules make of the marks of all scans; a scan is its row number in ``nodules_S``.

    ``hit_scores_H`` are those of the nodules that were found, by their strongest mark, ``false_scores_F`` those of the
    false positives; ``hit_scans_H`` and ``false_scans_F`` say on which scan. ``double_marks`` are further marks on a
    nodule that another one found, ``ignored_marks`` those on excluded findings, ``surplus_marks`` those beyond the most
    that a scan may have: they count neither way.
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
    """Compares the marks with the annotations, scan by scan.

    A mark hits when its distance to the centre is strictly less than the radius. Of several hits on one nodule the
    strongest counts, and the others are double marks. Included nodules come first: a mark that has hit one is not taken
    away by an excluded finding. Raises ValueError where marks and annotations name more than ``scans`` scans.
    """
    marks, truths = list(marks), list(truths)
    names = sorted({*(truth.scan for truth in truths), *(mark.scan for mark in marks)})
    number = {name: n for n, name in enumerate(names)}
    if len(number) > scans:
        raise ValueError(f"marks and annotations name {len(number)} scans, but there are {scans}")
    centres = np.array([mark.centre_mm for mark in marks], np.float64).reshape(-1, 3)
    scores = np.array([mark.score for mark in marks], np.float64)
    positions = np.array([truth.centre_mm for truth in truths], np.float64).reshape(-1, 3)
    diameters = np.array([truth.diameter_mm for truth in truths], np.float64)
    squared_radii = (np.where(diameters < 0, UNKNOWN_DIAMETER_MM, diameters) / 2) ** 2
    excluded = np.array([truth.excluded for truth in truths], bool)
    rows_of_marks = _rows_by_scan([number[mark.scan] for mark in marks], scans)
    rows_of_truths = _rows_by_scan([number[truth.scan] for truth in truths], scans)
    nodules = np.array([np.count_nonzero(~excluded[rows]) for rows in rows_of_truths], np.int64)
    hits, false = [np.zeros(0)] * scans, [np.zeros(0)] * scans
    double = ignored = surplus = 0
    for scan in range(len(number)):
        known, all_found = rows_of_truths[scan], rows_of_marks[scan]
        found = all_found[_strongest(scores[all_found], max_marks)]
        surplus += len(all_found) - len(found)
        apart = ((centres[found, None] - positions[None, known]) ** 2).sum(axis=2)
        near = apart < squared_radii[None, known]
        on_nodules, on_excluded = near[:, ~excluded[known]], near[:, excluded[known]].any(axis=1)
        hitting = on_nodules.any(axis=1)
        marks_a_nodule = on_nodules.sum(axis=0)
        strongest = np.where(on_nodules, scores[found, None], -np.inf).max(axis=0, initial=-np.inf)
        hits[scan] = strongest[marks_a_nodule > 0]
        false[scan] = scores[found[~hitting & ~on_excluded]]
        double += int(np.maximum(marks_a_nodule - 1, 0).sum())
        ignored += int((on_excluded & ~hitting).sum())
    numbers = np.arange(scans)
    return Matches(
        hit_scores_H=np.concatenate([np.zeros(0), *hits]),
        hit_scans_H=np.repeat(numbers, [len(scores) for scores in hits]),
        false_scores_F=np.concatenate([np.zeros(0), *false]),
        false_scans_F=np.repeat(numbers, [len(scores) for scores in false]),
        nodules_S=nodules,
        double_marks=double,
        ignored_marks=ignored,
        surplus_marks=surplus,
    )


def froc(marks: Iterable[Mark], truths: Iterable[Truth], *, scans: int, max_marks: int = MAX_MARKS) -> Froc:
    """The curve over ``scans`` scans: their number, those without marks or annotations counted as well."""
    return froc_of(match(marks, truths, scans=scans, max_marks=max_marks))


def froc_of(matches: Matches) -> Froc:
    """The curve of marks that have been matched."""
    return _Ranking(matches).curve(np.ones(len(matches.nodules_S), np.int64))


def sensitivity_at(curve: Froc, false_positives_per_scan: float) -> float:
    """Sensitivity at a rate of false positives, between the curve's points by straight lines."""
    return float(np.interp(false_positives_per_scan, curve.false_positives_per_scan, curve.sensitivity))


def cpm(curve: Froc) -> float:
    """Mean sensitivity at the seven operating points."""
    return float(np.interp(OPERATING_POINTS, curve.false_positives_per_scan, curve.sensitivity).mean())


def score_at(curve: Froc, false_positives_per_scan: float) -> float:
    """The least score at which there are at most so many false positives per scan; 1 where no mark is that rare."""
    allowed = curve.false_positives_per_scan <= false_positives_per_scan
    return min(float(curve.thresholds[allowed][-1]), 1.0)


def point_at(curve: Froc, score: float) -> tuple[float, float]:
    """False positives per scan and sensitivity of the marks of at least ``score``."""
    last = int(np.nonzero(curve.thresholds >= score)[0][-1])
    return float(curve.false_positives_per_scan[last]), float(curve.sensitivity[last])


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean and 95 % limits of a figure over bootstrap samples of the scans."""

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
    """As ``bootstrap``, of marks that have been matched: each sample only weights the scans anew."""
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
    """All scores in falling order, so that the curve of any weights of the scans is two running sums."""

    def __init__(self, matches: Matches) -> None:
        scores = np.concatenate([matches.hit_scores_H, matches.false_scores_F])
        order = np.argsort(-scores, kind="stable")
        self._scores = scores[order]
        self._scans = np.concatenate([matches.hit_scans_H, matches.false_scans_F])[order]
        self._hit_rows = np.nonzero(order < len(matches.hit_scores_H))[0]
        # A threshold takes all marks of its score: the last row of each.
        self._ends = np.nonzero(np.append(np.diff(self._scores) != 0, True))[0][: len(scores)]
        self._nodules_S = matches.nodules_S

    def curve(self, weights_S: NDArray[np.int64]) -> Froc:
        """The curve of the scans, each counted as often as its weight says."""
        weights = weights_S.astype(np.int32)[self._scans]
        hits = np.zeros_like(weights)
        hits[self._hit_rows] = weights[self._hit_rows]
        detected, claimed = np.cumsum(hits)[self._ends], np.cumsum(weights)[self._ends]
        # A score that only scans of weight 0 have is no point of the curve.
        points = np.nonzero(np.diff(claimed, prepend=0))[0]
        detected, claimed = detected[points], claimed[points]
        # A nodule that no mark hits is in the denominator, and gives no point.
        nodules = int((weights_S * self._nodules_S).sum())
        return Froc(
            np.concatenate([[0.0], (claimed - detected) / max(int(weights_S.sum()), 1)]),
            np.concatenate([[0.0], detected / max(nodules, 1)]),
            np.concatenate([[np.inf], self._scores[self._ends[points]]]),
        )


def _rows_by_scan(scan_of_row: Sequence[int], scans: int) -> list[NDArray[np.int64]]:
    """For each scan the rows that belong to it, in their order."""
    numbers = np.asarray(scan_of_row, np.int64)
    bounds = np.searchsorted(np.sort(numbers), np.arange(1, scans))
    return np.split(np.argsort(numbers, kind="stable"), bounds)


def _strongest(scores: NDArray[np.float64], most: int) -> NDArray[np.bool_]:
    """Which marks of a scan are kept: of more than ``most`` those strictly above the first that is too many."""
    if len(scores) <= most:
        return np.ones(len(scores), bool)
    strongest: NDArray[np.bool_] = scores > np.sort(scores)[::-1][most]
    return strongest
