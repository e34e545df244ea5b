"""VUS-PR, the volume under the precision-recall surface (Paparrizos et al., PVLDB 2022), as TSB-AD computes it.

Labels get buffers of 0 to ``buffer`` rows whose weight falls off with the root of the distance; for each buffer there
is a precision-recall curve over 250 thresholds by rank, and the mean of the areas is the measure. It needs no
threshold and, other than point adjustment, gives a random score what it deserves. Where paper and code differ, this
follows the code (TheDatumOrg/TSB-AD, RangeAUC_volume_opt).
"""

from __future__ import annotations

import numpy as np

from apps.finance.metrics.nab import Rows
from apps.finance.types import Floats

BUFFER = 100
_THRESHOLDS = 250


def vus_pr(scores: Floats, windows: Rows, *, buffer: int = BUFFER) -> float:
    """The measure in [0, 1] of ``scores`` (N,) where ``windows`` (W, 2) are first and last row, inclusive and apart.

    Raises ValueError where there is no window: it is undefined there.
    """
    length = len(scores)
    windows = windows[windows[:, 1] >= windows[:, 0]]
    if not len(windows):
        raise ValueError("VUS-PR is undefined for a series without a labelled window")
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    levels = falling[np.linspace(0, length - 1, _THRESHOLDS).astype(int)]
    predicted = np.searchsorted(-falling, -levels, side="right")  # rows at or above each level
    inside = np.zeros(length, bool)
    for first, last in windows.tolist():
        inside[first : last + 1] = True
    positives = int(inside.sum())
    areas = []
    for width in range(buffer + 1):
        labels = _buffered(inside, windows, width)
        hit = np.concatenate([[0.0], np.cumsum(labels[order])])[predicted]
        within = np.concatenate([[0], np.cumsum(inside[order])])[predicted]
        expected = (positives + positives + hit - within) / 2
        stretches = _stretches(windows, width, length)
        peaks = np.array([scores[first : last + 1].max() for first, last in stretches])
        existence = (peaks[:, None] >= levels).mean(axis=0)
        recall = np.minimum(hit / expected, 1) * existence
        areas.append(float(np.diff(recall, prepend=0.0) @ (hit / predicted)))
    return float(np.mean(areas))


def _buffered(inside: np.ndarray, windows: Rows, width: int) -> Floats:
    """(N,) 1 in the windows, sqrt(1 - d / width) at d rows from one, up to half of ``width``; sums end at 1."""
    labels = inside.astype(np.float64)
    for first, last in windows.tolist():
        after = np.arange(last + 1, min(last + width // 2 + 1, len(labels)))
        labels[after] += np.sqrt(1 - (after - last) / max(width, 1))
        before = np.arange(max(first - width // 2, 0), first)
        labels[before] += np.sqrt(1 - (first - before) / max(width, 1))
    return np.minimum(labels, 1.0)


def _stretches(windows: Rows, width: int, length: int) -> list[tuple[int, int]]:
    """The windows with their buffers, joined where these touch."""
    half = width // 2
    joined = [(max(int(windows[0, 0]) - half, 0), 0)]
    for (_, last), (first, _) in zip(windows[:-1].tolist(), windows[1:].tolist(), strict=True):
        if last + half < first - half:
            joined[-1] = (joined[-1][0], last + half)
            joined.append((first - half, 0))
    joined[-1] = (joined[-1][0], min(int(windows[-1, 1]) + half, length - 1))
    return joined
