"""The cost of a collective: the alpha-beta model, with links shared by several processes. Pure functions; no torch.

A message of n bytes takes ``alpha + n / beta`` (Hockney, 1994). S is the size of the tensor in bytes, P the number of
processes, N the number of nodes, L = P / N. Adding received data costs ``gamma`` seconds per byte.

- ring all-reduce: ``2 (P - 1) alpha + 2 (P - 1) / P S / beta + (P - 1) / P S gamma`` (Patarasuk and Yuan, 2009); it
  consists of a reduce-scatter and an all-gather;
- double binary tree (Sanders, Speck and Träff, 2009; NCCL's tree): ``2 log2 P alpha + 2 S / beta``;
- hierarchical (Cho et al., BlueConnect, 2019): reduce-scatter and all-gather of S inside the nodes, all-reduce of S / L
  across nodes by L processes at once, which share the links of the node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from shared.errors import InvalidInputError

Route: TypeAlias = Literal["flat", "ring", "hierarchical"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A network link: ``alpha_s`` seconds per message, ``bytes_s`` bytes per second in each direction."""

    alpha_s: float
    bytes_s: float

    def __post_init__(self) -> None:
        if self.alpha_s < 0 or self.bytes_s <= 0:
            raise InvalidInputError(f"a link needs a latency of at least 0 and a rate above 0, not {self}")

    def seconds(self, size: float) -> float:
        """The seconds of one message of ``size`` bytes."""
        return self.alpha_s + size / self.bytes_s


