"""Matches detections with objects as KITTI's development kit does (computeStatistics), for all frames at once.

In the order of the file, each object takes one detection that overlaps it enough and is not taken yet: to choose the
thresholds, the one with the highest score; to count at a threshold, the one with the largest overlap. Most objects do
not compete with another object for a detection. For these the counts at all thresholds are cumulative sums over sorted
scores; only the contested objects are processed one by one.
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
    """K pairs of an object and a detection that overlap enough, sorted by object; neither has the state -1.

    ``rows`` and ``columns`` (K,) are their indices among T objects and D detections; ``similarity`` (K,) is their
    orientation similarity. States: 0 evaluated, 1 ignored (counts neither for nor against the detector), -1 never
    matched. A detection in an ignored region (``in_region_D``) is not a false positive. ``frame_T`` is the frame of
    each object.
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
    """True positives, false positives and the sum of orientation similarities at M thresholds, (M,) each."""

    true_positives: Doubles
    false_positives: Doubles
    similarity: Doubles


def matched_scores(candidates: Candidates) -> Doubles:
    """Scores of the detections that match an evaluated object, if each object takes the highest score available."""
    contested = _contested(candidates)
    rows, columns = candidates.rows[~contested], candidates.columns[~contested]
    order = np.lexsort((columns, -candidates.scores_D[columns], rows))
    rows, columns = rows[order], columns[order]
    first = np.append(True, rows[1:] != rows[:-1])[: len(rows)]
    rows, columns = rows[first], columns[first]
    is_valid = (candidates.state_T[rows] == 0) & (candidates.state_D[columns] == 0)
    scores = [candidates.scores_D[columns[is_valid]]]
    for group in _contested_groups(candidates, contested):
        is_free = np.ones(len(group.scores), bool)
        for index, overlapping in enumerate(group.overlap > 0):
            available = np.nonzero(is_free & overlapping)[0]
            if not len(available):
                continue
            taken = available[np.argmax(group.scores[available])]
            is_free[taken] = False
            if group.evaluated_T[index] and group.valid_D[taken]:
                scores.append(group.scores[taken : taken + 1])
    return np.concatenate(scores)


def counts_at(candidates: Candidates, thresholds: Doubles) -> Counts:
    """The counts over the detections with at least each threshold's score.

    An object takes the detection with the largest overlap, and one that is too small in the image only if there is no
    other.
    """
    contested = _contested(candidates)
    in_group = np.zeros(len(candidates.scores_D), bool)
    in_group[candidates.columns[contested]] = True
    unmatched = (candidates.state_D == 0) & ~candidates.in_region_D & ~in_group
    steps = [
        _CountSteps(
            candidates.scores_D[unmatched],
            np.zeros(unmatched.sum()),
            np.ones(unmatched.sum()),
            np.zeros(unmatched.sum()),
        )
    ]
    steps += _uncontested_steps(candidates, ~contested)
    scores = np.concatenate([step.scores for step in steps])
    order = np.argsort(-scores, kind="stable")
    detections_above = np.searchsorted(-scores[order], -thresholds, side="right")
    true_positives, false_positives, similarity = (
        np.concatenate([[0.0], np.cumsum(np.concatenate([getattr(step, name) for step in steps])[order])])[
            detections_above
        ]
        for name in ("true_positives", "false_positives", "similarity")
    )
    for group in _contested_groups(candidates, contested):
        group_counts = _count_group(group, thresholds)
        true_positives, false_positives, similarity = (
            true_positives + group_counts.true_positives,
            false_positives + group_counts.false_positives,
            similarity + group_counts.similarity,
        )
    return Counts(true_positives, false_positives, similarity)


@dataclass(frozen=True, slots=True)
class _CountSteps:
    """The changes of the counts when the threshold falls to each score."""

    scores: Doubles
    true_positives: Doubles
    false_positives: Doubles
    similarity: Doubles


def _contested(candidates: Candidates) -> NDArray[np.bool_]:
    """(K,) which pairs have an object that competes with another object for a detection."""
    is_shared = np.bincount(candidates.columns, minlength=len(candidates.scores_D)) > 1
    is_contested = np.zeros(len(candidates.state_T), bool)
    is_contested[candidates.rows[is_shared[candidates.columns]]] = True
    return is_contested[candidates.rows]


