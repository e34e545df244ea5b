"""The functions that the processes of test jobs run. They must be importable in a new process."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import tensorboard  # noqa: F401 - slow to import, so once and not in every process

from shared.cli.main import main
from shared.comms.allreduce import Flat, Ring, all_peers, mesh_peers
from shared.comms.group import Group
from shared.comms.hierarchical import Hierarchical
from shared.comms.hooks import gradient_exchange
from shared.comms.joining import join, shorten_timeouts
from shared.comms.watch import LostProcessError, Member, Timeouts
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.errors import InvalidInputError
from shared.strategy import DDP, FSDP
from tests.shared.engine import line

QUICK = Timeouts(start_s=60, step_s=30, silence_s=3, suspicious_s=1, beat_s=0.25)
SIZES = (0, 1, 3, 4, 1001, 40_000)
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int8, torch.int32, torch.int64),
)


def sums(shards: Sequence[int | None]) -> dict[str, Any]:
    """The number of sums that differ from the flat route, by route, type and size.

    The hierarchical route goes over nodes of ``shards`` processes each; None is those of each host.
    """
    with join("cpu", timeouts=QUICK) as group:
        routes: dict[str, Any] = {"ring": Ring(all_peers(group))}
        for shard in shards:
            routes[f"hierarchical {shard}"] = Hierarchical(*mesh_peers(group, shard), device=group.device)
        flat = Flat(all_peers(group))
        found = {}
        for dtype in DTYPES:
            for size in SIZES:
                generator = torch.Generator().manual_seed(size * 100 + group.rank)
                # Small integers: their sums are exact in every type and order.
                value = torch.randint(-8, 8, (size,), generator=generator).to(dtype)
                expected = value.clone()
                flat.all_reduce(expected)
                for name, route in routes.items():
                    total = value.clone()
                    route.all_reduce(total)
                    found[name, str(dtype), size] = int((total != expected).sum())
        return {"nodes": group.nodes, "hosts": [m.host for m in group.members], "found": found}


def sum_without_interface(resolved: Sequence[str] = ()) -> tuple[float, str | None]:
    """The sum of the ranks over hosts that were not told their interface, and the interface that was chosen.

    ``resolved`` are the addresses, by rank, that the host's own name resolves to.
    """
    del os.environ["GLOO_SOCKET_IFNAME"]
    resolve, own_name = socket.getaddrinfo, socket.gethostname()
    if resolved:
        address = resolved[int(os.environ["RANK"])]
        socket.getaddrinfo = lambda host, *more, **options: resolve(
            address if host == own_name else host, *more, **options
        )
    with join("cpu", timeouts=replace(QUICK, start_s=15)) as group:
        return float(group.sum(torch.tensor(float(group.rank)))), os.environ.get("GLOO_SOCKET_IFNAME")


def join_through(interfaces: Sequence[str], start_s: float) -> str:
    """Joins a job through the interface of this rank. Returns the message of the error."""
    os.environ["GLOO_SOCKET_IFNAME"] = interfaces[int(os.environ["RANK"])]
    try:
        with join("cpu", timeouts=replace(QUICK, start_s=start_s)):
            return "joined"
    except LostProcessError as error:
        return str(error)


def exchange_of_one_of_many(nodes: int, per_node: int, route: str, compression: str) -> str:
    """Why a process of a large cluster refuses an exchange of gradients. With torch's fake backend, nothing is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    world = nodes * per_node
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    members = tuple(Member(f"node{number // per_node}", number % per_node, 1, number) for number in range(world))
    try:
        group = Group(0, world, torch.device("cpu"), members)
        gradient_exchange(group, nn.Linear(2, 2), route=route, compression=compression)
    except InvalidInputError as error:
        return str(error)
    return "accepted"


def lose(how: str, victim: int) -> str:
    """Loses a process in the third of many collectives. Returns the message of each process that is left."""
    waits = how in ("sleeps", "differs")
    timeouts = replace(QUICK, step_s=1, silence_s=16) if waits else QUICK
    if how == "raises":
        # The others learn the cause at once. The first process, which holds the store, must not stay for half of
        # silence_s then: the test does not wait that long.
        timeouts = replace(QUICK, silence_s=240)
    try:
        with join("cpu", timeouts=timeouts) as group:
            near, _, _ = mesh_peers(group)
            if waits:
                shorten_timeouts(group)
            for step in range(20):
                group.log.position = f"at step {step}"
                if how == "raises" and group.rank != victim == 0 and step == 3:
                    time.sleep(3)  # the first process would have ended by then
                if group.rank == victim and step == 3:
                    if how == "sleeps":
                        time.sleep(8)
                    elif how == "differs":
                        near.all_reduce(torch.ones(1000))
                    elif how == "raises":
                        raise ValueError("no such sample")
                    else:
                        os.kill(os.getpid(), signal.SIGSTOP if how == "stops" else signal.SIGKILL)
                group.sum(torch.ones(1000))
    except LostProcessError as error:
        return str(error)
    return "nothing happened"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(33, 65), nn.ReLU(), nn.Linear(65, 257), nn.ReLU(), nn.Linear(257, 3))


