"""Fits the cost model to a network with a message sweep, and compares its predictions with measurements.

The sweep sends messages between pairs of processes: on the hosts of a job that ``torchrun`` started, or on hosts made
of network namespaces. Predictions are compared on the latter, for all-reduces and training steps of 2 to 8 processes,
none of which are part of the fit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared.comms.allreduce import Flat, Ring, all_peers, mesh_peers
from shared.comms.compression import HalfPrecision
from shared.comms.cost import Cluster, Link, Route, route_seconds
from shared.comms.group import Group
from shared.comms.hierarchical import Hierarchical
from shared.comms.joining import join
from shared.comms.profiles import Layer, Profile
from shared.comms.shaped_network import Job, shaped_network, succeed
from shared.comms.step_model import CommunicationOption, Device, Workload, predict
from shared.errors import InvalidInputError

SWEEP_BYTES = (4_000, 500_000, 1_000_000, 2_000_000, 4_000_000)
SHAPES = ((2, 1), (2, 2), (4, 1), (2, 4))
"""(hosts, processes per host)"""
SIZES_BYTES = (1_000_000, 4_000_000)
WIDTH, DEPTH, BATCH = 512, 8, 512
"""Layer width, number of layers and batch of the network whose steps are measured: 2.1 million parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The link between hosts, the link inside a host, and the seconds to add one byte to another."""

    inter: Link
    intra: Link
    gamma_s: float

    def cluster(self, hosts: int, per_host: int) -> Cluster:
        """A cluster on this network that uses gloo's ring."""
        return Cluster(
            nodes=hosts, per_node=per_host, intra=self.intra, inter=self.inter, tree=False, gamma_s=self.gamma_s
        )


@dataclass(frozen=True, slots=True)
class Point:
    """The predicted and the measured time of ``what``, in seconds."""

    hosts: int
    per_host: int
    what: str
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """The absolute error of the prediction relative to the measurement."""
        return abs(self.predicted_s - self.measured_s) / self.measured_s


def fit_link(sizes: Sequence[float], seconds: Sequence[float]) -> Link:
    """The link with the least squared relative error of the message times. ``sizes`` are in bytes."""
    # Rows weighted by 1 / t: (1 / t) alpha + (n / t) / beta = 1.
    rows = torch.tensor([[1 / t, n / t] for n, t in zip(sizes, seconds, strict=True)], dtype=torch.float64)
    solution = torch.linalg.lstsq(rows, torch.ones(len(rows), 1, dtype=torch.float64)).solution.flatten()
    alpha, per_byte = solution.tolist()
    if per_byte <= 0:
        # If latency dominates the sweep, it yields only a lower bound of the rate.
        per_byte = min(t / n for n, t in zip(sizes, seconds, strict=True))
    return Link(alpha_s=max(alpha, 0.0), bytes_s=1 / per_byte)


def calibrate(mbit_s: float) -> Calibration:
    """Creates a shaped network of two hosts with two processes each, sweeps it, and fits the model."""
    with shaped_network(2, mbit_s) as hosts:
        calibration: Calibration = succeed(Job(hosts, 2, calibrate_job).results(300))[0]
    return calibration


def calibrate_job() -> Calibration:
    """Runs on every process of a job: sweeps the network between its hosts with gloo and fits the model.

    Every process returns the same calibration. Raises ``InvalidInputError`` unless there are at least two hosts and at
    least two processes on the first.
    """
    with join("cpu") as group:
        if len(group.nodes) < 2 or len(group.nodes[0]) < 2:
            raise InvalidInputError(
                "calibrating a network needs at least two hosts, with at least two processes on the first; this job "
                f"has {', '.join(f'{len(ranks)} on {group.members[ranks[0]].host}' for ranks in group.nodes)}"
            )
        return group.gather(_sweep(group))[0]


