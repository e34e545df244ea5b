"""Free-response ROC and the competition performance metric, as LUNA16 defines them.

Setio et al., Medical Image Analysis 42, 2017, section 4; the rules are those of the challenge's own evaluation
(luna16.grand-challenge.org/Evaluation). Positions and diameters are in millimetres, in any one frame.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPERATING_POINTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which CPM averages the sensitivity."""

UNKNOWN_DIAMETER_MM = 10.0
"""Stands for a negative diameter, which LUNA16 gives to findings without a size."""

MOST_MARKS = 100

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


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One scan: scores of detected nodules, scores of false positives, number of nodules."""

    hits: list[float]
    false: list[float]
    nodules: int


def froc(marks: Iterable[Mark], truths: Iterable[Truth], *, scans: int, most_marks: int = MOST_MARKS) -> Froc:
    """The curve over ``scans`` scans: their number, those without marks or annotations counted as well."""
    return _curve(list(_outcomes(marks, truths, most_marks).values()), scans)


def sensitivity_at(curve: Froc, false_positives_per_scan: float) -> float:
    """Sensitivity at a rate of false positives, between the curve's points by straight lines."""
    return float(np.interp(false_positives_per_scan, curve.false_positives_per_scan, curve.sensitivity))


def cpm(curve: Froc) -> float:
    """Mean sensitivity at the seven operating points."""
    return float(np.mean([sensitivity_at(curve, rate) for rate in OPERATING_POINTS]))


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
    outcomes = list(_outcomes(marks, truths, MOST_MARKS).values())
    outcomes += [_Outcome([], [], 0)] * (scans - len(outcomes))
    values = np.empty((samples, len(figures)))
    for n in range(samples):
        curve = _curve([outcomes[index] for index in random.integers(scans, size=scans)], scans)
        values[n] = [figure(curve) for figure in figures]
    ordered = np.sort(values, axis=0)
    low, high = ordered[int(0.025 * samples)], ordered[min(int(0.975 * samples), samples - 1)]
    return [Interval(*map(float, row)) for row in zip(values.mean(axis=0), low, high, strict=True)]


def _outcomes(marks: Iterable[Mark], truths: Iterable[Truth], most_marks: int) -> dict[str, _Outcome]:
    marks_of: dict[str, list[Mark]] = defaultdict(list)
    truths_of: dict[str, list[Truth]] = defaultdict(list)
    for mark in marks:
        marks_of[mark.scan].append(mark)
    for truth in truths:
        truths_of[truth.scan].append(truth)
    return {scan: _match(_strongest(marks_of[scan], most_marks), truths_of[scan]) for scan in {*marks_of, *truths_of}}


def _strongest(marks: list[Mark], most: int) -> list[Mark]:
    """With more than ``most`` marks: those scored strictly above the first that is too many."""
    if len(marks) <= most:
        return marks
    limit = sorted((mark.score for mark in marks), reverse=True)[most]
    return [mark for mark in marks if mark.score > limit]


def _match(marks: list[Mark], truths: list[Truth]) -> _Outcome:
    """A mark hits when its distance to the centre is strictly less than the radius.

    Of several hits on one nodule the strongest counts, and the others are ignored. Included nodules come first: a
    mark that has hit one is not taken away by an excluded finding.
    """
    centres = np.array([mark.centre_mm for mark in marks], np.float64).reshape(-1, 3)
    scores = np.array([mark.score for mark in marks], np.float64)
    unmatched = np.ones(len(marks), bool)
    hits: list[float] = []
    for truth in sorted(truths, key=lambda truth: truth.excluded):
        diameter = truth.diameter_mm if truth.diameter_mm >= 0 else UNKNOWN_DIAMETER_MM
        near = ((centres - np.array(truth.centre_mm)) ** 2).sum(axis=1) < (diameter / 2) ** 2
        unmatched &= ~near
        if not truth.excluded and near.any():
            hits.append(float(scores[near].max()))
    return _Outcome(hits, scores[unmatched].tolist(), sum(not truth.excluded for truth in truths))


def _curve(outcomes: Sequence[_Outcome], scans: int) -> Froc:
    hits = np.array([score for outcome in outcomes for score in outcome.hits], np.float64)
    false = np.array([score for outcome in outcomes for score in outcome.false], np.float64)
    nodules = sum(outcome.nodules for outcome in outcomes)
    thresholds = np.unique(np.concatenate([hits, false]))[::-1]
    detected = len(hits) - np.searchsorted(np.sort(hits), thresholds, side="left")
    wrong = len(false) - np.searchsorted(np.sort(false), thresholds, side="left")
    # A nodule that no mark hits is in the denominator, and gives no point.
    return Froc(
        np.concatenate([[0.0], wrong / max(scans, 1)]),
        np.concatenate([[0.0], detected / max(nodules, 1)]),
        np.concatenate([[np.inf], thresholds]),
    )