_GB = 1e9
LINKS: dict[str, Link] = {
    # Per GPU and direction. NVIDIA's data sheets: V100 300, A100 600, H100 900 GB/s, sums of both directions.
    "nvlink2": Link(alpha_s=3e-6, bytes_s=150 * _GB * 0.8),
    "nvlink3": Link(alpha_s=3e-6, bytes_s=300 * _GB * 0.8),
    "nvlink4": Link(alpha_s=3e-6, bytes_s=450 * _GB * 0.8),
    # x16, with PCI-SIG's rates of 31.5 and 63 GB/s.
    "pcie4": Link(alpha_s=5e-6, bytes_s=31.5 * _GB * 0.8),
    "pcie5": Link(alpha_s=5e-6, bytes_s=63 * _GB * 0.8),
    # Per port. InfiniBand EDR, HDR, NDR: 100, 200, 400 Gbit/s.
    "ib-edr": Link(alpha_s=5e-6, bytes_s=12.5 * _GB * 0.9),
    "ib-hdr": Link(alpha_s=5e-6, bytes_s=25 * _GB * 0.9),
    "ib-ndr": Link(alpha_s=5e-6, bytes_s=50 * _GB * 0.9),
    # TCP: tens of microseconds, and the rate that remains after headers and kernel overhead.
    "ethernet-100g": Link(alpha_s=30e-6, bytes_s=12.5 * _GB * 0.8),
    "ethernet-25g": Link(alpha_s=30e-6, bytes_s=3.125 * _GB * 0.9),
    "ethernet-10g": Link(alpha_s=30e-6, bytes_s=1.25 * _GB * 0.9),
    "ethernet-1g": Link(alpha_s=50e-6, bytes_s=0.125 * _GB * 0.94),
}
"""Links by name: published rates times the fraction that large messages reach. The factors are assumptions that were
not measured here; ``trivium plan --calibrate`` measures your network instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """``nodes`` nodes with ``per_node`` processes each.

    intra             link between processes of a node
    inter             link of one network port of a node
    ports             number of network ports of a node
    oversubscription  ratio of the rate of all node ports to the rate of the switches above them
    busy              fraction of the links that other traffic uses (contention)
    tree              whether the backend may use trees if they are faster (NCCL); gloo supports only a ring
    interleaved       whether ranks are assigned to nodes round-robin, so that every hop of a ring crosses a link
    gamma_s           seconds to add one byte to another
    """

    nodes: int
    per_node: int
    intra: Link
    inter: Link
    ports: int = 1
    oversubscription: float = 1.0
    busy: float = 0.0
    tree: bool = True
    interleaved: bool = False
    gamma_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("nodes", "per_node", "ports"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.oversubscription < 1 or not 0 <= self.busy < 1:
            raise InvalidInputError("oversubscription must be at least 1, and busy from 0 to below 1")

    @property
    def world(self) -> int:
        return self.nodes * self.per_node

    @property
    def node_link(self) -> Link:
        """The link of a node to the others, over all of its ports."""
        rate = self.inter.bytes_s * self.ports * (1 - self.busy) / self.oversubscription
        return replace(self.inter, bytes_s=rate)

    def slowest_hop(self, flows_per_link: int = 1) -> Link:
        """The slowest hop of a ring through all nodes; one process on a node uses no link inside it."""
        rate = self.node_link.bytes_s / flows_per_link
        return replace(self.inter, bytes_s=min(rate, self.intra.bytes_s) if self.per_node > 1 else rate)


def ring_half(size: float, processes: int, link: Link, gamma_s: float = 0.0) -> float:
    """Seconds of a ring reduce-scatter or all-gather of ``size`` bytes over equal links."""
    if processes == 1:
        return 0.0
    turns = processes - 1
    return turns * link.alpha_s + turns / processes * size * (1 / link.bytes_s + gamma_s)


def ring_all_reduce(size: float, processes: int, link: Link, gamma_s: float = 0.0) -> float:
    """Seconds of a ring all-reduce of ``size`` bytes over equal links."""
    return ring_half(size, processes, link, gamma_s) + ring_half(size, processes, link)


def tree_all_reduce(size: float, processes: int, link: Link, gamma_s: float = 0.0) -> float:
    """Seconds of an all-reduce of ``size`` bytes over a double binary tree: half of the tensor per tree, pipelined."""
    if processes == 1:
        return 0.0
    return 2 * math.ceil(math.log2(processes)) * link.alpha_s + size * (2 / link.bytes_s + gamma_s)


def flat_seconds(size: float, cluster: Cluster, *, tree: bool | None = None) -> float:
    """Seconds of the backend's all-reduce: a ring limited by its slowest hop, or a faster tree if ``tree`` allows it.

    ``tree`` defaults to ``cluster.tree``.
    """
    if cluster.nodes == 1:
        return ring_all_reduce(size, cluster.world, cluster.intra, cluster.gamma_s)
    flows_per_link = cluster.per_node if cluster.interleaved else 1
    slowest = cluster.slowest_hop(flows_per_link)
    ring = ring_all_reduce(size, cluster.world, slowest, cluster.gamma_s)
    if not (cluster.tree if tree is None else tree):
        return ring
    # NCCL's tree is a chain inside a node and a tree between nodes.
    chain = 2 * (cluster.per_node - 1) * cluster.intra.alpha_s
    return min(ring, chain + tree_all_reduce(size, cluster.nodes, slowest, cluster.gamma_s))


def hierarchical_seconds(size: float, cluster: Cluster, *, across: float = 1.0, pipelined: bool = False) -> float:
    """Seconds of a reduce-scatter inside the nodes, an all-reduce of shards across nodes, and an all-gather inside.

    ``across`` is the fraction of the bytes that compression leaves between nodes. ``pipelined``: the three phases
    overlap in segments, as in ``shared/comms/hierarchical.py``, so the slower of inside and across determines the time.
    """
    scatter = ring_half(size, cluster.per_node, cluster.intra, cluster.gamma_s)
    gather = ring_half(size, cluster.per_node, cluster.intra)
    share = replace(cluster.node_link, bytes_s=cluster.node_link.bytes_s / cluster.per_node)
    shard = size / cluster.per_node * across
    between = ring_all_reduce(shard, cluster.nodes, share, cluster.gamma_s)
    if cluster.tree:
        between = min(between, tree_all_reduce(shard, cluster.nodes, share, cluster.gamma_s))
    return max(between, scatter + gather) if pipelined else scatter + between + gather


def route_seconds(
    route: Route, size: float, cluster: Cluster, *, sent_fraction: float = 1.0, pipelined: bool = False
) -> float:
    """Seconds of an all-reduce of ``size`` bytes over a route; ``sent_fraction`` is the fraction left by compression.

    On the flat and ring routes compression applies to all transfers, on the hierarchical route only between nodes.
    """
    if route == "hierarchical":
        return hierarchical_seconds(size, cluster, across=sent_fraction, pipelined=pipelined)
    return flat_seconds(size * sent_fraction, cluster, tree=None if route == "flat" else False)


def node_bytes(route: Route, size: float, cluster: Cluster, *, sent_fraction: float = 1.0) -> float:
    """The bytes that a node sends to other nodes in an all-reduce of ``size`` bytes."""
    if cluster.nodes == 1:
        return 0.0
    if route == "hierarchical":
        return 2 * (cluster.nodes - 1) / cluster.nodes * size * sent_fraction
    flows_per_link = cluster.per_node if cluster.interleaved else 1
    return flows_per_link * 2 * (cluster.world - 1) / cluster.world * size * sent_fraction
