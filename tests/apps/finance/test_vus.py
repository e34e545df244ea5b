"""VUS-PR compared with TSB-AD's value, and with properties that any such measure must have."""

from __future__ import annotations

import numpy as np
import pytest

from apps.finance.metrics.vus import vus_pr


def test_equal_to_the_reference_implementation():
    """The value of TSB-AD 1.5's RangeAUC_volume_opt for these 64 rows with a maximum buffer of 11 rows."""
    scores = np.linspace(0.02, 0.18, 64)
    scores[9:16] = [0.25, 0.55, 0.72, 0.91, 0.84, 0.63, 0.31]
    scores[37:45] = [0.22, 0.48, 0.68, 0.93, 0.87, 0.79, 0.56, 0.29]
    scores[53] = 0.62
    windows = np.array([[10, 14], [38, 43]])
    assert vus_pr(scores, windows, buffer=11) == pytest.approx(0.9750688705234158, abs=1e-12)


def test_a_perfect_score_has_one_and_a_random_one_little_more_than_the_share_of_anomalies():
    windows = np.array([[300, 339], [700, 719]])
    perfect = np.zeros(1000)
    for first, last in windows:
        perfect[first : last + 1] = 1
    assert vus_pr(perfect, windows, buffer=0) == pytest.approx(1.0)
    random = np.mean([vus_pr(np.random.default_rng(seed).uniform(size=1000), windows) for seed in range(10)])
    assert 0.04 < random < 0.25
    assert vus_pr(perfect + np.random.default_rng(0).uniform(size=1000) / 9, windows) > 0.9


def test_a_near_miss_counts_partly_and_no_window_raises():
    scores = np.linspace(0, 0.1, 400)
    scores[205:208] = 1
    near, far = np.array([[210, 214]]), np.array([[310, 314]])
    assert vus_pr(scores, near) > 3 * vus_pr(scores, far)
    with pytest.raises(ValueError, match="undefined"):
        vus_pr(scores, np.zeros((0, 2), np.int64))


def test_only_the_order_of_the_scores_matters():
    scores = np.random.default_rng(3).uniform(size=500)
    windows = np.array([[100, 120]])
    assert vus_pr(scores, windows) == pytest.approx(vus_pr(np.exp(5 * scores), windows))