def gradients(choices: list[tuple[str, str]], rounds: int) -> dict[tuple[str, str], tuple[list[float], float]]:
    """By route and compression: the relative error of gradients, summed over 1, 2, ... rounds, against plain DDP.

    Also the relative error that remains after adding the residuals that the processes keep.
    """
    with join("cpu", timeouts=QUICK) as group:
        found = {}
        plain = DistributedDataParallel(network())
        for route, compression in choices:
            model = network()
            settings = DDP(route=route, compression=compression, powersgd_rank=2, powersgd_start=1, bucket_mb=0.05)
            strategy = settings.build(group)
            wrapped = strategy.wrap(model)
            sums = [torch.zeros(sum(p.numel() for p in model.parameters())) for _ in range(2)]
            distances = []
            for _ in range(rounds):
                x = torch.randn(8, 33, generator=torch.Generator().manual_seed(group.rank))
                for total, model_of_route in zip(sums, (plain, wrapped), strict=True):
                    model_of_route.zero_grad()
                    model_of_route(x).square().mean().backward()
                    total += torch.cat([p.grad.reshape(-1) for p in model_of_route.parameters()])
                distances.append(float((sums[1] - sums[0]).norm() / sums[0].norm()))
            errors = strategy.own_state().get("errors", {})
            residuals = [
                group.sum(errors.get(name, torch.zeros_like(p)).reshape(-1)) for name, p in model.named_parameters()
            ]
            explained = float((sums[1] + torch.cat(residuals) - sums[0]).norm() / sums[0].norm())
            found[route, compression] = distances, explained
        return found


def bytes_sent(strategies: Sequence[DDP | FSDP], steps: int) -> list[tuple[float, list[Any]]]:
    """By strategy: the bytes that this host sends in a backward pass per byte of gradients, and the gradients."""
    torch.set_num_threads(1)
    found = []
    with join("cpu", timeouts=QUICK) as group:
        for settings in strategies:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(256, 1024), nn.Tanh(), nn.Linear(1024, 256))
            size = sum(parameter.nbytes for parameter in model.parameters())
            wrapped = settings.build(group).wrap(model)
            x = torch.randn(8, 256, generator=torch.Generator().manual_seed(group.rank))
            group.barrier()
            before = interface_bytes()
            for _ in range(steps):
                wrapped.zero_grad()
                wrapped(x).square().mean().backward()
            group.barrier()
            sent = (interface_bytes() - before) / steps / size
            gradients = [parameter.grad for parameter in model.parameters()]
            found.append(
                (
                    sent,
                    [
                        getattr(gradient, "full_tensor", lambda gradient=gradient: gradient)().tolist()
                        for gradient in gradients
                    ],
                )
            )
    return found


def interface_bytes() -> int:
    """The bytes that ``eth0`` of this process's host has sent."""
    (row,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("eth0:"))
    return int(row.split(":", 1)[1].split()[8])


@dataclass(frozen=True, kw_only=True, slots=True)
class Wide:
    """A network for the line with a matrix that is large enough to compress."""

    def build(self, input: Any = None) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


def train_lines(runs: list[tuple[Path, int, DDP]]) -> int:
    """Trains the line in one run after the other. Returns the number of runs."""
    for path, steps, strategy in runs:
        recipe = replace(line.recipe(steps=steps), model=Wide(), strategy=strategy)
        fit(recipe, Run(path, "line", "line"), device="cpu", quiet=True)
    return len(runs)


def join_again(times: int) -> int:
    """Joins one group after the other."""
    for _ in range(times):
        with join("cpu", timeouts=QUICK) as group:
            group.sum(torch.ones(10))
    return times


def calibrate(file: str) -> int:
    """``trivium plan --calibrate`` on the hosts of this job; its exit code."""
    torch.set_num_threads(1)
    return main(["plan", "--calibrate", file])


