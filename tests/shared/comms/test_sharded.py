"""FSDP and HSDP: equal to DDP, resumed exactly, and with other strategies and numbers of processes."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import fully_shard

from shared.app import DenseNetwork
from shared.comms.allreduce import mesh_peers
from shared.comms.group import Group
from shared.comms.hierarchical import Hierarchical
from shared.comms.shaped_network import LOCALHOST, Job
from shared.comms.sharded import units
from shared.comms.sharded_state import local_tensor
from shared.comms.watch import LostProcessError, Member
from shared.deploy.export import export
from shared.deploy.programs.inductor import find_compiler
from shared.errors import InvalidInputError
from shared.observe.events import read_events
from shared.optimizers import SGD, AdamW
from shared.recipe import OptimizerConfig, Recipe
from shared.strategy import DDP, FSDP, StrategyConfig
from tests.shared import line_app
from tests.shared.engine import line
from tests.shared.processes import PRELOAD, run


class Layered(nn.Module):
    """Layers in a list, a parameter without dimensions, batch normalisation, and a matrix of three rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2))
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 1)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x)
        found: torch.Tensor = self.last(self.norm(x)) * self.scale
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    def build(self, input: Any = None) -> nn.Module:
        return Layered()


def recipe(strategy: StrategyConfig, steps: int, optimizer: OptimizerConfig | None = None) -> Recipe:
    """With clipping, micro-batches and averaged weights; processes evaluate different numbers of batches."""
    recipe = line.recipe(steps=steps, clip_norm=0.5, batch=20, micro_batch=5, evaluation_batch=6)
    return replace(recipe, model=Network(), ema_decay=0.9, strategy=strategy, optimizer=optimizer or ADAMW)


def train(runs: list[tuple[str, Recipe]]) -> int:
    """Trains one run after the other in these processes."""
    for path, settings in runs:
        line.run(settings, Path(path))
    return len(runs)


