"""The scoring of the Numenta Anomaly Benchmark (Lavin and Ahmad, ICMLA 2015; as in NAB 1.1's sweeper), in NumPy.

A detector gives every row of every series a score in [0, 1]; one threshold for the whole corpus turns scores into
detections. The earliest detection in a window earns points, more the earlier it is; a missed window costs points. Every
detection outside the windows costs points, few shortly after a window and more further away. Rows in the probationary
period at the start of a series are ignored. Where paper and code differ, this follows the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.finance.types import Floats

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """An application profile of NAB: the weights of a hit window, a missed window and a false detection."""

    name: str
    true_positive: float = 1.0
    false_negative: float = 1.0
    false_positive: float = 0.11


STANDARD = Profile(name="standard")
LOW_FALSE_POSITIVES = Profile(name="reward_low_FP_rate", false_positive=0.22)
LOW_FALSE_NEGATIVES = Profile(name="reward_low_FN_rate", false_negative=2.0)
PROFILES = (STANDARD, LOW_FALSE_POSITIVES, LOW_FALSE_NEGATIVES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One scored series: ``scores`` (N,), and windows (W, 2) of first and last row, inclusive."""

    scores: Floats
    windows: Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A corpus' score under a profile: ``normalised`` is 100 for a perfect detector, 0 for one that never detects."""

    profile: str
    threshold: float
    raw: float
    normalised: float


def probation(length: int) -> int:
    """The number of rows at the start of a series that are ignored: 15 %, at most 750."""
    return int(min(np.floor(0.15 * length), 0.15 * 5000))


def scaled_sigmoid(position: Floats) -> Floats:
    """2 * sigmoid(-5 y) - 1 for relative positions y, and -1 beyond y = 3: 0.987 at y = -1, 0 at a window's end."""
    return np.where(position > 3.0, -1.0, 2.0 / (1.0 + np.exp(5.0 * np.minimum(position, 3.0))) - 1.0)


def row_values(length: int, windows: Rows, profile: Profile) -> tuple[Floats, Rows]:
    """The points for a detection at each row (N,), and the number of the row's window (N,), -1 outside all windows.

    In a window of w rows, the row k rows before the last one is at y = -(k + 1) / w. Outside, y is the distance from
    the end of the last window over w - 1. Before the first window a detection costs the most.
    """
    rows = np.arange(length)
    values = np.full(length, -profile.false_positive)
    inside = np.full(length, -1, np.int64)
    for number, (first, last) in enumerate(windows.tolist()):
        width = last - first + 1
        is_after = rows > last
        past = (rows[is_after] - last) / max(width - 1.0, 1.0)
        values[is_after] = profile.false_positive * scaled_sigmoid(past)
        within = slice(first, last + 1)
        position = -(last - rows[within] + 1.0) / width
        values[within] = profile.true_positive * scaled_sigmoid(position) / scaled_sigmoid(np.array(-1.0))
        inside[within] = number
    # Later windows overwrite the rows after earlier ones, so that a row's value is relative to the nearest window.
    return values, inside


def score_corpus(corpus: Sequence[Scored], profile: Profile = STANDARD, threshold: float | None = None) -> Score:
    """The score of a detector on a corpus, at ``threshold``, or by default at the best threshold, as NAB does."""
    levels, gains, total_windows = [], [], 0
    for item in corpus:
        length = len(item.scores)
        values, inside = row_values(length, item.windows, profile)
        counted = np.arange(length) >= probation(length)
        outside = counted & (inside < 0)
        levels.append(item.scores[outside])
        gains.append(values[outside])
        for number in range(len(item.windows)):
            rows = np.flatnonzero(counted & (inside == number))
            if not len(rows):
                continue
            total_windows += 1
            order = rows[np.argsort(-item.scores[rows], kind="stable")]
            best = np.maximum.accumulate(np.concatenate([[-profile.false_negative], values[order]]))
            levels.append(item.scores[order])
            gains.append(np.diff(best))
    raw_null, perfect = -profile.false_negative * total_windows, profile.true_positive * total_windows
    level, gain = np.concatenate(levels), np.concatenate(gains)
    if threshold is None:
        order = np.argsort(-level, kind="stable")
        level, running = level[order], np.cumsum(gain[order])
        group_ends = np.flatnonzero(
            np.append(np.diff(level) != 0, True)
        )  # a threshold includes all rows with its score
        best_end = group_ends[np.argmax(running[group_ends])]
        threshold, earned = float(level[best_end]), float(running[best_end])
        if earned < 0:
            threshold, earned = np.inf, 0.0
    else:
        earned = float(gain[level >= threshold].sum())
    raw = raw_null + earned
    normalised = 100.0 * (raw - raw_null) / (perfect - raw_null) if total_windows else 0.0
    return Score(profile=profile.name, threshold=float(threshold), raw=raw, normalised=normalised)


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections:
    """The windows hit, all windows, false events, false detections (rows) and series, at one threshold."""

    hit: int
    windows: int
    false_events: int
    false_detections: int
    series: int

    @property
    def recall(self) -> float:
        """The share of windows with at least one detection."""
        return self.hit / self.windows if self.windows else 0.0

    @property
    def false_events_per_series(self) -> float:
        return self.false_events / self.series if self.series else 0.0


def count_detections(corpus: Sequence[Scored], threshold: float, *, gap: int = 0) -> Detections:
    """Counts hit windows, and false events: runs of detections outside all windows, at most ``gap`` rows apart.

    Rows of the probationary period are ignored.
    """
    hit = windows = false_events = false_detections = 0
    for item in corpus:
        detected = item.scores >= threshold
        detected[: probation(len(detected))] = False
        outside = detected.copy()
        for first, last in item.windows.tolist():
            windows += 1
            hit += bool(detected[first : last + 1].any())
            outside[first : last + 1] = False
        rows = np.flatnonzero(outside)
        false_events += int((np.diff(rows) > gap + 1).sum()) + 1 if len(rows) else 0
        false_detections += len(rows)
    return Detections(
        hit=hit, windows=windows, false_events=false_events, false_detections=false_detections, series=len(corpus)
    )