def _sweep(group: Group) -> Calibration:
    """Times messages from the first process to its neighbour and to the second host, and the addition of tensors."""
    times: dict[int, list[float]] = {}
    for peer in (group.nodes[0][1], group.nodes[1][0]):
        times[peer] = []
        for size in SWEEP_BYTES:
            tensor = torch.zeros(size // 4)
            one_way_s = []
            for _ in range(5):
                group.barrier()
                start_time = time.perf_counter()
                if group.rank == 0:
                    dist.send(tensor, peer)
                    dist.recv(tensor, peer)
                elif group.rank == peer:
                    dist.recv(tensor, 0)
                    dist.send(tensor, 0)
                one_way_s.append((time.perf_counter() - start_time) / 2)
            times[peer].append(statistics.median(one_way_s))
    total, addend = torch.zeros(1_000_000), torch.zeros(1_000_000)
    start_time = time.perf_counter()
    for _ in range(10):
        total += addend
    gamma_s = (time.perf_counter() - start_time) / 10 / total.nbytes
    inside, across = (fit_link(SWEEP_BYTES, seconds) for seconds in times.values())
    return Calibration(inter=across, intra=inside, gamma_s=gamma_s)


def validate(calibration: Calibration, mbit_s: float) -> list[Point]:
    """Predicts and measures all-reduces of 2 to 8 processes, and training steps of four processes."""
    points: list[Point] = []
    for hosts, per_host in SHAPES:
        cluster = calibration.cluster(hosts, per_host)
        with shaped_network(hosts, mbit_s) as nodes:
            measured = succeed(Job(nodes, per_host, time_routes).results(300))[0]
            for (route, sent_fraction, size), seconds in measured.items():
                predicted = route_seconds(route, size, cluster, sent_fraction=sent_fraction, pipelined=True)
                what = f"{route}{' bf16' if sent_fraction < 1 else ''}, {size / 1e6:g} MB"
                points.append(Point(hosts, per_host, what, predicted, seconds))
            if (hosts, per_host) == (2, 2):
                points += _compare_steps(cluster, succeed(Job(nodes, per_host, time_steps).results(300)))
    return points


def time_routes() -> dict[tuple[Route, float, int], float]:
    """Runs on every process: the median seconds of an all-reduce by (route, fraction of bytes sent, size in bytes)."""
    with join("cpu") as group:
        ring, flat = Ring(all_peers(group)), Flat(all_peers(group))
        hierarchical = Hierarchical(*mesh_peers(group), device=group.device)
        variants: dict[tuple[Route, float], Callable[[Tensor], None]] = {
            ("flat", 1.0): flat.all_reduce,
            ("ring", 1.0): ring.all_reduce,
            ("hierarchical", 1.0): hierarchical.all_reduce,
            ("hierarchical", 0.5): lambda tensor: hierarchical.all_reduce(tensor, HalfPrecision(torch.bfloat16)),
        }
        seconds: dict[tuple[Route, float, int], list[float]] = {}
        for size in SIZES_BYTES:
            for _ in range(3):
                for (route, sent_fraction), all_reduce in variants.items():
                    tensor = torch.ones(size // 4)
                    group.barrier()
                    start_time = time.perf_counter()
                    all_reduce(tensor)
                    group.barrier()
                    seconds.setdefault((route, sent_fraction, size), []).append(time.perf_counter() - start_time)
        return {key: statistics.median(times) for key, times in seconds.items()}


def time_steps() -> dict[str, float]:
    """Runs on every process: the median seconds of a training step without communication (``none``) and by route."""
    from torch.nn.parallel import DistributedDataParallel

    from shared.comms.hooks import gradient_exchange, rehearse

    torch.set_num_threads(1)
    with join("cpu") as group:
        wrapped = {}
        for route in ("flat", "ring", "hierarchical"):
            model = network()
            wrapped[route] = DistributedDataParallel(model, bucket_cap_mb=1)
            exchange = gradient_exchange(group, model, route=route, compression="none")
            wrapped[route].register_comm_hook(exchange, lambda state, bucket: state(bucket))
            rehearse(wrapped[route], exchange)
        x = torch.randn(BATCH, WIDTH)
        seconds: dict[str, list[float]] = {}
        for _ in range(4):
            for name in ("none", *wrapped):
                model = wrapped.get(name) or wrapped["flat"]
                with model.no_sync() if name == "none" else nullcontext():
                    group.barrier()
                    start_time = time.perf_counter()
                    model(x).square().mean().backward()
                    group.barrier()
                    seconds.setdefault(name, []).append(time.perf_counter() - start_time)
                model.zero_grad()
        return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def network() -> nn.Module:
    """A network of linear layers; with buckets of 1 MB each layer is one bucket."""
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers)


def _compare_steps(cluster: Cluster, measured: Sequence[dict[str, float]]) -> list[Point]:
    """Predicted and measured training steps; ``measured`` has the result of ``time_steps`` of each process."""
    layers = [Layer((WIDTH, WIDTH), 2.0 * WIDTH * WIDTH)] * DEPTH
    workload = Workload(
        profile=Profile("linear layers", layers),
        batch=BATCH,
        device=Device(flops_s=1.0, memory_s=1.0),
        compute_s=max(times["none"] for times in measured),
        bucket_bytes=2**20,
    )
    routes: tuple[Route, ...] = ("flat", "ring", "hierarchical")
    return [
        Point(
            cluster.nodes,
            cluster.per_node,
            f"training step, {route}",
            predict(workload, cluster, CommunicationOption(route=route, compression="none", sharding="DDP")).step_s,
            max(times[route] for times in measured),
        )
        for route in routes
    ]
