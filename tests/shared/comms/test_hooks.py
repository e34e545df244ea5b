"""Gradients by DDP's hooks: equal to DDP's own, compressed within bounds, resumed exactly."""

from __future__ import annotations

import json

import pytest
import torch

from shared.comms.shaped_network import Job, succeed
from shared.strategy import DDP
from tests.shared.comms import workers
from tests.shared.engine.line import weights

ROUTES = ("flat", "ring", "hierarchical")


def test_gradients_are_those_of_plain_ddp(hosts):
    choices = [(route, "none") for route in ROUTES]
    choices += [("flat", "bf16"), ("ring", "fp16"), ("hierarchical", "bf16"), *((r, "powersgd") for r in ROUTES)]
    for found in succeed(Job(hosts, 2, workers.gradients, choices, 4).results(60)):
        assert len(found) == len(choices)
        for (_, compression), (distances, explained) in found.items():
            if compression == "none":
                assert max(distances) < 1e-6
            elif compression == "powersgd":
                # The first step goes uncompressed. What later ones leave out is what the processes keep for the next.
                assert distances[0] < 1e-6 and 0.01 < distances[1] < 0.3 and explained < 1e-5
            else:
                assert 1e-6 < max(distances) < (1e-2 if compression == "bf16" else 1e-3)


@pytest.mark.parametrize("route", ["flat", "hierarchical"])
def test_a_run_with_powersgd_that_was_interrupted_is_the_same_run(hosts, tmp_path, route):
    strategy = DDP(route=route, compression="powersgd", powersgd_rank=1, powersgd_start=2)
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    succeed(Job(hosts, 2, workers.train_line, whole, 10, strategy).results(60))
    succeed(Job(hosts, 2, workers.train_line, parts, 5, strategy).results(60))
    assert len(list((tmp_path / "parts" / "checkpoints" / "step-00000005").glob("process-*.json"))) == 4
    succeed(Job(hosts, 2, workers.train_line, parts, 10, strategy).results(60))
    one, other = weights(tmp_path / "whole", 10), weights(tmp_path / "parts", 10)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    if route == "flat":
        succeed(Job(hosts, 1, workers.train_line, parts, 11, strategy).results(60))
        begun = [json.loads(line) for line in (tmp_path / "parts" / "events.jsonl").read_text().splitlines()]
        notes = [note for event in begun if event["event"] == "begin" for note in event["notes"]]
        assert "the powersgd compression starts anew" in notes[-1]


def test_parameters_that_a_step_leaves_out_are_named_unless_the_task_says_so(hosts, tmp_path):
    for said in succeed(Job(hosts[:1], 2, workers.train_half_used, str(tmp_path / "refused"), False).results(60)):
        assert said.startswith("a step left parameters out (unused.weight, unused.bias)")
    found = Job(hosts[:1], 2, workers.train_half_used, str(tmp_path / "trained"), True).results(60)
    assert succeed(found) == ["trained", "trained"]
