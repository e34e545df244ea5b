"""Gradients with DDP's hooks: equal to plain DDP, compressed within bounds, resumed exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared.comms.compression import MAX_BF16_TERMS, HalfPrecision
from shared.comms.shaped_network import Job, succeed
from shared.observe.events import read_events
from shared.strategy import DDP, FSDP
from tests.shared.comms import workers
from tests.shared.engine.line import weights
from tests.shared.processes import run

ROUTES = ("flat", "ring", "hierarchical")
POWERSGD = {
    route: DDP(route=route, compression="powersgd", powersgd_rank=1, powersgd_start=2)
    for route in ("flat", "hierarchical")
}


class Chain:
    """Sums equal gradients of many processes as a ring does: one after the other, each sum in the type that is sent."""

    def __init__(self, processes: int) -> None:
        self.processes = processes

    def all_reduce(self, tensor: Tensor) -> None:
        own = tensor.clone()
        for _ in range(self.processes - 1):
            tensor += own


@pytest.mark.parametrize(
    ("dtype", "processes", "lost"),
    [
        (torch.bfloat16, MAX_BF16_TERMS, (-0.05, 0.05)),
        (torch.bfloat16, 4 * MAX_BF16_TERMS, (0.5, 0.8)),
        (torch.float16, 4 * MAX_BF16_TERMS, (-0.05, 0.05)),
    ],
)
def test_a_long_ring_in_bf16_loses_most_of_the_gradient(dtype, processes, lost):
    """Why more processes are refused: equal gradients are the worst case."""
    mean = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    summed = mean / processes
    HalfPrecision(dtype).sum(summed, (), Chain(processes), processes)
    assert lost[0] < 1 - float(summed @ mean / (mean @ mean)) < lost[1]


@pytest.mark.parametrize(
    ("nodes", "per_node", "route", "compression", "accepted"),
    [
        (64, 8, "flat", "bf16", False),
        (64, 8, "ring", "bf16", False),
        (64, 8, "flat", "fp16", True),
        (64, 8, "hierarchical", "bf16", True),
        (257, 1, "hierarchical", "bf16", False),
        (32, 8, "flat", "bf16", True),
    ],
)
def test_bf16_is_refused_where_a_ring_would_lose_a_part_of_the_gradients(nodes, per_node, route, compression, accepted):
    (message,) = run(workers.exchange_of_one_of_many, nodes, per_node, route, compression, processes=1)
    assert (message == "accepted") == accepted, message
    assert accepted or "use fp16" in message


def test_gradients_equal_those_of_plain_ddp(hosts):
    choices = [(route, "none") for route in ROUTES]
    choices += [("flat", "bf16"), ("ring", "fp16"), ("hierarchical", "bf16"), *((r, "powersgd") for r in ROUTES)]
    for found in succeed(Job(hosts, 2, workers.gradients, choices, 4).results(60)):
        assert len(found) == len(choices)
        for (_, compression), (distances, explained) in found.items():
            if compression == "none":
                assert max(distances) < 1e-6
            elif compression == "powersgd":
                # The first step is uncompressed. The error of later steps is what the processes keep for the next step.
                assert distances[0] < 1e-6 and 0.01 < distances[1] < 0.3 and explained < 1e-5
            else:
                assert 1e-6 < max(distances) < (1e-2 if compression == "bf16" else 1e-3)


# Bytes that a host of two processes sends to another per byte of gradients: 2 (P - 1) / P, or 2 (N - 1) / N.
FLAT, ACROSS = 2 * 3 / 4, 2 * 1 / 2
SENT = [
    (DDP(route="flat"), FLAT),
    (DDP(route="flat", compression="fp16"), FLAT / 2),
    (DDP(route="ring", compression="bf16"), FLAT / 2),
    (DDP(route="hierarchical"), ACROSS),
    (DDP(route="hierarchical", compression="bf16"), ACROSS / 2),
    (FSDP(shard=2), ACROSS),
    (FSDP(shard=2, compression="fp16"), ACROSS / 2),
    (FSDP(shard=2, compression="bf16"), ACROSS / 2),
]


def test_half_precision_halves_the_bytes_on_the_interface_with_ddp_and_hsdp(hosts):
    strategies, factors = zip(*SENT, strict=True)
    for found in succeed(Job(hosts, 2, workers.bytes_sent, strategies, 3).results(120)):
        plain = found[0][1]
        for strategy, factor, (sent, gradients) in zip(strategies, factors, found, strict=True):
            # Packet headers add one per cent.
            assert sent == pytest.approx(factor, rel=0.05), strategy
            for gradient, expected in zip(gradients, plain, strict=True):
                exact = strategy.compression == "none"
                assert torch.allclose(
                    *map(torch.tensor, (gradient, expected)), rtol=1e-5 if exact else 2e-2, atol=1e-7 if exact else 1e-5
                )


@pytest.fixture(scope="module")
def powersgd_runs(hosts, tmp_path_factory):
    """By route: a run of ten steps and one that was interrupted after five, on four processes."""
    folder = tmp_path_factory.mktemp("runs")
    runs = []
    for route in POWERSGD:
        plan = [("whole", 10), ("parts", 5), ("parts", 10)]
        runs += [(folder / f"{route}-{name}", steps, POWERSGD[route]) for name, steps in plan]
    succeed(Job(hosts, 2, workers.train_lines, runs).results(120))
    return folder


@pytest.mark.parametrize("route", POWERSGD)
def test_an_interrupted_run_with_powersgd_is_the_same_run(powersgd_runs, route):
    whole, parts = (powersgd_runs / f"{route}-{name}" for name in ("whole", "parts"))
    assert len(list((parts / "checkpoints" / "step-00000005").glob("process-*.json"))) == 4
    uninterrupted, resumed = weights(whole, 10), weights(parts, 10)
    for name, tensor in uninterrupted.items():
        assert torch.equal(tensor, resumed[name]), name


def test_on_a_different_number_of_processes_the_errors_start_from_zero(hosts, powersgd_runs):
    path = powersgd_runs / "flat-parts"
    succeed(Job(hosts, 1, workers.train_lines, [(path, 11, POWERSGD["flat"])]).results(60))
    begun = [event for event in read_events(path / "events.jsonl") if event["event"] == "begin"]
    assert "the powersgd compression starts without its saved errors" in begun[-1]["notes"][-1]


def test_unused_parameters_are_named_unless_the_task_declares_them(hosts, tmp_path):
    for refusal, trained in succeed(Job(hosts[:1], 2, workers.train_half_used, tmp_path).results(60)):
        assert refusal.startswith("a step left parameters unused (unused.weight, unused.bias)")
        assert trained == "trained"
