"""All-reduce between two hosts of four processes each, over 100 Mbit/s: the backend's own beside ours.

The hosts are network namespaces (``shared/comms/shaped_network.py``); inside one nothing is shaped. Every ratio is of
times measured in turns in the same processes, and every byte is counted on the hosts' interfaces.

- ``flat, launcher's order``: gloo's all-reduce with ranks as a launcher gives them that deals processes to hosts in
  turns: every hop of its ring crosses the link;
- ``flat, our order``: gloo's all-reduce after ``join`` has made the processes of a host neighbours;
- ``hierarchical`` and ``hierarchical bf16``: ours.

The bars: hierarchical at least 1.5 times as fast as flat in our order and 4 times as in the launcher's, bf16
hierarchical 2.6 times as flat in our order, our order alone 3 times as the launcher's; bytes within 5 % of theory;
equal sums. It says nothing about several GPUs: NCCL has its own trees and switches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.report import report
from shared.comms.allreduce import Flat, all_peers, mesh_peers
from shared.comms.compression import HalfPrecision
from shared.comms.hierarchical import Hierarchical
from shared.comms.joining import join
from shared.comms.shaped_network import HEADER_BYTES, MTU, Job, missing_rights, shaped_network, succeed

MBIT_S, HOSTS, PER_HOST = 100.0, 2, 4
SIZES_MB = {25: 3, 100: 1}
"""Megabytes of gradients, and how often each is summed by each way."""
LAUNCHED, OURS, TREE, SHORT = "flat, launcher's order", "flat, our order", "hierarchical", "hierarchical bf16"
LEAST = {(TREE, OURS): 1.5, (TREE, LAUNCHED): 4.0, (SHORT, OURS): 2.6, (OURS, LAUNCHED): 3.0}
BYTES_WITHIN = 0.05


def payload_factor(way: str) -> float:
    """Bytes that a host sends to the other for a byte of gradients; ``shared/comms/allreduce.py`` has the formulas."""
    world = HOSTS * PER_HOST
    ring = 2 * (world - 1) / world
    across = 2 * (HOSTS - 1) / HOSTS
    return {LAUNCHED: PER_HOST * ring, OURS: ring, TREE: across, SHORT: across / 2}[way]


def sent_bytes() -> int:
    """What this host's interface has sent."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "eth0":
            return int(counts.split()[8])
    raise RuntimeError("there is no eth0 here")


def measure(sizes: dict[int, int]) -> dict[tuple[str, int], list[tuple[float, int]]]:
    """What a process does: seconds and bytes sent by its host, by way and megabytes, once a turn."""
    torch.set_num_threads(1)
    with join("cpu") as group:
        by_launcher = sorted(range(group.world), key=lambda rank: group.members[rank].launched)
        launched = dist.new_group(by_launcher, sort_ranks=False)
        tree = Hierarchical(*mesh_peers(group), device=group.device)
        flat = Flat(all_peers(group))

        ways: dict[str, Callable[[Tensor], Any]] = {
            LAUNCHED: lambda tensor: dist.all_reduce(tensor, group=launched),
            OURS: flat.all_reduce,
            TREE: tree.all_reduce,
            SHORT: lambda tensor: tree.all_reduce(tensor, HalfPrecision(torch.bfloat16)),
        }
        found: dict[tuple[str, int], list[tuple[float, int]]] = {}
        for megabytes, turns in sizes.items():
            # Whole numbers, whose sums are exact in every order, and in bf16.
            pattern = (torch.arange(megabytes * 250_000) % 7 + group.rank % 3).float()
            for _ in range(turns):
                sums = {}
                for name, way in ways.items():
                    tensor = pattern.clone()
                    group.barrier()
                    before, began = sent_bytes(), time.perf_counter()
                    way(tensor)
                    group.barrier()
                    found.setdefault((name, megabytes), []).append((time.perf_counter() - began, sent_bytes() - before))
                    sums[name] = tensor
                if not all(torch.equal(sums[OURS], other) for other in sums.values()):
                    raise RuntimeError("the sums are not equal")
        return found


def main() -> None:
    """Measures and reports."""
    if reason := missing_rights():
        report("allreduce", {}, ratio=0.0, ok=False, note=f"skipped: {reason}")
        return
    with shaped_network(HOSTS, MBIT_S) as hosts:
        job = Job(hosts, PER_HOST, measure, SIZES_MB, interleaved=True)
        results = succeed(job.results(1200))
    # A turn lasts until the last process is through; bytes are of the first host.
    found = results[0]
    figures: dict[str, float] = {}
    misses: list[str] = []
    frame = (MTU + 14) / (MTU - HEADER_BYTES + 14)
    for (way, megabytes), turns in found.items():
        seconds, sent = statistics.median(s for s, _ in turns), statistics.median(b for _, b in turns)
        expected = payload_factor(way) * megabytes * 1e6 * frame
        figures[f"{way}, {megabytes} MB: seconds"] = seconds
        figures[f"{way}, {megabytes} MB: seconds by theory"] = expected * 8 / (MBIT_S * 1e6)
        figures[f"{way}, {megabytes} MB: MB sent by a host"] = sent / 1e6
        figures[f"{way}, {megabytes} MB: MB by theory"] = expected / 1e6
        if abs(sent / expected - 1) > BYTES_WITHIN:
            misses.append(f"{way} sends {sent / expected - 1:+.1%} of what theory says")
    ratios: dict[tuple[str, str], float] = {}
    for (faster, slower), least in LEAST.items():
        by_size = [_ratio(found[slower, size], found[faster, size]) for size in SIZES_MB]
        ratios[faster, slower] = min(by_size)
        for size, value in zip(SIZES_MB, by_size, strict=True):
            theory = payload_factor(slower) / payload_factor(faster)
            figures[f"{faster} against {slower}, {size} MB: times (theory {theory:.3g}, bar {least})"] = value
        if min(by_size) < least:
            misses.append(f"{faster} is {min(by_size):.2f} times as fast as {slower}, and the bar is {least}")
    note = "; ".join(misses) if misses else "all bars hold"
    report("allreduce", figures, ratio=ratios[TREE, LAUNCHED], ok=not misses, note=note)


def _ratio(slower: list[tuple[float, int]], faster: list[tuple[float, int]]) -> float:
    """The median over the turns of how many times as long the slower took."""
    return statistics.median(s / f for (s, _), (f, _) in zip(slower, faster, strict=True))


if __name__ == "__main__":
    main()
