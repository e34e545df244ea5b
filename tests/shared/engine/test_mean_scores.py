"""``MeanScores``: means over the samples of an evaluation; and scores of another library."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torchmetrics import MeanSquaredError

from shared.engine.mean_scores import MeanScores
from shared.errors import InvalidInputError
from tests.shared.engine import line


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


class Metric:
    """A metric of torchmetrics, which returns a tensor."""

    def __init__(self):
        self.metric = MeanSquaredError()

    def merge(self, other):
        self.metric.merge_state(other.metric)

    def summary(self):
        return {"loss": self.metric.compute(), "count": np.float32(13)}


def test_scores_of_torchmetrics_and_numpy_are_recorded_as_numbers(tmp_path):
    class Task(line.Regression):
        def evaluate(self, model, batch, scores):
            scores.metric.update(model(batch["x"]), batch["y"])

        def scores(self):
            return Metric()

    result = line.train(tmp_path / "metric", Task, steps=10)
    assert result.scores["loss"] == pytest.approx(line.train(tmp_path / "own", steps=10).scores["loss"])
    assert json.loads((tmp_path / "metric" / "result.json").read_text())["scores"] == result.scores


def test_a_task_without_scores_is_told_so(tmp_path):
    class Task(line.Regression):
        def evaluate(self, model, batch, scores):
            pass

        def scores(self):
            return MeanScores()

    with pytest.raises(InvalidInputError, match="monitor is 'loss', but the task's scores are empty"):
        line.train(tmp_path, Task, steps=2)