SHARDED = FSDP(unit_mb=1e-5)
HYBRID = replace(SHARDED, shard=2)
# Adam divides a gradient by its magnitude, which hides a wrong norm and amplifies rounding of sums close to zero.
PLAIN, ADAMW = SGD(learning_rate=0.05), AdamW(learning_rate=0.02)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of two processes, one after the other: SGD to compare values, AdamW for its state."""
    folder = tmp_path_factory.mktemp("runs")
    plan = [("ddp", recipe(DDP(), 12, PLAIN)), ("fsdp", recipe(SHARDED, 12, PLAIN))]
    plan += [("whole", recipe(SHARDED, 12)), ("parts", recipe(SHARDED, 7)), ("parts", recipe(SHARDED, 12))]
    plan += [("moved", recipe(DDP(), 7)), ("moved", recipe(SHARDED, 12))]
    run(train, [(str(folder / name), settings) for name, settings in plan])
    return folder


def state(path: Path, step: int = 12) -> dict[str, torch.Tensor]:
    folder = path / "checkpoints" / f"step-{step:08d}"
    parts = ("model", "optimizer", "ema")
    return {f"{part} {n}": v for part in parts for n, v in load_file(folder / f"{part}.safetensors").items()}


def test_a_sharded_run_equals_the_ddp_run_with_clipping_and_micro_batches(runs):
    norms = [event["norm"] for event in read_events(runs / "ddp" / "events.jsonl") if event["event"] == "train"]
    assert max(norms) > 0.5
    ddp_state, fsdp_state = state(runs / "ddp"), state(runs / "fsdp")
    assert ddp_state.keys() == fsdp_state.keys() and any(name.startswith("optimizer") for name in ddp_state)
    for name, tensor in ddp_state.items():
        torch.testing.assert_close(
            fsdp_state[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text
        )


def test_an_interrupted_sharded_run_is_the_same_run(runs):
    whole, parts, moved = (state(runs / name) for name in ("whole", "parts", "moved"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
        torch.testing.assert_close(moved[name], tensor, rtol=1e-3, atol=1e-4)


def test_one_process_resumes_a_run_sharded_over_two(runs, tmp_path):
    shutil.copytree(runs / "parts", tmp_path / "run")
    result = line.run(recipe(SHARDED, 17), tmp_path / "run")
    assert result.steps == 17 and result.history[-1]["loss"] < result.history[0]["loss"]


def test_an_artifact_of_a_sharded_run_equals_that_of_ddp(runs, tmp_path):
    app = replace(
        line_app.make_app(tmp_path),
        recipes=lambda: {"line": lambda: recipe(SHARDED, 12, PLAIN)},
        dense=lambda recipe, model: DenseNetwork(module=model, inputs={"x": torch.randn(2, 2)}, outputs=("y",)),
    )
    ddp_artifact, fsdp_artifact = (export(runs / name, app, tmp_path / name, network=False) for name in ("ddp", "fsdp"))
    assert ddp_artifact.weights().keys() == fsdp_artifact.weights().keys() == Layered().state_dict().keys()
    for name, tensor in ddp_artifact.weights().items():
        torch.testing.assert_close(fsdp_artifact.weights()[name], tensor, rtol=1e-5, atol=1e-6)


def same_by_any_number(steps: int) -> Recipe:
    """A run without batch normalisation and dropout, which depend on how a batch is divided."""
    return replace(recipe(SHARDED, steps, PLAIN), model=line.Network(dropout=0.0))


REFUSED = {
    "4 processes do not divide into groups of that size; possible sizes are 1, 2, 4": FSDP(shard=3),
    "strategy.shard is 1: every process would hold the whole model": FSDP(shard=1),
    "strategy.compression is bf16, but it has no effect": FSDP(compression="bf16"),
    "--compile has no effect on layers that FSDP shards": FSDP(),
}


def hybrid(path: str) -> list[str]:
    """Four processes with DDP, as two copies on two processes each, and as one copy. Returns the refusals."""
    train([(f"{path}/ddp", recipe(DDP(), 4, PLAIN)), (f"{path}/hybrid", recipe(HYBRID, 4, PLAIN))])
    train([(f"{path}/bf16", recipe(replace(HYBRID, compression="bf16"), 4, PLAIN))])
    train([(f"{path}/four", same_by_any_number(12)), (f"{path}/moved", same_by_any_number(7))])
    messages = []
    for words, strategy in REFUSED.items():
        with pytest.raises(InvalidInputError) as raised:
            line.run(replace(recipe(strategy, 4), compile="--compile" in words), Path(path) / "refused")
        messages.append(str(raised.value))
    return messages


@pytest.fixture(scope="module")
def four_processes(tmp_path_factory):
    """The runs of ``hybrid``, and the refusals of impossible settings on each process."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, run(hybrid, str(folder), processes=4, limit_s=300)


def test_two_copies_sharded_over_two_processes_each_train_like_ddp(four_processes):
    folder, _ = four_processes
    ddp_state, hybrid_state, compressed = (state(folder / name, 4) for name in ("ddp", "hybrid", "bf16"))
    for name, tensor in ddp_state.items():
        torch.testing.assert_close(hybrid_state[name], tensor, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(compressed[name], tensor, rtol=0.02, atol=2e-3)
    assert any(not torch.equal(compressed[name], hybrid_state[name]) for name in ddp_state)


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=list(REFUSED))
def test_impossible_settings_are_refused_on_every_process(four_processes, number):
    if "--compile" in list(REFUSED)[number] and find_compiler() is None:
        pytest.skip("there is no C++ compiler, which is refused first")
    for messages in four_processes[1]:
        assert list(REFUSED)[number] in messages[number]


def test_two_processes_resume_a_run_sharded_over_four(four_processes):
    folder, _ = four_processes
    run(train, [(str(folder / "moved"), same_by_any_number(12))])
    four_state, moved_state = state(folder / "four"), state(folder / "moved")
    for name, tensor in four_state.items():
        torch.testing.assert_close(moved_state[name], tensor, rtol=1e-4, atol=1e-5)


