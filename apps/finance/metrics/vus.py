"""VUS-PR, the volume under the precision-recall surface (Paparrizos et al., PVLDB 2022), as TSB-AD computes it.

Each window gets a buffer of 0 to ``buffer`` rows, with the weight sqrt(1 - d / width) at the distance d. For each
buffer width there is a precision-recall curve over 250 thresholds by rank; the measure is the mean area under these
curves. It needs no threshold and, unlike point adjustment, does not overrate random scores. Where paper and code
differ, this follows the code (TheDatumOrg/TSB-AD, RangeAUC_volume_opt).
"""

from __future__ import annotations

import numpy as np

from apps.finance.metrics.nab import Rows
from apps.finance.types import Floats

BUFFER = 100
_THRESHOLDS = 250


def vus_pr(scores: Floats, windows: Rows, *, buffer: int = BUFFER) -> float:
    """The measure in [0, 1] for ``scores`` (N,) and disjoint ``windows`` (W, 2) of first and last row, inclusive.

    Raises ValueError if there is no window, because the measure is undefined then.
    """
    length = len(scores)
    windows = windows[windows[:, 1] >= windows[:, 0]]
    if not len(windows):
        raise ValueError("VUS-PR is undefined for a series without a labelled window")
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    levels = sorted_scores[np.linspace(0, length - 1, _THRESHOLDS).astype(int)]
    predicted = np.searchsorted(-sorted_scores, -levels, side="right")  # rows at or above each level
    inside = np.zeros(length, bool)
    for first, last in windows.tolist():
        inside[first : last + 1] = True
    positives = int(inside.sum())
    areas = []
    for width in range(buffer + 1):
        labels = _labels_with_buffers(inside, windows, width)
        hit = np.concatenate([[0.0], np.cumsum(labels[order])])[predicted]
        within = np.concatenate([[0], np.cumsum(inside[order])])[predicted]
        expected = (positives + positives + hit - within) / 2
        extended = _merged_windows(windows, width, length)
        peaks = np.array([scores[first : last + 1].max() for first, last in extended])
        existence = (peaks[:, None] >= levels).mean(axis=0)
        recall = np.minimum(hit / expected, 1) * existence
        areas.append(float(np.diff(recall, prepend=0.0) @ (hit / predicted)))
    return float(np.mean(areas))


def _labels_with_buffers(inside: np.ndarray, windows: Rows, width: int) -> Floats:
    """(N,) 1 in the windows, sqrt(1 - d / width) at d rows from one, up to half of ``width``; overlapping sums are
    capped at 1."""
    labels = inside.astype(np.float64)
    for first, last in windows.tolist():
        after = np.arange(last + 1, min(last + width // 2 + 1, len(labels)))
        labels[after] += np.sqrt(1 - (after - last) / max(width, 1))
        before = np.arange(max(first - width // 2, 0), first)
        labels[before] += np.sqrt(1 - (first - before) / max(width, 1))
    return np.minimum(labels, 1.0)


def _merged_windows(windows: Rows, width: int, length: int) -> list[tuple[int, int]]:
    """The windows extended by their buffers, merged where they touch."""
    half = width // 2
    joined = [(max(int(windows[0, 0]) - half, 0), 0)]
    for (_, last), (first, _) in zip(windows[:-1].tolist(), windows[1:].tolist(), strict=True):
        if last + half < first - half:
            joined[-1] = (joined[-1][0], last + half)
            joined.append((first - half, 0))
    joined[-1] = (joined[-1][0], min(int(windows[-1, 1]) + half, length - 1))
    return joined
