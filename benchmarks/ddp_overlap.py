"""How much of the communication a backward pass hides: DDP hooks against an all-reduce after the backward pass.

Two hosts (network namespaces) of two processes each, with 100 Mbit/s between them, train a network of twelve equal
linear layers. The batch size is chosen so that on this machine the computation of a step takes as long as the
communication of its gradients. All variants are timed in turns in the same processes: ``after`` sums all gradients
after the backward pass (without hooks); the others are hooks that sum bucket by bucket during it. The hidden share is
``(compute + communication - step) / communication``, with the communication timed alone, in each turn. The median turn
counts, because other load on the machine changes between turns.

The bars: hooks hide at least 15 % of the communication, and none is slower than summing afterwards by the same route.
On this machine all processes share the cores; a GPU computes while its network interface sends, so it hides more. This
says nothing about several GPUs.
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

from benchmarks.report import progress, report
from shared.comms.hooks import gradient_exchange, rehearse, zero_backward
from shared.comms.joining import join
from shared.comms.shaped_network import Job, missing_privileges, shaped_network, succeed

MBIT_S, HOSTS, PER_HOST, TURNS = 100.0, 2, 2, 5
WIDTH, DEPTH, BATCH, MAX_ROWS = 512, 12, 1024, 16384
EXCHANGES = {
    "flat": ("flat", "none"),
    "ring": ("ring", "none"),
    "hierarchical": ("hierarchical", "none"),
    "hierarchical bf16": ("hierarchical", "bf16"),
}
MIN_HIDDEN_SHARE = 0.15


def network() -> nn.Module:
    """A network of twelve layers with 1 MB of gradients each."""
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))


def measure() -> dict[str, list[float]]:
    """Runs in each process. Returns the seconds of each turn by action: ``compute``, ``after`` and the hooks."""
    torch.set_num_threads(1)
    with join("cpu") as group:
        models: dict[str, DistributedDataParallel] = {}
        for name, (route, compression) in EXCHANGES.items():
            model = network()
            models[name] = DistributedDataParallel(model, bucket_cap_mb=1)
            exchange = gradient_exchange(group, model, route=route, compression=compression)
            models[name].register_comm_hook(exchange, lambda state, bucket: state(bucket))
            rehearse(models[name], exchange)
        x = torch.randn(MAX_ROWS, WIDTH, generator=torch.Generator().manual_seed(group.rank))
        rows = torch.tensor(BATCH)
        flat_model = models["flat"]
        gradients = [torch.zeros_like(parameter) for parameter in flat_model.parameters()]

        def step(model: DistributedDataParallel, *, without_sync: bool = False) -> None:
            with model.no_sync() if without_sync else nullcontext():
                model(x[:rows]).square().mean().backward()

        def flat_sum() -> None:
            for gradient in gradients:
                dist.all_reduce(gradient)

        def communicate(name: str) -> Callable[[], None]:
            return lambda: zero_backward(models[name])

        def sum_afterwards() -> None:
            step(flat_model, without_sync=True)
            flat_sum()

        actions: dict[str, Callable[[], None]] = {
            "compute": lambda: step(flat_model, without_sync=True),
            "after": sum_afterwards,
        }
        for name, model in models.items():
            actions[name] = lambda model=model: step(model)  # type: ignore[misc]
            actions[f"{name}, communication alone"] = communicate(name)

        def timed(action: Callable[[], None]) -> float:
            group.barrier()
            start = time.perf_counter()
            action()
            group.barrier()
            seconds = time.perf_counter() - start
            for model in models.values():
                model.zero_grad()
            return seconds

        compute_s = min(timed(actions["compute"]) for _ in range(3))
        rows = torch.tensor(min(MAX_ROWS, int(BATCH * timed(communicate("flat")) / compute_s)))
        dist.broadcast(rows, 0)
        seconds_by_action: dict[str, list[float]] = {"rows of a batch": [float(rows)] * TURNS}
        for turn in range(TURNS):
            if group.leader:
                progress(f"turn {turn + 1} of {TURNS}, {int(rows)} rows in a batch")
            for name, action in actions.items():
                seconds_by_action.setdefault(name, []).append(timed(action))
        return seconds_by_action


def hidden_share(measurements: dict[str, list[float]], step: str, communication: str) -> float:
    """The median, over all turns but the first, of the share of the communication that computation hides."""
    communication_alone = measurements[f"{communication}, communication alone"]
    turns = zip(measurements["compute"][1:], communication_alone[1:], measurements[step][1:], strict=True)
    return statistics.median(
        (compute + communicating - overlapped) / communicating for compute, communicating, overlapped in turns
    )


def main() -> None:
    """Measures and reports."""
    if reason := missing_privileges():
        report("ddp_overlap", {}, ratio=0.0, ok=False, note=f"skipped: {reason}")
        return
    with shaped_network(HOSTS, MBIT_S) as hosts:
        measurements = succeed(Job(hosts, PER_HOST, measure).results(900))[0]
    # The first turn warms up.
    seconds = {name: statistics.median(times[1:]) for name, times in measurements.items()}
    figures = {"rows of a batch": seconds.pop("rows of a batch")}
    figures |= {f"{name}: seconds": value for name, value in seconds.items()}
    hidden = {name: hidden_share(measurements, name, name) for name in EXCHANGES}
    figures |= {f"{name}: hidden share": share for name, share in hidden.items()}
    figures["after (no hooks): hidden share"] = hidden_share(measurements, "after", "flat")
    misses = [f"{name} hides {share:.0%}" for name, share in hidden.items() if share < MIN_HIDDEN_SHARE]
    if seconds["flat"] > seconds["after"]:
        misses.append("the flat hook is slower than summing afterwards")
    note = f"{'; '.join(misses)}, and the bar is {MIN_HIDDEN_SHARE:.0%}" if misses else "all bars hold"
    report("ddp_overlap", figures, ratio=seconds["after"] / seconds["flat"], ok=not misses, note=note)


if __name__ == "__main__":
    main()
