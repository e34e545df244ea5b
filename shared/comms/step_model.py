"""Predicts the duration of a training step on a cluster and its communication, and ranks the options. No torch.

A step computes the forward pass, then the backward pass, in which gradients become ready bucket by bucket from the last
layer to the first. A bucket is reduced when it is ready and the previous one is done. Communication that is not done
when the backward pass ends is exposed. All processes wait for the slowest: if the step times of P processes have a
relative standard deviation ``jitter``, the slowest takes ``1 + jitter m`` times the mean, with the expected maximum
``m = Phi^-1((P - 3/8) / (P + 1/4))`` of P standard normal variables (Blom, 1958).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal, TypeAlias

from shared.comms.cost import Cluster, Route, node_bytes, ring_half, route_seconds
from shared.comms.profiles import Profile
from shared.errors import InvalidInputError

Compression: TypeAlias = Literal["none", "bf16", "powersgd"]
Sharding: TypeAlias = Literal["DDP", "FSDP", "HSDP"]
_GRADIENT_BYTES = 4
"""The bytes of an uncompressed element of a gradient, which is in fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """``flops_s``: FLOP/s that training reaches, not the data sheet's; ``memory_s``: memory bandwidth in bytes/s."""

    flops_s: float
    memory_s: float


DEVICES = {
    # Dense bf16 (V100: fp16) rates of the data sheets times 0.4, as reported for large trainings (Chowdhery et al.,
    # 2022).
    "v100": Device(flops_s=125e12 * 0.4, memory_s=0.9e12),
    "a100": Device(flops_s=312e12 * 0.4, memory_s=2.0e12),
    "h100": Device(flops_s=989e12 * 0.4, memory_s=3.35e12),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The training of a network with ``batch`` samples per process.

    ``compute_s`` is the measured duration of a step without communication, if known. ``jitter`` is the standard
    deviation of a process's step time divided by its mean.
    """

    profile: Profile
    batch: int
    device: Device
    compute_s: float | None = None
    bucket_bytes: float = 25 * 2**20
    jitter: float = 0.0
    powersgd_rank: int = 4

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InvalidInputError(f"the batch is {self.batch} samples per process; it must be at least 1")
        if self.compute_s is not None and not 0 < self.compute_s < math.inf:
            raise InvalidInputError(f"a step computes for {self.compute_s} s; it must be above 0")
        if not 0 <= self.jitter < math.inf:
            raise InvalidInputError(f"the jitter is {self.jitter}; it must be at least 0")
        if self.powersgd_rank < 1:
            raise InvalidInputError(f"the rank of PowerSGD is {self.powersgd_rank}; it must be at least 1")

    @property
    def seconds(self) -> float:
        """Seconds of forward and backward: three times the operations of the forward pass (Kaplan et al., 2020)."""
        return self.compute_s or 3 * self.profile.flops * self.batch / self.device.flops_s


@dataclass(frozen=True, kw_only=True, slots=True)
class CommunicationOption:
    """One option for communication: the route and compression of gradients, and the sharding of the model.

    FSDP shards one copy of the model over all processes, HSDP one over those of each node and sums gradients across
    nodes. Only this sum is compressed, because nothing else is when training either.
    """

    route: Route
    compression: Compression
    sharding: Sharding


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The predicted step with the option ``way``. ``share`` is the fraction of exposed communication in the step.

    A node sends ``link_bytes`` in a step; ``memory_bytes`` are the parameters, gradients, optimizer state, buffers and
    activations of a process.
    """

    way: CommunicationOption
    step_s: float
    compute_s: float
    communication_s: float
    exposed_s: float
    link_bytes: float
    memory_bytes: float

    @property
    def share(self) -> float:
        return self.exposed_s / self.step_s


def predict(workload: Workload, cluster: Cluster, option: CommunicationOption) -> Prediction:
    """The step of a workload on a cluster with the option ``option``."""
    if option not in communication_options(cluster):
        raise InvalidInputError(f"{option} is not possible on {cluster.nodes} nodes with {cluster.per_node} processes")
    profile = workload.profile
    size = float(profile.parameters * _GRADIENT_BYTES)
    sent_fraction, compression_s = _compression(workload, option.compression)
    if option.sharding == "HSDP":
        compression_s /= cluster.per_node  # each process compresses its shard
    slowdown = 1 + workload.jitter * NormalDist().inv_cdf((cluster.world - 0.375) / (cluster.world + 0.25))
    compute = (workload.seconds + compression_s) * slowdown
    if option.sharding == "DDP":
        timing = _ddp_timing(workload, cluster, option.route, sent_fraction, compute)
        sent = node_bytes(option.route, size, cluster, sent_fraction=sent_fraction)
        shards = 1
    else:
        shards = cluster.world if option.sharding == "FSDP" else cluster.per_node
        timing = _sharded_timing(workload, cluster, option, sent_fraction, compute)
        sent = _sharded_node_bytes(size, cluster, option, sent_fraction)
    communication, end = timing
    exposed = max(0.0, end - compute)
    return Prediction(
        way=option,
        step_s=compute + exposed,
        compute_s=compute,
        communication_s=communication,
        exposed_s=exposed,
        link_bytes=sent,
        memory_bytes=_memory(workload, option, shards),
    )


def communication_options(cluster: Cluster) -> Iterator[CommunicationOption]:
    """The options for a training on a cluster. FSDP and HSDP have one route each.

    A single process sends nothing. The hierarchical route and HSDP need several nodes of several processes.
    """
    if cluster.world == 1:
        yield CommunicationOption(route="flat", compression="none", sharding="DDP")
        return
    compressions: tuple[Compression, ...] = ("none", "bf16", "powersgd")
    has_levels = cluster.nodes > 1 and cluster.per_node > 1
    routes: tuple[Route, ...] = ("flat", "ring", "hierarchical") if has_levels else ("flat", "ring")
    for compression in compressions:
        for route in routes:
            yield CommunicationOption(route=route, compression=compression, sharding="DDP")
        if compression == "none":
            yield CommunicationOption(route="ring", compression=compression, sharding="FSDP")
        if compression != "powersgd" and has_levels:
            yield CommunicationOption(route="hierarchical", compression=compression, sharding="HSDP")


def rank_options(workload: Workload, cluster: Cluster, memory_bytes: float | None = None) -> list[Prediction]:
    """Predictions of all options, fastest first; those that exceed ``memory_bytes`` come last."""
    predictions = [predict(workload, cluster, option) for option in communication_options(cluster)]
    limit = math.inf if memory_bytes is None else memory_bytes
    return sorted(predictions, key=lambda prediction: (prediction.memory_bytes > limit, prediction.step_s))


def _compression(workload: Workload, compression: Compression) -> tuple[float, float]:
    """The fraction of the bytes that is left, and the seconds that compression takes."""
    size = workload.profile.parameters * _GRADIENT_BYTES
    if compression == "none":
        return 1.0, 0.0
    if compression == "bf16":
        # Read full, write half, read half, write full: three times the size in memory traffic.
        return 2 / _GRADIENT_BYTES, 3 * size / workload.device.memory_s
    rank = workload.powersgd_rank
    # M is read three times and written twice; thin matrix products are memory-bound on every device.
    return workload.profile.powersgd_sent_fraction(rank), max(
        5 * size / workload.device.memory_s, workload.profile.powersgd_flops(rank) / workload.device.flops_s
    )


def _buckets(workload: Workload) -> list[tuple[float, float]]:
    """For each bucket, the fraction of the backward pass after which it is ready, and its fraction of the bytes."""
    profile = workload.profile
    limit = max(1.0, workload.bucket_bytes / _GRADIENT_BYTES)
    buckets: list[tuple[float, float]] = []
    done = parameters = 0.0
    for layer in reversed(profile.layers):
        done += layer.flops
        parameters += layer.parameters
        if parameters >= limit:
            buckets.append((done / profile.flops, parameters / profile.parameters))
            parameters = 0.0
    if parameters:
        buckets.append((1.0, parameters / profile.parameters))
    return buckets


def _ddp_timing(
    workload: Workload, cluster: Cluster, route: Route, sent_fraction: float, compute: float
) -> tuple[float, float]:
    """The seconds that communication takes, and the time at which it ends after the start of the step."""
    size = float(workload.profile.parameters * _GRADIENT_BYTES)
    forward, backward = compute / 3, 2 * compute / 3
    total, end = 0.0, 0.0
    for ready, fraction in _buckets(workload):
        seconds = route_seconds(route, size * fraction, cluster, sent_fraction=sent_fraction)
        end = max(end, forward + ready * backward) + seconds
        total += seconds
    return total, end if cluster.world > 1 else compute


def _sharded_timing(
    workload: Workload, cluster: Cluster, option: CommunicationOption, sent_fraction: float, compute: float
) -> tuple[float, float]:
    """Like ``_ddp_timing``, for FSDP and HSDP: a bucket's parameters are gathered before its forward and backward pass,
    and its gradients are reduce-scattered after the backward pass.

    One bucket is gathered ahead; all transfers share the links. Only the sum across copies is compressed.
    """
    size = float(workload.profile.parameters * _GRADIENT_BYTES)
    buckets = _buckets(workload)
    forward, backward = compute / 3, 2 * compute / 3
    gathers = [_shard_transfer(size * fraction, cluster, option) for _, fraction in buckets]
    reduces = [
        _shard_transfer(size * fraction, cluster, option)
        + _replica_reduce(size * fraction * sent_fraction, cluster, option)
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


def _shard_transfer(size: float, cluster: Cluster, option: CommunicationOption) -> float:
    """Seconds of a reduce-scatter or all-gather between the processes that share a copy."""
    if option.sharding == "HSDP" or cluster.nodes == 1:
        return ring_half(size, cluster.per_node, cluster.intra)
    return ring_half(size, cluster.world, cluster.slowest_hop())


def _replica_reduce(size: float, cluster: Cluster, option: CommunicationOption) -> float:
    """Seconds of the all-reduce of shards between HSDP's copies, one on each node."""
    if option.sharding == "FSDP" or cluster.nodes == 1:
        return 0.0
    share = replace(cluster, per_node=1, inter=replace(cluster.inter, bytes_s=cluster.inter.bytes_s / cluster.per_node))
    return route_seconds("flat", size / cluster.per_node, share)


def _sharded_node_bytes(size: float, cluster: Cluster, option: CommunicationOption, sent_fraction: float) -> float:
    if cluster.nodes == 1:
        return 0.0
    if option.sharding == "HSDP":
        return node_bytes("hierarchical", size, cluster, sent_fraction=sent_fraction)
    return 3 * (cluster.world - 1) / cluster.world * size * sent_fraction


def _memory(workload: Workload, option: CommunicationOption, shards: int) -> float:
    """Bytes of parameters, gradients and Adam's two moments in fp32 (16 per parameter), buffers and activations."""
    parameters = workload.profile.parameters
    state_bytes = 16.0 * parameters / shards
    # DDP copies gradients into buckets; FSDP holds two buckets of full parameters; PowerSGD keeps its error.
    buffers = 4.0 * parameters if option.sharding == "DDP" else 2 * workload.bucket_bytes
    buffers += 4.0 * parameters if option.compression == "powersgd" else 0.0
    return state_bytes + buffers + workload.batch * workload.profile.activation_bytes
