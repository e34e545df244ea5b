"""Runs of several processes: they share batches, agree when to stop, and train the same as one process."""

from __future__ import annotations

import json
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shared.comms.group import Group
from shared.engine.evaluate import evaluate
from shared.engine.task import WeightedLoss
from shared.errors import InvalidInputError
from shared.observe.events import read_events
from tests.shared.engine import line
from tests.shared.engine.line import train, weights
from tests.shared.processes import run


def train_by_a_clock_of_its_own(path: Path) -> str:
    """A run with a time limit whose clock is 1.5 times as fast on the second process. Returns how it ended."""
    rank, clock = int(os.environ["RANK"]), time.monotonic
    time.monotonic = lambda: clock() * (1 + 0.5 * rank)
    result = train(path, epochs=100_000, minutes=0.02, log_every=1, patience=100_000)
    return f"{result.reason} {result.steps}"


def test_processes_agree_on_the_end_of_the_time_limit(tmp_path):
    first_end, second_end = run(train_by_a_clock_of_its_own, tmp_path / "run")
    assert first_end == second_end and first_end.startswith("minutes ")


def train_to(path: Path, steps: int) -> int:
    return train(path, steps=steps).steps


def test_two_processes_share_the_batches_and_agree_with_one(tmp_path):
    assert run(train_to, tmp_path / "two", 15) == [15, 15]
    resumed = train(tmp_path / "two", steps=20)
    assert resumed.steps == 20
    assert [entry["samples"] for entry in resumed.history] == [13, 13]
    assert run(train_to, tmp_path / "two", 30) == [30, 30]
    assert json.loads((tmp_path / "two" / "result.json").read_text())["steps"] == 30


def train_calmly(path: Path) -> None:
    line.run(replace(line.recipe(), model=line.Network(dropout=0.0)), path)


def test_without_noise_in_the_model_three_processes_train_what_one_trains(tmp_path):
    train_calmly(tmp_path / "1")
    run(train_calmly, tmp_path / "3", processes=3)
    one_process, three_processes = weights(tmp_path / "1", 30), weights(tmp_path / "3", 30)
    for name, tensor in one_process.items():
        torch.testing.assert_close(three_processes[name], tensor, rtol=1e-5, atol=1e-6)


class Normalised(line.Network):
    def build(self, input=None):
        return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))


def train_normalised(path: Path) -> None:
    line.run(replace(line.recipe(), model=Normalised()), path)


def test_two_processes_score_the_model_that_is_saved(tmp_path):
    run(train_normalised, tmp_path / "run")
    model = Normalised().build()
    model.load_state_dict(weights(tmp_path / "run", 30))
    alone = Group(0, 1, torch.device("cpu"))
    scores = evaluate(model, line.Regression(), line.Points(13), 4, alone)
    last = json.loads((tmp_path / "run" / "result.json").read_text())["history"][-1]
    assert scores["loss"] == pytest.approx(last["loss"], rel=1e-6)


class Counted(line.Regression):
    """A mean over a few samples that are unevenly distributed over the processes; some batches contain none."""

    def loss(self, model, batch):
        counts = batch["x"][:, :1] > 0.7
        square = (model(batch["x"]) - batch["y"]).square() * counts
        mean = WeightedLoss(square.sum() / counts.sum().clamp(min=1), counts.sum())
        return {"square": mean, "plain": model(batch["x"]).square().mean() * 0.1}


def train_counted(path: Path) -> None:
    line.run(replace(line.recipe(Counted, log_every=1), model=line.Network(dropout=0.0)), path)


def test_weighted_means_are_the_same_on_any_number_of_processes(tmp_path):
    train_counted(tmp_path / "1")
    run(train_counted, tmp_path / "3", processes=3)
    losses = {}
    for processes in (1, 3):
        events = read_events(tmp_path / str(processes) / "events.jsonl")
        losses[processes] = [event["loss"] for event in events if event["event"] == "train"]
    assert len(losses[1]) == 30 and losses[3] == pytest.approx(losses[1], rel=1e-4)
    one_process, three_processes = weights(tmp_path / "1", 30), weights(tmp_path / "3", 30)
    for name, tensor in one_process.items():
        torch.testing.assert_close(three_processes[name], tensor, rtol=1e-5, atol=1e-6)


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInputError) as raised:
        train(path)
    return str(raised.value)


def test_every_process_raises_what_the_leader_refuses(tmp_path):
    (tmp_path / "notes.txt").touch()
    for message in run(refusal, tmp_path):
        assert "holds files but is not a run" in message


class HalfOnTheSecond(line.Regression):
    """As in mixed precision: the loss of a process without positives has another type."""

    def loss(self, model, batch):
        loss = super().loss(model, batch)["square"]
        return {"square": loss.to(torch.bfloat16) if os.environ["RANK"] == "1" else loss}


def train_with_losses_of_different_types(path):
    line.run(line.recipe(HalfOnTheSecond, steps=2, log_every=1), path)
    return [event["loss"] for event in read_events(path / "events.jsonl") if "lr" in event]


def test_losses_of_different_types_are_averaged(tmp_path):
    for losses in run(train_with_losses_of_different_types, tmp_path / "run"):
        assert losses and all(0 < loss < 10 for loss in losses)


class WithArrays(line.Points):
    """Values with which a sum, or torch, has difficulties, and which are the same on all processes."""

    def batch(self, indices, key):
        batch = super().batch(indices, key)
        read_only = np.ones(4)
        read_only.setflags(write=False)
        return batch | {
            "mask": torch.full((2, 4), -torch.inf),
            "depth": torch.tensor([torch.inf, torch.inf, -torch.inf, torch.nan]),
            "largest": np.full(3, np.finfo(np.float64).max),
            "mirrored": np.arange(6.0).reshape(2, 3)[:, ::-1],
            "big-endian": np.arange(3, dtype=">f4"),
            "read-only": read_only,
            "name": "a",
        }


class OfTheRank(line.Points):
    """Is augmented in another way on each process."""

    def batch(self, indices, key):
        batch = super().batch(indices, key)
        return batch | {"x": batch["x"] * (1 + int(os.environ["RANK"]))}


class ArrayData(line.Data):
    points: type[line.Points] = WithArrays

    def train(self, input=None):
        return self.points(self.length)


class RankData(ArrayData):
    points = OfTheRank


def train_on_arrays(path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not writable")
        return line.run(replace(line.recipe(steps=1), data=ArrayData()), path).steps


def test_equal_batches_of_any_values_and_arrays_are_accepted(tmp_path):
    assert run(train_on_arrays, tmp_path / "run") == [1, 1]


def refused_on_rank_data(path):
    with pytest.raises(InvalidInputError) as raised:
        line.run(replace(line.recipe(), data=RankData()), path)
    return str(raised.value)


def test_batches_that_depend_on_the_rank_are_refused_with_their_data_set(tmp_path):
    for message in run(refused_on_rank_data, tmp_path / "run"):
        assert "rank 1 " in message and "let batch() of OfTheRank depend only on its arguments" in message