def _uncontested_steps(candidates: Candidates, chosen: NDArray[np.bool_]) -> list[_CountSteps]:
    """The steps of objects that share no detection: as the threshold falls, each holds its largest overlap so far.

    Round n processes the detection with the n-th highest score of every object.
    """
    rows, columns = candidates.rows[chosen], candidates.columns[chosen]
    overlap, similarity = candidates.overlap[chosen], candidates.similarity[chosen]
    is_valid = candidates.state_D[columns] == 0
    rows, columns, overlap, similarity = (values[is_valid] for values in (rows, columns, overlap, similarity))
    order = np.lexsort((columns, -candidates.scores_D[columns], rows))
    rows, columns, overlap, similarity = (values[order] for values in (rows, columns, overlap, similarity))
    start = np.append(True, rows[1:] != rows[:-1])[: len(rows)]
    positions = np.arange(len(rows))
    nth = positions - np.maximum.accumulate(np.where(start, positions, 0))
    taken = np.full(len(candidates.state_T), -1)
    steps = []
    for round_number in range(int(nth.max(initial=-1)) + 1):
        current = np.nonzero(nth == round_number)[0]
        previous = taken[rows[current]]
        had_match = previous >= 0
        has_larger_overlap = overlap[current] > overlap[previous]
        # Of equal overlaps the first one in the file is taken.
        is_earlier_of_equal = (overlap[current] == overlap[previous]) & (columns[current] < columns[previous])
        better = ~had_match | has_larger_overlap | is_earlier_of_equal
        current, previous, had_match = current[better], previous[better], had_match[better]
        is_evaluated = candidates.state_T[rows[current]] == 0
        false_positive_if_unmatched = (~candidates.in_region_D).astype(np.float64)
        steps.append(
            _CountSteps(
                scores=candidates.scores_D[columns[current]],
                true_positives=(is_evaluated & ~had_match).astype(np.float64),
                false_positives=np.where(had_match, false_positive_if_unmatched[columns[previous]], 0.0)
                - false_positive_if_unmatched[columns[current]],
                similarity=is_evaluated * (similarity[current] - np.where(had_match, similarity[previous], 0.0)),
            )
        )
        taken[rows[current]] = current
    return steps


@dataclass(frozen=True, slots=True)
class _Group:
    """Contested objects (T,) and detections (D,) of one frame; ``overlap`` and ``similarity`` (T, D) are 0 for pairs
    that are not candidates."""

    overlap: Doubles
    similarity: Doubles
    scores: Doubles
    evaluated_T: NDArray[np.bool_]
    valid_D: NDArray[np.bool_]
    in_region_D: NDArray[np.bool_]


def _contested_groups(candidates: Candidates, contested: NDArray[np.bool_]) -> Iterator[_Group]:
    rows, columns = candidates.rows[contested], candidates.columns[contested]
    overlap, similarity = candidates.overlap[contested], candidates.similarity[contested]
    frame = candidates.frame_T[rows]
    bounds = np.nonzero(np.append(frame[1:] != frame[:-1], True))[0] + 1 if len(frame) else np.zeros(0, np.int64)
    begin = 0
    for end in bounds.tolist():
        part = slice(begin, end)
        begin = end
        object_rows, object_index = np.unique(rows[part], return_inverse=True)
        detection_columns, detection_index = np.unique(columns[part], return_inverse=True)
        tables = np.zeros((2, len(object_rows), len(detection_columns)))
        tables[0, object_index, detection_index], tables[1, object_index, detection_index] = (
            overlap[part],
            similarity[part],
        )
        yield _Group(
            overlap=tables[0],
            similarity=tables[1],
            scores=candidates.scores_D[detection_columns],
            evaluated_T=candidates.state_T[object_rows] == 0,
            valid_D=candidates.state_D[detection_columns] == 0,
            in_region_D=candidates.in_region_D[detection_columns],
        )


def _count_group(group: _Group, thresholds: Doubles) -> Counts:
    is_free = group.scores[None] >= thresholds[:, None]
    threshold_index = np.arange(len(thresholds))
    true_positives, similarity = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    for index, overlap in enumerate(group.overlap):
        available = is_free & (overlap > 0)[None]
        valid_available = available & group.valid_D[None]
        has_match: NDArray[np.bool_] = available.any(axis=1)
        has_valid = valid_available.any(axis=1)
        taken = np.where(
            has_valid, np.where(valid_available, overlap[None], -1.0).argmax(axis=1), available.argmax(axis=1)
        )
        is_free[threshold_index[has_match], taken[has_match]] = False
        if group.evaluated_T[index]:
            true_positives += has_valid
            similarity += has_valid * group.similarity[index, taken]
    false_positives = (is_free & (group.valid_D & ~group.in_region_D)[None]).sum(axis=1).astype(np.float64)
    return Counts(true_positives, false_positives, similarity)