class Forked(nn.Module):
    """Two parallel layers."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(2, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [branch(x) for branch in self.branches]


@dataclass(frozen=True, kw_only=True, slots=True)
class ForkedNetwork:
    def build(self, input: Any = None) -> nn.Module:
        return Forked()


class LeavesOut(line.Regression):
    """One process uses both layers, the other only the first, whose gradient is computed last."""

    leaves_parameters_unused = True

    def loss(self, model: nn.Module, batch: Any) -> Any:
        found = model(batch["x"])
        return sum((output - batch["y"]).square().mean() for output in found[: 2 - int(os.environ["RANK"])])

    def evaluate(self, model: nn.Module, batch: Any, scores: Any) -> None:
        super().evaluate(lambda x: model(x)[0], batch, scores)


def leave_out(path: str) -> None:
    for name, strategy in (("ddp", DDP()), ("fsdp", SHARDED)):
        settings = replace(recipe(strategy, 4, PLAIN), model=ForkedNetwork(), task=line.task_settings(LeavesOut))
        line.run(settings, Path(path) / name)


def test_processes_may_leave_different_parameters_unused_if_the_task_declares_it(tmp_path):
    run(leave_out, str(tmp_path))
    ddp_state, fsdp_state = state(tmp_path / "ddp", 4), state(tmp_path / "fsdp", 4)
    for name, tensor in ddp_state.items():
        torch.testing.assert_close(fsdp_state[name], tensor, rtol=1e-5, atol=1e-6)


class Killed(line.Regression):
    """Rank 1 is killed in its third step."""

    steps = 0

    def loss(self, model: nn.Module, batch: Any) -> Any:
        Killed.steps += 1
        if os.environ["RANK"] == "1" and Killed.steps == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)


def lose_one(path: Path) -> str:
    """The message of a process when another one is lost."""
    torch.set_num_threads(1)
    with pytest.raises(LostProcessError) as lost:
        line.run(replace(recipe(SHARDED, 12), task=line.task_settings(Killed)), path)
    return str(lost.value)


def test_a_lost_process_is_named_with_the_collective_of_a_sharded_layer(tmp_path):
    job = Job([LOCALHOST], 2, lose_one, tmp_path / "run", preload=PRELOAD)
    message = job.result(0, 60)
    job.end()
    assert isinstance(message, str), message
    assert message.startswith("rank 1 (") and "no longer responds" in message
    assert "rank 0 waits in all_gather (inside) since" in message


def test_layers_that_share_a_parameter_are_gathered_together():
    model = Layered()
    assert units(model, 1) == [model.layers[0], model.layers[1]]
    model.layers[1][0].weight = model.first.weight = nn.Parameter(torch.zeros(3, 3))
    assert units(model, 1) == [model.layers[0]]
    assert units(model, 1e6) == []


def pretend_to_be_one_of_many(nodes: int, per_node: int) -> dict[str, Any]:
    """One process of a cluster with torch's fake backend: nothing is sent, and sums are not computed.

    Groups, meshes, chunks and FSDP2's shards are as on such a cluster.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    world = nodes * per_node
    dist.init_process_group("fake", store=FakeStore(), rank=9, world_size=world)
    members = tuple(Member(f"node{number // per_node}", number % per_node, 1, number) for number in range(world))
    group = Group(9, world, torch.device("cpu"), members)
    inside, across, _ = mesh_peers(group)
    flat = torch.ones(1001)
    Hierarchical(inside, across, inside, device=group.device).all_reduce(flat)
    mesh = dist.device_mesh.DeviceMesh.from_group(inside.group, "cpu", mesh_dim_names=("shard",))
    model = fully_shard(nn.Linear(16, 64), mesh=mesh)
    local_shapes = {name: tuple(local_tensor(parameter).shape) for name, parameter in model.named_parameters()}
    return {
        "inside": dist.get_process_group_ranks(inside.group),
        "across": dist.get_process_group_ranks(across.group),
        "held": local_shapes,
        "finite": bool(flat.isfinite().all()),
    }


def test_groups_and_shards_of_256_nodes_of_eight():
    (found,) = run(pretend_to_be_one_of_many, 256, 8, processes=1)
    assert found["inside"] == list(range(8, 16)) and found["across"] == list(range(1, 2048, 8))
    assert found["held"] == {"weight": (8, 16), "bias": (8,)} and found["finite"]
