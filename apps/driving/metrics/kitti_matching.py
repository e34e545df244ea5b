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

    ``rows`` and ``columns`` (K,) are their numbers among T objects and D detections, ``overlap`` and ``alike`` (K,)
    their overlap and orientation similarity. States: 0 counts, 1 is neutral, -1 plays no part. A detection that is
    ``excused_D`` is no false alarm. ``frame_T`` is the frame of each object.
    """

    rows: Integers
    columns: Integers
    overlap: Doubles
    alike: Doubles
    state_T: Integers
    state_D: Integers
    scores_D: Doubles
    excused_D: NDArray[np.bool_]
    frame_T: Integers


@dataclass(frozen=True, slots=True)
class Counts:
    """True and false positives and the sum of orientation similarities, (M,) at M thresholds."""

    hits: Doubles
    false: Doubles
    alike: Doubles


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
    alarms = (candidates.state_D == 0) & ~candidates.excused_D & ~in_group
    steps = [_Steps(candidates.scores_D[alarms], np.zeros(alarms.sum()), np.ones(alarms.sum()), np.zeros(alarms.sum()))]
    steps += _uncontested_steps(candidates, ~contested)
    scores = np.concatenate([step.scores for step in steps])
    order = np.argsort(-scores, kind="stable")
    upto = np.searchsorted(-scores[order], -thresholds, side="right")
    hits, false, alike = (
        np.concatenate([[0.0], np.cumsum(np.concatenate([getattr(step, name) for step in steps])[order])])[upto]
        for name in ("hits", "false", "alike")
    )
    for group in _groups(candidates, contested):
        more = _count_group(group, thresholds)
        hits, false, alike = hits + more.hits, false + more.false, alike + more.alike
    return Counts(hits, false, alike)


@dataclass(frozen=True, slots=True)
class _Steps:
    """How the counts change at each score, as the threshold falls below it."""

    scores: Doubles
    hits: Doubles
    false: Doubles
    alike: Doubles


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
    overlap, alike = candidates.overlap[chosen], candidates.alike[chosen]
    proper = candidates.state_D[columns] == 0
    rows, columns, overlap, alike = (values[proper] for values in (rows, columns, overlap, alike))
    order = np.lexsort((columns, -candidates.scores_D[columns], rows))
    rows, columns, overlap, alike = (values[order] for values in (rows, columns, overlap, alike))
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
        unexcused = (~candidates.excused_D).astype(np.float64)
        steps.append(
            _Steps(
                scores=candidates.scores_D[columns[now]],
                hits=(counts & ~had).astype(np.float64),
                false=np.where(had, unexcused[columns[before]], 0.0) - unexcused[columns[now]],
                alike=counts * (alike[now] - np.where(had, alike[before], 0.0)),
            )
        )
        taken[rows[now]] = now
    return steps


@dataclass(frozen=True, slots=True)
class _Group:
    """The contested objects (T,) and detections (D,) of one frame; ``overlap`` and ``alike`` (T, D), 0 for no pair."""

    overlap: Doubles
    alike: Doubles
    scores: Doubles
    counts_T: NDArray[np.bool_]
    proper_D: NDArray[np.bool_]
    excused_D: NDArray[np.bool_]


def _groups(candidates: Candidates, contested: NDArray[np.bool_]) -> Iterator[_Group]:
    rows, columns = candidates.rows[contested], candidates.columns[contested]
    overlap, alike = candidates.overlap[contested], candidates.alike[contested]
    frame = candidates.frame_T[rows]
    bounds = np.nonzero(np.append(frame[1:] != frame[:-1], True))[0] + 1 if len(frame) else np.zeros(0, np.int64)
    begin = 0
    for end in bounds.tolist():
        part = slice(begin, end)
        begin = end
        objects, of_object = np.unique(rows[part], return_inverse=True)
        found, of_found = np.unique(columns[part], return_inverse=True)
        tables = np.zeros((2, len(objects), len(found)))
        tables[0, of_object, of_found], tables[1, of_object, of_found] = overlap[part], alike[part]
        yield _Group(
            overlap=tables[0],
            alike=tables[1],
            scores=candidates.scores_D[found],
            counts_T=candidates.state_T[objects] == 0,
            proper_D=candidates.state_D[found] == 0,
            excused_D=candidates.excused_D[found],
        )


def _count_group(group: _Group, thresholds: Doubles) -> Counts:
    free = group.scores[None] >= thresholds[:, None]
    numbers = np.arange(len(thresholds))
    hits, alike = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    for index, overlap in enumerate(group.overlap):
        choice = free & (overlap > 0)[None]
        proper = choice & group.proper_D[None]
        met: NDArray[np.bool_] = choice.any(axis=1)
        genuine = proper.any(axis=1)
        taken = np.where(genuine, np.where(proper, overlap[None], -1.0).argmax(axis=1), choice.argmax(axis=1))
        free[numbers[met], taken[met]] = False
        if group.counts_T[index]:
            hits += genuine
            alike += genuine * group.alike[index, taken]
    false = (free & (group.proper_D & ~group.excused_D)[None]).sum(axis=1).astype(np.float64)
    return Counts(hits, false, alike)
