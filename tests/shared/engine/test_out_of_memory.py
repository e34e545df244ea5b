"""A step that does not fit into memory is retried with half the micro-batch; the run equals one that started so."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from shared.data.loader import Loader
from shared.data.order import Permutation
from shared.engine.checkpoint import Checkpoints, read_progress
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.engine.task import WeightedLoss
from shared.errors import InvalidInputError
from shared.observe.events import read_events
from tests.shared.engine import line
from tests.shared.engine.line import train, weights
from tests.shared.processes import run

TOLD = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Normalised(line.Network):
    """Batch normalisation, whose statistics change in a forward pass, and dropout, which draws random numbers."""

    def build(self, input=None):
        layers = nn.Linear(2, self.width), nn.BatchNorm1d(self.width), nn.ReLU(), nn.Dropout(self.dropout)
        return nn.Sequential(*layers, nn.Linear(self.width, 1))


class Uncounted(line.Regression):
    """A mean over a few samples that are unevenly distributed over the micro-batches."""

    def loss(self, model, batch):
        counts = batch["x"][:, :1] > 0.3
        square = (model(batch["x"]) - batch["y"]).square() * counts
        return {"square": WeightedLoss(square.sum() / counts.sum().clamp(min=1), counts.sum())}


class Counted(Uncounted):
    def count(self, batch):
        return {"square": (batch["x"][:, :1] > 0.3).sum()}


def on_a_small_device(kind, max_samples, *, from_call=1, until_call=10**9):
    """The task on a device with memory for ``max_samples`` samples; records the sizes of its micro-batches.

    It runs out after the forward pass, when statistics have changed and random numbers were drawn.
    """
    batch_sizes = []

    class Small(kind):
        def loss(self, model, batch):
            batch_sizes.append(len(batch["x"]))
            found = super().loss(model, batch)
            if len(batch["x"]) > max_samples and from_call <= len(batch_sizes) < until_call:
                raise torch.OutOfMemoryError(TOLD)
            return found

    return Small, batch_sizes


def go(path, task, network=None, **limits):
    recipe = line.recipe(task, **{"batch": 8, "log_every": 1, **limits})
    return line.run(replace(recipe, model=network or Normalised()), path)


def assert_same(first_run, second_run, step):
    for name, tensor in weights(first_run, step).items():
        assert torch.equal(weights(second_run, step)[name], tensor), name


@pytest.mark.parametrize("kind", [line.Regression, Counted])
def test_a_run_out_of_memory_equals_the_run_with_the_smaller_micro_batch(tmp_path, kind):
    small, batch_sizes = on_a_small_device(kind, 2)
    result = go(tmp_path / "small", small)
    go(tmp_path / "two", kind, micro_batch=2)
    assert batch_sizes[:6] == [8, 4, 2, 2, 2, 2] and set(batch_sizes[2:]) == {2}
    assert result.steps == 15
    assert_same(tmp_path / "small", tmp_path / "two", 15)
    losses = [
        [event["loss"] for event in read_events(tmp_path / name / "events.jsonl") if event["event"] == "train"]
        for name in ("small", "two")
    ]
    assert losses[0] == losses[1]


def test_the_steps_before_are_those_of_the_larger_micro_batch(tmp_path):
    small, batch_sizes = on_a_small_device(Counted, 5, from_call=4)
    go(tmp_path / "small", small)
    assert batch_sizes[:6] == [8, 8, 8, 8, 4, 4]
    go(tmp_path / "parts", Counted, steps=3)
    go(tmp_path / "parts", Counted, micro_batch=4)
    assert_same(tmp_path / "small", tmp_path / "parts", 15)


def test_the_run_logs_the_smaller_micro_batch_and_resumes_with_it(tmp_path, capsys):
    small, _ = on_a_small_device(line.Regression, 2, until_call=3)
    fit(line.recipe(small, steps=7), Run(tmp_path / "run", "line", "tiny"), device="cpu")
    expected = "line tiny: out of memory at step 1: retrying it, and running all later steps, in micro-batches of 2"
    assert expected in capsys.readouterr().out
    (noted,) = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "out_of_memory"]
    assert (noted["step"], noted["micro_batch"]) == (0, 2)
    # It no longer runs out of memory, and only the restored size makes the parts small.
    roomy, batch_sizes = on_a_small_device(line.Regression, 100)
    fit(line.recipe(roomy), Run(tmp_path / "run", "line", "tiny"), device="cpu")
    assert set(batch_sizes) == {2}
    assert "in micro-batches of 2, because larger ones did not fit into the memory" in capsys.readouterr().out
    whole, _ = on_a_small_device(line.Regression, 2, until_call=3)
    train(tmp_path / "whole", whole)
    assert_same(tmp_path / "run", tmp_path / "whole", 30)


def test_a_different_micro_batch_on_the_command_line_is_tried(tmp_path):
    small, _ = on_a_small_device(line.Regression, 1, until_call=4)
    train(tmp_path, small, steps=5)
    roomy, batch_sizes = on_a_small_device(line.Regression, 100)
    train(tmp_path, roomy, micro_batch=3)
    assert set(batch_sizes) == {2}  # four samples in parts of at most three
    assert read_progress(Checkpoints(tmp_path / "checkpoints", recipe_digest="").latest()).micro_batch is None


def test_tensors_of_the_failed_step_are_freed_before_the_retry(tmp_path):
    references = []

    class Small(line.Regression):
        def loss(self, model, batch):
            assert all(reference() is None for reference in references)
            found = super().loss(model, batch)
            if len(batch["x"]) > 1:
                references.append(weakref.ref(found["square"]))
                raise torch.OutOfMemoryError(TOLD)
            return found

    train(tmp_path, Small, steps=1)
    assert len(references) == 2


def test_a_single_sample_that_does_not_fit_ends_the_run(tmp_path):
    small, batch_sizes = on_a_small_device(line.Regression, 0, from_call=12)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        train(tmp_path, small)
    assert batch_sizes[11:] == [4, 2, 1]
    assert raised.value.__notes__ == [
        "A single sample does not fit into the memory; use a smaller network or smaller inputs"
    ]
    assert train(tmp_path).steps == 30


def test_an_uncounted_mean_is_refused_rather_than_averaged_wrongly(tmp_path):
    small, _ = on_a_small_device(Uncounted, 2)
    with pytest.raises(
        InvalidInputError, match=r"cannot be split into micro-batches: give the task a method count\(batch\)"
    ):
        train(tmp_path, small)


@pytest.mark.parametrize("handover_s", [0.0, 1e9], ids=["loaded ahead in threads", "loaded in the training thread"])
def test_steps_that_were_loaded_ahead_are_loaded_again(handover_s):
    order = Permutation(seed=0, length=40, batch=8)
    loader = Loader(line.Points(40), order, device=torch.device("cpu"), handover_s=handover_s)
    sizes = []
    for step in loader.steps(0, 12):
        sizes.append([len(part.batch["x"]) for part in step.parts])
        whole = line.Points(40).batch(order.indices(step.number), order.key(step.number))["x"]
        assert torch.equal(torch.cat([part.batch["x"] for part in step.parts]), whole)
        if step.number == 5:
            loader.micro_batch = 3
    assert sizes == [[8]] * 6 + [[3, 3, 2]] * 6


def run_out_on_the_second(path):
    small, batch_sizes = on_a_small_device(line.Regression, 1, from_call=3)
    with pytest.raises(Exception) as raised:
        train(path, small)
    return type(raised.value).__name__, batch_sizes


def test_with_several_processes_each_ends_with_the_error(tmp_path):
    for name, batch_sizes in run(run_out_on_the_second, tmp_path / "run"):
        assert name == "OutOfMemoryError" and batch_sizes == [2, 2, 2]