def refuse_after_joining(slow: int) -> str:
    """Joins a job and then raises on every process. Process ``slow`` notices 3 s late that it is connected."""
    connect = dist.init_process_group

    def connect_late(*arguments: Any, **options: Any) -> None:
        connect(*arguments, **options)
        time.sleep(3)

    if int(os.environ["RANK"]) == slow:
        dist.init_process_group = connect_late
    try:
        with join("cpu", timeouts=QUICK):
            raise InvalidInputError("this job cannot run")
    except (InvalidInputError, LostProcessError) as error:
        return str(error)


def meet_without(absent: int) -> str:
    """Joins a job whose process ``absent`` hosts the store, like ``torchrun``, but never joins. Returns the message."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=rank == absent, wait_for_workers=False, timeout=timedelta(seconds=60))
    message = ""
    if rank != absent:
        try:
            with join("cpu", timeouts=replace(QUICK, start_s=5)):
                message = "met"
        except InvalidInputError as error:
            message = str(error)
    store.set(f"left {rank}", "")
    if rank == absent:  # the process that hosts the store leaves last
        store.wait([f"left {member}" for member in range(world)])
    return message


class LostOnce(line.Regression):
    """Rank 1 is killed or stopped in its eighth step, unless it was restarted."""

    how, steps = signal.SIGKILL, 0

    def loss(self, model: nn.Module, batch: Any) -> Any:
        LostOnce.steps += 1
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and os.environ["RANK"] == "1" and LostOnce.steps == 8:
            os.kill(os.getpid(), self.how)
        return super().loss(model, batch)


class StoppedOnce(LostOnce):
    how = signal.SIGSTOP


def train_and_lose(path: Path, how: str) -> int:
    """Ten steps in which a process is killed or stopped. Returns the number of steps at the end."""
    torch.set_num_threads(1)
    recipe = line.recipe(StoppedOnce if how == "stopped" else LostOnce, steps=10)
    recipe = replace(recipe, strategy=DDP(silence_s=8))
    return fit(recipe, Run(path, "line", "line"), device="cpu", quiet=True).steps


def train_half_used(path: Path) -> list[str]:
    """Trains a task that leaves parameters unused, declared or not. Returns the outcomes."""
    return [_train_half_used(path / str(says_so), says_so) for says_so in (False, True)]


def _train_half_used(path: Path, says_so: bool) -> str:

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    class Network(line.Network):
        def build(self, input: Any = None) -> nn.Module:
            return Partly()

    task = line.Regression()
    if says_so:
        task.leaves_parameters_unused = True  # type: ignore[attr-defined]
    recipe = replace(line.recipe(lambda: task, steps=3), model=Network())
    try:
        fit(recipe, Run(path, "line", "line"), device="cpu", quiet=True)
    except InvalidInputError as error:
        return str(error)
    return "trained"


def train_unlike(path: Path, odd: int, ways: Sequence[str]) -> dict[str, str]:
    """Trains with different input on process ``odd``, or an impossible mesh on all. Returns the refusals."""
    return {how: _train_unlike(path / how, odd, how) for how in ways}


def _train_unlike(path: Path, odd: int, how: str) -> str:
    rank = int(os.environ["RANK"])
    strategy = DDP(route="hierarchical", shard=3) if how == "mesh" else DDP()
    recipe = replace(line.recipe(steps=3), strategy=strategy)
    if rank == odd and how == "batches":
        recipe = replace(recipe, data=LongerThanItSays())
    if rank == odd and how == "copies":
        recipe = replace(recipe, data=OldCopy())
    if rank == odd and how == "dtypes":
        recipe = replace(recipe, model=InDouble())
    if rank == odd and how == "settings":
        recipe = replace(recipe, seed=1)
    try:
        fit(recipe, Run(path, "line", "line"), device="cpu", quiet=True)
    except InvalidInputError as error:
        return str(error)
    return "trained"


class LongerThanItSays(line.Data):
    """The same config as on the other processes, for data that has grown."""

    def train(self, input: Any = None) -> line.Points:
        return line.Points(self.length + 4)


class OldCopy(line.Data):
    """The same config as on the other processes, for a copy with other values."""

    def train(self, input: Any = None) -> line.Points:
        points = line.Points(self.length)
        points.x = points.x * 1.1
        return points


for odd_data in (LongerThanItSays, OldCopy):
    odd_data.__name__, odd_data.__qualname__ = line.Data.__name__, line.Data.__qualname__
    odd_data.__module__ = line.Data.__module__


class InDouble(line.Network):
    """The same network as on the other processes, in float64."""

    def build(self, input: Any = None) -> nn.Module:
        return line.Network.build(self, input).double()


InDouble.__name__, InDouble.__qualname__ = line.Network.__name__, line.Network.__qualname__
InDouble.__module__ = line.Network.__module__
