"""The contents of a checkpoint, and the detection of damaged checkpoints."""

from __future__ import annotations

import json

import pytest
import torch

from shared.comms.group import Group
from shared.engine.checkpoint import Checkpoints, Progress, model_state
from shared.errors import InvalidInputError
from shared.optimizers import AdamW
from tests.shared.engine.line import train, weights


class Anything:
    """A component with a nested state of tensors, tuples and keys that are not strings."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


STATE = {
    "decay": 0.99,
    "betas": (0.9, 0.999),
    "moments": {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer": {"weight": torch.ones(2)}},
    "slots": {0: {"step": torch.tensor(3.0)}, 7: {"step": torch.tensor(4, dtype=torch.int64)}},
    "list": [1, None, True, "word", (torch.zeros(1, dtype=torch.bfloat16),)],
    "$odd": {"$tensor": "no tensor"},
}


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    if isinstance(first, dict):
        return list(first) == list(second) and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(equal, first, second))
    return first == second


def test_the_state_of_every_component_is_restored_exactly(tmp_path):
    checkpoints = Checkpoints(tmp_path, recipe_digest="d")
    model = torch.nn.Linear(2, 1)
    checkpoints.save({"model": model, "ema": Anything(STATE)}, Progress(step=5, samples=3))
    restored, ema = torch.nn.Linear(2, 1), Anything({})
    assert checkpoints.load(checkpoints.latest(), {"model": restored, "ema": ema}) == Progress(step=5, samples=3)
    assert torch.equal(restored.weight, model.weight) and equal(STATE, ema.state)
    assert model_state(checkpoints.latest()).keys() == {"weight", "bias"}
    with pytest.raises(InvalidInputError, match="contains ema, model, and the run has model; name a new run"):
        checkpoints.load(checkpoints.latest(), {"model": restored})


def test_a_resumed_optimizer_handles_a_channels_last_parameter(tmp_path):
    """Files store contiguous tensors; a fused step reads a parameter and its momentum in memory order."""

    def make_model_and_optimizer():
        torch.manual_seed(0)
        model = torch.nn.Conv3d(4, 6, 3).to(memory_format=torch.channels_last_3d)
        return model, AdamW(learning_rate=0.1).build(model)

    def step(model, optimizer, number):
        torch.manual_seed(number)
        model.zero_grad()
        model(torch.rand(2, 4, 5, 5, 5)).square().mean().backward()
        optimizer.step()

    model, optimizer = make_model_and_optimizer()
    step(model, optimizer, 1)
    checkpoints = Checkpoints(tmp_path, recipe_digest="d")
    checkpoints.save({"model": model, "optimizer": optimizer}, Progress(step=1))
    resumed, resumed_optimizer = make_model_and_optimizer()
    checkpoints.load(checkpoints.latest(), {"model": resumed, "optimizer": resumed_optimizer})
    step(model, optimizer, 2)
    step(resumed, resumed_optimizer, 2)
    assert not resumed.weight.is_contiguous() and torch.equal(resumed.weight, model.weight)


def test_a_process_that_does_not_write_takes_part_in_a_save(tmp_path):
    calls = []

    class Spread(Anything):
        def state_dict(self):
            calls.append(True)
            return {}

    Checkpoints(tmp_path, recipe_digest="d", group=Group(1, 2, torch.device("cpu"))).save(
        {"model": Spread({})}, Progress(step=1)
    )
    assert calls and not list(tmp_path.iterdir())


def test_a_state_that_json_and_safetensors_cannot_hold_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="hook is a set"):
        Checkpoints(tmp_path, recipe_digest="").save({"x": Anything({"hook": {1}})}, Progress())


def test_a_single_altered_digit_in_the_state_is_detected_and_logged(tmp_path):
    train(tmp_path / "whole")
    train(tmp_path / "run", steps=15)
    state = tmp_path / "run" / "checkpoints" / "step-00000015" / "state.json"
    before = state.read_text()
    state.write_text(before.replace('"initial_lr": 0.02', '"initial_lr": 0.03'))
    assert state.read_text() != before
    train(tmp_path / "run")
    events = [json.loads(row) for row in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    notes = [note for event in events for note in event.get("notes", [])]
    assert "skipped step-00000015: incomplete or altered" in notes
    for name, tensor in weights(tmp_path / "whole", 30).items():
        assert torch.equal(weights(tmp_path / "run", 30)[name], tensor)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path):
    train(tmp_path, steps=15)
    for file in (tmp_path / "checkpoints").glob("step-*/state.json"):
        file.write_text(file.read_text()[:-9])
    with pytest.raises(
        InvalidInputError, match=r"all checkpoints of .* are damaged \(step-00000015, step-00000010, step-"
    ):
        train(tmp_path)
