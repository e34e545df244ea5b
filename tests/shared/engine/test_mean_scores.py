"""``MeanScores``: means over the samples of an evaluation."""

from __future__ import annotations

import numpy as np
import torch

from shared.engine.mean_scores import MeanScores


def test_merged_scores_are_the_means_over_all_samples():
    first, second = MeanScores(), MeanScores()
    assert first.summary() == {}
    first.add(loss=torch.tensor([1.0, 2.0, 6.0]), right=torch.tensor([True, False, True]))
    second.add(loss=torch.tensor([[5.0]], dtype=torch.bfloat16), right=np.array([True]), nothing=torch.zeros(0))
    second.merge(first)
    assert second.summary() == {"loss": 3.5, "right": 0.75}


def test_large_sums_keep_their_precision():
    scores = MeanScores()
    scores.add(loss=torch.full((3,), 2.0**24 + 2, dtype=torch.float32))
    assert scores.summary() == {"loss": 2.0**24 + 2}
