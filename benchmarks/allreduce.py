"""All-reduce between two hosts of four processes each over 100 Mbit/s: the backend's own against ours.

The hosts are network namespaces (``shared/comms/shaped_network.py``); the bandwidth is limited only between hosts.
Every ratio compares times measured in turns in the same processes, and bytes are counted on the hosts' interfaces.

- ``flat, launcher's order``: gloo's all-reduce with the ranks of a launcher that assigns processes to hosts
  round-robin, so that every hop of the ring crosses the link;
- ``flat, our order``: gloo's all-reduce after ``join`` has made the processes of a host neighbours in the ring;
- ``hierarchical`` and ``hierarchical bf16``: ours.

The bars: hierarchical is at least 1.5 times as fast as flat in our order and 4 times as fast as in the launcher's
order; hierarchical bf16 is 2.6 times as fast as flat in our order; our order alone is 3 times as fast as the
launcher's. Bytes are within 5 % of theory, and the sums are equal. This says nothing about several GPUs: NCCL has its
own trees and switches.

The link alone takes 147 s for all of this, with ``--quick`` (25 MB, once) 21 s.

    python -m benchmarks.allreduce [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.report import progress, report
from shared.comms.allreduce import Flat, all_peers, mesh_peers
from shared.comms.compression import HalfPrecision
from shared.comms.hierarchical import Hierarchical
from shared.comms.joining import join
from shared.comms.shaped_network import HEADER_BYTES, MTU, Job, missing_privileges, shaped_network, succeed

MBIT_S, HOSTS, PER_HOST = 100.0, 2, 4
SIZES_MB = {25: 3, 100: 1}
"""Megabytes of gradients, and how often each size is summed by each method."""
LAUNCHER_ORDER, OUR_ORDER, HIERARCHICAL, HIERARCHICAL_BF16 = (
    "flat, launcher's order",
    "flat, our order",
    "hierarchical",
    "hierarchical bf16",
)
MIN_SPEEDUPS = {
    (HIERARCHICAL, OUR_ORDER): 1.5,
    (HIERARCHICAL, LAUNCHER_ORDER): 4.0,
    (HIERARCHICAL_BF16, OUR_ORDER): 2.6,
    (OUR_ORDER, LAUNCHER_ORDER): 3.0,
}
BYTES_TOLERANCE = 0.05


def payload_factor(method: str) -> float:
    """Bytes that one host sends to the other per byte of gradients; ``shared/comms/allreduce.py`` has the formulas."""
    world = HOSTS * PER_HOST
    ring = 2 * (world - 1) / world
    across = 2 * (HOSTS - 1) / HOSTS
    return {LAUNCHER_ORDER: PER_HOST * ring, OUR_ORDER: ring, HIERARCHICAL: across, HIERARCHICAL_BF16: across / 2}[
        method
    ]


def sent_bytes() -> int:
    """The number of bytes that this host's network interface has sent."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "eth0":
            return int(counts.split()[8])
    raise RuntimeError("there is no eth0 here")


def measure(sizes: dict[int, int]) -> dict[tuple[str, int], list[tuple[float, int]]]:
    """Runs in each process. Returns seconds and bytes sent by its host for each repeat, by method and megabytes."""
    torch.set_num_threads(1)
    with join("cpu") as group:
        ranks_by_launcher = sorted(range(group.world), key=lambda rank: group.members[rank].launched)
        launcher_group = dist.new_group(ranks_by_launcher, sort_ranks=False)
        hierarchical = Hierarchical(*mesh_peers(group), device=group.device)
        flat = Flat(all_peers(group))

        methods: dict[str, Callable[[Tensor], Any]] = {
            LAUNCHER_ORDER: lambda tensor: dist.all_reduce(tensor, group=launcher_group),
            OUR_ORDER: flat.all_reduce,
            HIERARCHICAL: hierarchical.all_reduce,
            HIERARCHICAL_BF16: lambda tensor: hierarchical.all_reduce(tensor, HalfPrecision(torch.bfloat16)),
        }
        measurements: dict[tuple[str, int], list[tuple[float, int]]] = {}
        for megabytes, repeats in sizes.items():
            # Small integers, whose sums are exact in any order, also in bf16.
            pattern = (torch.arange(megabytes * 250_000) % 7 + group.rank % 3).float()
            for _ in range(repeats):
                sums = {}
                for name, method in methods.items():
                    tensor = pattern.clone()
                    group.barrier()
                    bytes_before, start = sent_bytes(), time.perf_counter()
                    method(tensor)
                    group.barrier()
                    measurements.setdefault((name, megabytes), []).append(
                        (time.perf_counter() - start, sent_bytes() - bytes_before)
                    )
                    sums[name] = tensor
                    if group.leader:
                        progress(f"{megabytes} MB, {name}: {measurements[name, megabytes][-1][0]:.1f} s")
                if not all(torch.equal(sums[OUR_ORDER], total) for total in sums.values()):
                    raise RuntimeError("the sums are not equal")
        return measurements


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="25 MB only, and only once")
    sizes = {25: 1} if parser.parse_args().quick else SIZES_MB
    if reason := missing_privileges():
        report("allreduce", {}, ratio=0.0, ok=False, note=f"skipped: {reason}")
        return
    with shaped_network(HOSTS, MBIT_S) as hosts:
        job = Job(hosts, PER_HOST, measure, sizes, interleaved=True)
        results = succeed(job.results(1200))
    # A repeat lasts until the last process has finished; bytes are those of the first host.
    measurements = results[0]
    figures: dict[str, float] = {}
    misses: list[str] = []
    frame = (MTU + 14) / (MTU - HEADER_BYTES + 14)
    for (method, megabytes), samples in measurements.items():
        seconds, bytes_sent = (
            statistics.median(duration for duration, _ in samples),
            statistics.median(count for _, count in samples),
        )
        expected = payload_factor(method) * megabytes * 1e6 * frame
        figures[f"{method}, {megabytes} MB: seconds"] = seconds
        figures[f"{method}, {megabytes} MB: seconds by theory"] = expected * 8 / (MBIT_S * 1e6)
        figures[f"{method}, {megabytes} MB: MB sent by a host"] = bytes_sent / 1e6
        figures[f"{method}, {megabytes} MB: MB by theory"] = expected / 1e6
        if abs(bytes_sent / expected - 1) > BYTES_TOLERANCE:
            misses.append(f"{method} sends {bytes_sent / expected - 1:+.1%} of what theory says")
    ratios: dict[tuple[str, str], float] = {}
    for (faster, slower), min_speedup in MIN_SPEEDUPS.items():
        by_size = [_ratio(measurements[slower, size], measurements[faster, size]) for size in sizes]
        ratios[faster, slower] = min(by_size)
        for size, value in zip(sizes, by_size, strict=True):
            theory = payload_factor(slower) / payload_factor(faster)
            figures[f"{faster} against {slower}, {size} MB: times (theory {theory:.3g}, bar {min_speedup})"] = value
        if min(by_size) < min_speedup:
            misses.append(f"{faster} is {min(by_size):.2f} times as fast as {slower}, and the bar is {min_speedup}")
    note = "; ".join(misses) if misses else "all bars hold"
    report("allreduce", figures, ratio=ratios[HIERARCHICAL, LAUNCHER_ORDER], ok=not misses, note=note)


def _ratio(slower: list[tuple[float, int]], faster: list[tuple[float, int]]) -> float:
    """The median over the repeats of the slower time divided by the faster."""
    return statistics.median(slow / fast for (slow, _), (fast, _) in zip(slower, faster, strict=True))


if __name__ == "__main__":
    main()
