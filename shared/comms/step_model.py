"""How long a training step takes on a cluster, how much of it is communication, and which way is best. Pure; no torch.

A step computes forward, then backward, in which gradients become ready bucket by bucket from the last layer on; a
bucket is reduced as soon as it is ready and the one before is through. What is not through when the backward pass ends
is exposed. Everybody waits for the slowest: of P processes whose steps scatter by ``jitter``, that is about
``1 + jitter sqrt(2 ln P)`` times the mean (the expected maximum of normal variables; David and Nagaraja, 2003).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from shared.comms.cost import Cluster, Route, node_bytes, ring_half, route_seconds
from shared.comms.profiles import Profile
from shared.errors import InvalidInputError

Compression: TypeAlias = Literal["none", "bf16", "powersgd"]
Sharding: TypeAlias = Literal["DDP", "FSDP", "HSDP"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """``flops_s`` that training reaches, not the data sheet's; ``memory_s`` bytes a second of its memory."""

    flops_s: float
    memory_s: float


DEVICES = {
    # Data sheets' dense bf16 (V100: fp16) rates times 0.4, what large trainings report (Chowdhery et al., 2022).
    "v100": Device(flops_s=125e12 * 0.4, memory_s=0.9e12),
    "a100": Device(flops_s=312e12 * 0.4, memory_s=2.0e12),
    "h100": Device(flops_s=989e12 * 0.4, memory_s=3.35e12),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A network with ``batch`` samples a process. ``compute_s`` is a measured step without communication.

    ``jitter`` is the standard deviation of a process's step over its mean.
    """

    profile: Profile
    batch: int
    device: Device
    compute_s: float | None = None
    bucket_bytes: float = 25 * 2**20
    gradient_bytes: int = 4
    jitter: float = 0.0
    powersgd_rank: int = 4

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InvalidInputError(f"the batch is {self.batch} samples a process; it must be at least 1")

    @property
    def seconds(self) -> float:
        """Forward and backward: three times the forward pass's operations (Kaplan et al., 2020)."""
        return self.compute_s or 3 * self.profile.flops * self.batch / self.device.flops_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How gradients are summed, compressed, and who keeps what."""

    route: Route
    compression: Compression
    sharding: Sharding


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A step by one way. ``share`` is the exposed communication's part of it.

    ``link_bytes`` are sent by a node in a step; ``memory_bytes`` are a process's parameters, gradients, optimizer
    state, buffers and activations.
    """

    way: Way
    step_s: float
    compute_s: float
    communication_s: float
    exposed_s: float
    link_bytes: float
    memory_bytes: float

    @property
    def share(self) -> float:
        return self.exposed_s / self.step_s


def predict(workload: Workload, cluster: Cluster, way: Way) -> Prediction:
    """The step of a workload on a cluster by one way."""
    if way.sharding != "DDP" and way.compression == "powersgd":
        raise InvalidInputError("PowerSGD needs whole gradients, which FSDP and HSDP do not keep")
    profile = workload.profile
    size = float(profile.parameters * workload.gradient_bytes)
    kept, extra = _compression(workload, way.compression)
    slowest = 1 + workload.jitter * math.sqrt(2 * math.log(cluster.world)) if cluster.world > 1 else 1.0
    compute = (workload.seconds + extra) * slowest
    if way.sharding == "DDP":
        events = _reduce_by_bucket(workload, cluster, way.route, kept, compute)
        sent = node_bytes(way.route, size, cluster, kept=kept)
        shards = 1
    else:
        shards = cluster.world if way.sharding == "FSDP" else cluster.per_node
        events = _sharded(workload, cluster, way, kept, compute)
        sent = _sharded_node_bytes(size, cluster, way, kept)
    communication, end = events
    exposed = max(0.0, end - compute)
    return Prediction(
        way=way,
        step_s=compute + exposed,
        compute_s=compute,
        communication_s=communication,
        exposed_s=exposed,
        link_bytes=sent,
        memory_bytes=_memory(workload, way, shards),
    )


def ways() -> Iterator[Way]:
    """All that are told apart; with shards kept apart the route matters inside HSDP alone, and PowerSGD not at all."""
    compressions: tuple[Compression, ...] = ("none", "bf16", "powersgd")
    routes: tuple[Route, ...] = ("flat", "ring", "hierarchical")
    for compression in compressions:
        for route in routes:
            yield Way(route=route, compression=compression, sharding="DDP")
        if compression != "powersgd":
            yield Way(route="ring", compression=compression, sharding="FSDP")
            yield Way(route="hierarchical", compression=compression, sharding="HSDP")


def rank_ways(workload: Workload, cluster: Cluster, memory_bytes: float | None = None) -> list[Prediction]:
    """All ways from the fastest to the slowest; those that do not fit into ``memory_bytes`` come last."""
    found = [predict(workload, cluster, way) for way in ways()]
    limit = math.inf if memory_bytes is None else memory_bytes
    return sorted(found, key=lambda one: (one.memory_bytes > limit, one.step_s))


def _compression(workload: Workload, compression: Compression) -> tuple[float, float]:
    """What is left of the bytes, and the seconds that it takes to compress."""
    size = workload.profile.parameters * workload.gradient_bytes
    if compression == "none":
        return 1.0, 0.0
    if compression == "bf16":
        # Read, written half, read half, written: three times the size through memory.
        return 2 / workload.gradient_bytes, 3 * size / workload.device.memory_s
    rank = workload.powersgd_rank
    # M is read three times and written twice; thin products are bound by memory on every device.
    return workload.profile.kept_by_powersgd(rank), max(
        5 * size / workload.device.memory_s, workload.profile.powersgd_flops(rank) / workload.device.flops_s
    )


def _buckets(workload: Workload) -> list[tuple[float, float]]:
    """The backward pass in buckets: the fraction of it after which each is ready, and the fraction of the bytes."""
    profile = workload.profile
    limit = max(1.0, workload.bucket_bytes / workload.gradient_bytes)
    found: list[tuple[float, float]] = []
    done = parameters = 0.0
    for layer in reversed(profile.layers):
        done += layer.flops
        parameters += layer.parameters
        if parameters >= limit:
            found.append((done / profile.flops, parameters / profile.parameters))
            parameters = 0.0
    if parameters:
        found.append((1.0, parameters / profile.parameters))
    return found


def _reduce_by_bucket(
    workload: Workload, cluster: Cluster, route: Route, kept: float, compute: float
) -> tuple[float, float]:
    """Seconds that communication takes, and when it ends, from the beginning of the step."""
    size = float(workload.profile.parameters * workload.gradient_bytes)
    forward, backward = compute / 3, 2 * compute / 3
    total, end = 0.0, 0.0
    for ready, fraction in _buckets(workload):
        seconds = route_seconds(route, size * fraction, cluster, kept=kept)
        end = max(end, forward + ready * backward) + seconds
        total += seconds
    return total, end if cluster.world > 1 else compute


def _sharded(workload: Workload, cluster: Cluster, way: Way, kept: float, compute: float) -> tuple[float, float]:
    """FSDP and HSDP: parameters are gathered before a bucket's forward and backward, gradients scattered after it.

    One bucket is gathered ahead; gathers and scatters share the links. Parameters travel as the gradients do.
    """
    size = float(workload.profile.parameters * workload.gradient_bytes)
    buckets = _buckets(workload)
    forward, backward = compute / 3, 2 * compute / 3
    gathers = [_half(size * fraction * kept, cluster, way) for _, fraction in buckets]
    reduces = [
        _half(size * fraction * kept, cluster, way) + _replicas(size * fraction * kept, cluster, way)
        for _, fraction in buckets
    ]
    clock = link = 0.0
    lengths = [now - before for (now, _), (before, _) in zip(buckets, [(0.0, 0.0), *buckets[:-1]], strict=True)]
    for gather, length in zip(reversed(gathers), reversed(lengths), strict=True):
        link += gather
        clock = max(clock, link) + length * forward
    for gather, reduce, length in zip(gathers, reduces, lengths, strict=True):
        link = max(link, clock - length * backward) + gather
        clock = max(clock, link) + length * backward
        link = max(link, clock) + reduce
    return 2 * sum(gathers) + sum(reduces), max(clock, link)


def _half(size: float, cluster: Cluster, way: Way) -> float:
    """A reduce-scatter or all-gather among those that share a copy."""
    if way.sharding == "HSDP" or cluster.nodes == 1:
        return ring_half(size, cluster.per_node, cluster.intra)
    slowest = replace(cluster.node_link, bytes_s=min(cluster.node_link.bytes_s, cluster.intra.bytes_s))
    return ring_half(size, cluster.world, slowest)


def _replicas(size: float, cluster: Cluster, way: Way) -> float:
    """The all-reduce of shards among HSDP's copies, one on each node."""
    if way.sharding == "FSDP" or cluster.nodes == 1:
        return 0.0
    share = replace(cluster, per_node=1, inter=replace(cluster.inter, bytes_s=cluster.inter.bytes_s / cluster.per_node))
    return route_seconds("flat", size / cluster.per_node, share)


def _sharded_node_bytes(size: float, cluster: Cluster, way: Way, kept: float) -> float:
    if cluster.nodes == 1:
        return 0.0
    if way.sharding == "HSDP":
        return node_bytes("hierarchical", size, cluster, kept=kept)
    return 3 * (cluster.world - 1) / cluster.world * size * kept


def _memory(workload: Workload, way: Way, shards: int) -> float:
    """Parameters, gradients and Adam's two moments in fp32 (16 bytes a parameter), buffers, activations."""
    parameters = workload.profile.parameters
    kept = 16.0 * parameters / shards
    # DDP copies gradients into buckets; FSDP holds two buckets of whole parameters; PowerSGD keeps its error.
    buffers = 4.0 * parameters if way.sharding == "DDP" else 2 * workload.bucket_bytes
    buffers += 4.0 * parameters if way.compression == "powersgd" else 0.0
    return kept + buffers + workload.batch * workload.profile.activation_bytes
