"""How much of the communication a backward pass hides: DDP's hooks against an all-reduce after it.

Two hosts (network namespaces) of two processes each with 100 Mbit/s between them train a network of twelve equal
linear layers. The batch is as large as makes a step's computing take as long as its gradients take over the link, on
whatever machine this is. Every way is timed in turns
in the same processes: ``after`` sums all gradients when the backward pass is through (without hooks), the others are
hooks that sum bucket by bucket while it goes on. Hidden is ``(compute + communication - step) / communication``, with
the communication timed alone, in each turn: the median turn counts, for what else the machine does changes over them.

The bars: hooks hide at least 15 % of the communication, and none is slower than summing afterwards by the same route.
The cores of this machine are shared by all processes; a GPU computes while its network interface sends, so it hides
more. It says nothing about several GPUs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.report import report
from shared.comms.hooks import gradient_exchange, rehearse, zero_backward
from shared.comms.joining import join
from shared.comms.shaped_network import Job, missing_rights, shaped_network, succeed

MBIT_S, HOSTS, PER_HOST, TURNS = 100.0, 2, 2, 5
WIDTH, DEPTH, BATCH, MAX_ROWS = 512, 12, 1024, 16384
WAYS = {
    "flat": ("flat", "none"),
    "ring": ("ring", "none"),
    "hierarchical": ("hierarchical", "none"),
    "hierarchical bf16": ("hierarchical", "bf16"),
}
MIN_HIDDEN = 0.15


def network() -> nn.Module:
    """Twelve layers of 1 MB of gradients."""
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))


def measure() -> dict[str, list[float]]:
    """What a process does: seconds by way and turn; ``compute``, ``after`` (all gradients at once) and the hooks."""
    torch.set_num_threads(1)
    with join("cpu") as group:
        models: dict[str, DistributedDataParallel] = {}
        for name, (route, compression) in WAYS.items():
            model = network()
            models[name] = DistributedDataParallel(model, bucket_cap_mb=1)
            exchange = gradient_exchange(group, model, route=route, compression=compression)
            models[name].register_comm_hook(exchange, lambda state, bucket: state(bucket))
            rehearse(models[name], exchange)
        x = torch.randn(MAX_ROWS, WIDTH, generator=torch.Generator().manual_seed(group.rank))
        rows = torch.tensor(BATCH)
        plain = models["flat"]
        gradients = [torch.zeros_like(parameter) for parameter in plain.parameters()]

        def step(model: DistributedDataParallel, *, alone: bool = False) -> None:
            with model.no_sync() if alone else nullcontext():
                model(x[:rows]).square().mean().backward()

        def flat_sum() -> None:
            for gradient in gradients:
                dist.all_reduce(gradient)

        def communicate(name: str) -> Callable[[], None]:
            return lambda: zero_backward(models[name])

        def after() -> None:
            step(plain, alone=True)
            flat_sum()

        actions: dict[str, Callable[[], None]] = {"compute": lambda: step(plain, alone=True), "after": after}
        for name, model in models.items():
            actions[name] = lambda model=model: step(model)  # type: ignore[misc]
            actions[f"{name}, communication alone"] = communicate(name)

        def timed(action: Callable[[], None]) -> float:
            group.barrier()
            began = time.perf_counter()
            action()
            group.barrier()
            taken = time.perf_counter() - began
            for model in models.values():
                model.zero_grad()
            return taken

        least = min(timed(actions["compute"]) for _ in range(3))
        rows = torch.tensor(min(MAX_ROWS, int(BATCH * timed(communicate("flat")) / least)))
        dist.broadcast(rows, 0)
        found: dict[str, list[float]] = {"rows of a batch": [float(rows)] * TURNS}
        for _ in range(TURNS):
            for name, action in actions.items():
                found.setdefault(name, []).append(timed(action))
        return found


def hidden_share(found: dict[str, list[float]], step: str, communication: str) -> float:
    """The median over the turns but the first of the share of the communication that computing hides."""
    alone = found[f"{communication}, communication alone"]
    turns = zip(found["compute"][1:], alone[1:], found[step][1:], strict=True)
    return statistics.median((compute + talking - together) / talking for compute, talking, together in turns)


def main() -> None:
    """Measures and reports."""
    if reason := missing_rights():
        report("ddp_overlap", {}, ratio=0.0, ok=False, note=f"skipped: {reason}")
        return
    with shaped_network(HOSTS, MBIT_S) as hosts:
        found = succeed(Job(hosts, PER_HOST, measure).results(900))[0]
    # The first turn warms up.
    seconds = {name: statistics.median(times[1:]) for name, times in found.items()}
    figures = {"rows of a batch": seconds.pop("rows of a batch")}
    figures |= {f"{name}: seconds": value for name, value in seconds.items()}
    hidden = {name: hidden_share(found, name, name) for name in WAYS}
    figures |= {f"{name}: hidden share": share for name, share in hidden.items()}
    figures["after (no hooks): hidden share"] = hidden_share(found, "after", "flat")
    misses = [f"{name} hides {share:.0%}" for name, share in hidden.items() if share < MIN_HIDDEN]
    if seconds["flat"] > seconds["after"]:
        misses.append("the flat hook is slower than summing afterwards")
    note = f"{'; '.join(misses)}, and the bar is {MIN_HIDDEN:.0%}" if misses else "all bars hold"
    report("ddp_overlap", figures, ratio=seconds["after"] / seconds["flat"], ok=not misses, note=note)


if __name__ == "__main__":
    main()
