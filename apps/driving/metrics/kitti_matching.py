"""Which detections hit which objects, as KITTI's development kit assigns them (computeStatistics), all frames at once.

An object takes, in the order of the file, one detection that overlaps it enough and that no object before it took: to
choose the thresholds the one with the highest score, to count at a threshold the one with the largest overlap. Most
objects compete with no other for a detection. For these the counts at every threshold follow from sums over sorted
scores; only the others are gone through object by object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.driving.metrics.overlap import Doubles

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """K pairs of an object and a detection that overlap enough, neither of which plays no part, by object.

    ``rows`` and ``columns`` (K,) are their numbers among T objects and D detections; ``similarity`` (K,) is that of
    their orientations. States: 0 counts, 1 is neutral, -1 plays no part. A detection that is ``in_region_D``, in an
    ignored one, is no false positive. ``frame_T`` is the frame of each object.
    """

    rows: Integers
    columns: Integers
    overlap: Doubles
    similarity: Doubles
    state_T: Integers
    state_D: Integers
    scores_D: Doubles
    in_region_D: NDArray[np.bool_]
    frame_T: Integers


@dataclass(frozen=True, slots=True)
class Counts:
    """True and false positives and the sum of orientation similarities, (M,) at M thresholds."""

    true_positives: Doubles
    false_positives: Doubles
    similarity: Doubles


def hit_scores(candidates: Candidates) -> Doubles:
    """Scores of the detections that hit an object which counts, each object taking the highest score that is left."""
    contested = _contested(candidates)
    rows, columns = candidates.rows[~contested], candidates.columns[~contested]
    order = np.lexsort((columns, -candidates.scores_D[columns], rows))
    rows, columns = rows[order], columns[order]
    first = np.append(True, rows[1:] != rows[:-1])[: len(rows)]
    rows, columns = rows[first], columns[first]
    proper = (candidates.state_T[rows] == 0) & (candidates.state_D[columns] == 0)
    scores = [candidates.scores_D[columns[proper]]]
    for group in _groups(candidates, contested):
        free = np.ones(len(group.scores), bool)
        for index, overlapping in enumerate(group.overlap > 0):
            choice = np.nonzero(free & overlapping)[0]
            if not len(choice):
                continue
            taken = choice[np.argmax(group.scores[choice])]
            free[taken] = False
            if group.counts_T[index] and group.proper_D[taken]:
                scores.append(group.scores[taken : taken + 1])
    return np.concatenate(scores)


def count_at(candidates: Candidates, thresholds: Doubles) -> Counts:
    """What the detections of at least each threshold are worth.

    An object takes the detection of the largest overlap; one too small in the image only where there is no other.
    """
    contested = _contested(candidates)
    in_group = np.zeros(len(candidates.scores_D), bool)
    in_group[candidates.columns[contested]] = True
    unmatched = (candidates.state_D == 0) & ~candidates.in_region_D & ~in_group
    steps = [
        _Steps(
            candidates.scores_D[unmatched],
            np.zeros(unmatched.sum()),
            np.ones(unmatched.sum()),
            np.zeros(unmatched.sum()),
        )
    ]
    steps += _uncontested_steps(candidates, ~contested)
    scores = np.concatenate([step.scores for step in steps])
    order = np.argsort(-scores, kind="stable")
    upto = np.searchsorted(-scores[order], -thresholds, side="right")
    true_positives, false_positives, similarity = (
        np.concatenate([[0.0], np.cumsum(np.concatenate([getattr(step, name) for step in steps])[order])])[upto]
        for name in ("true_positives", "false_positives", "similarity")
    )
    for group in _groups(candidates, contested):
        more = _count_group(group, thresholds)
        true_positives, false_positives, similarity = (
            true_positives + more.true_positives,
            false_positives + more.false_positives,
            similarity + more.similarity,
        )
    return Counts(true_positives, false_positives, similarity)


@dataclass(frozen=True, slots=True)
class _Steps:
    """How the counts change at each score, as the threshold falls below it."""

    scores: Doubles
    true_positives: Doubles
    false_positives: Doubles
    similarity: Doubles


def _contested(candidates: Candidates) -> NDArray[np.bool_]:
    """(K,) the pairs of objects that compete with another one for a detection."""
    several = np.bincount(candidates.columns, minlength=len(candidates.scores_D)) > 1
    competing = np.zeros(len(candidates.state_T), bool)
    competing[candidates.rows[several[candidates.columns]]] = True
    return competing[candidates.rows]


def _uncontested_steps(candidates: Candidates, chosen: NDArray[np.bool_]) -> list[_Steps]:
    """Objects with detections of their own: as the threshold falls, each takes whichever overlaps it most so far.

    One round for the best-scored detection of every object, one for the second, and so on.
    """
    rows, columns = candidates.rows[chosen], candidates.columns[chosen]
    overlap, similarity = candidates.overlap[chosen], candidates.similarity[chosen]
    proper = candidates.state_D[columns] == 0
    rows, columns, overlap, similarity = (values[proper] for values in (rows, columns, overlap, similarity))
    order = np.lexsort((columns, -candidates.scores_D[columns], rows))
    rows, columns, overlap, similarity = (values[order] for values in (rows, columns, overlap, similarity))
    start = np.append(True, rows[1:] != rows[:-1])[: len(rows)]
    places = np.arange(len(rows))
    nth = places - np.maximum.accumulate(np.where(start, places, 0))
    taken = np.full(len(candidates.state_T), -1)
    steps = []
    for turn in range(int(nth.max(initial=-1)) + 1):
        now = np.nonzero(nth == turn)[0]
        before = taken[rows[now]]
        had = before >= 0
        larger = overlap[now] > overlap[before]
        # Of equal overlaps the first in the file is taken.
        equal_first = (overlap[now] == overlap[before]) & (columns[now] < columns[before])
        better = ~had | larger | equal_first
        now, before, had = now[better], before[better], had[better]
        counts = candidates.state_T[rows[now]] == 0
        outside = (~candidates.in_region_D).astype(np.float64)
        steps.append(
            _Steps(
                scores=candidates.scores_D[columns[now]],
                true_positives=(counts & ~had).astype(np.float64),
                false_positives=np.where(had, outside[columns[before]], 0.0) - outside[columns[now]],
                similarity=counts * (similarity[now] - np.where(had, similarity[before], 0.0)),
            )
        )
        taken[rows[now]] = now
    return steps


@dataclass(frozen=True, slots=True)
class _Group:
    """Contested objects (T,) and detections (D,) of one frame; ``overlap`` and ``similarity`` (T, D), 0 for no pair."""

    overlap: Doubles
    similarity: Doubles
    scores: Doubles
    counts_T: NDArray[np.bool_]
    proper_D: NDArray[np.bool_]
    in_region_D: NDArray[np.bool_]


def _groups(candidates: Candidates, contested: NDArray[np.bool_]) -> Iterator[_Group]:
    rows, columns = candidates.rows[contested], candidates.columns[contested]
    overlap, similarity = candidates.overlap[contested], candidates.similarity[contested]
    frame = candidates.frame_T[rows]
    bounds = np.nonzero(np.append(frame[1:] != frame[:-1], True))[0] + 1 if len(frame) else np.zeros(0, np.int64)
    begin = 0
    for end in bounds.tolist():
        part = slice(begin, end)
        begin = end
        objects, of_object = np.unique(rows[part], return_inverse=True)
        found, of_found = np.unique(columns[part], return_inverse=True)
        tables = np.zeros((2, len(objects), len(found)))
        tables[0, of_object, of_found], tables[1, of_object, of_found] = overlap[part], similarity[part]
        yield _Group(
            overlap=tables[0],
            similarity=tables[1],
            scores=candidates.scores_D[found],
            counts_T=candidates.state_T[objects] == 0,
            proper_D=candidates.state_D[found] == 0,
            in_region_D=candidates.in_region_D[found],
        )


def _count_group(group: _Group, thresholds: Doubles) -> Counts:
    free = group.scores[None] >= thresholds[:, None]
    numbers = np.arange(len(thresholds))
    true_positives, similarity = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    for index, overlap in enumerate(group.overlap):
        choice = free & (overlap > 0)[None]
        proper = choice & group.proper_D[None]
        matched: NDArray[np.bool_] = choice.any(axis=1)
        valid = proper.any(axis=1)
        taken = np.where(valid, np.where(proper, overlap[None], -1.0).argmax(axis=1), choice.argmax(axis=1))
        free[numbers[matched], taken[matched]] = False
        if group.counts_T[index]:
            true_positives += valid
            similarity += valid * group.similarity[index, taken]
    false_positives = (free & (group.proper_D & ~group.in_region_D)[None]).sum(axis=1).astype(np.float64)
    return Counts(true_positives, false_positives, similarity)
