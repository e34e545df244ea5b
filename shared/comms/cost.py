"""What a collective costs: the alpha-beta model, with links that several processes share. Pure; no torch.

A message of n bytes takes ``alpha + n / beta`` (Hockney, 1994). S are the bytes of the whole tensor, P the processes,
N the nodes, L = P / N. Adding what arrived costs ``gamma`` seconds a byte.

- ring all-reduce: ``2 (P - 1) alpha + 2 (P - 1) / P S / beta + (P - 1) / P S gamma`` (Patarasuk and Yuan, 2009);
  reduce-scatter and all-gather are its halves;
- double binary tree (Sanders, Speck and Träff, 2009; NCCL's tree): ``2 log2 P alpha + 2 S / beta``;
- hierarchical (Cho et al., BlueConnect, 2019): reduce-scatter and all-gather of S inside, all-reduce of S / L across,
  by L processes at once that share the node's links.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from shared.errors import InvalidInputError

Route: TypeAlias = Literal["flat", "ring", "hierarchical"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """``alpha_s`` seconds a message, ``bytes_s`` bytes a second in each direction."""

    alpha_s: float
    bytes_s: float

    def __post_init__(self) -> None:
        if self.alpha_s < 0 or self.bytes_s <= 0:
            raise InvalidInputError(f"a link has a latency of at least 0 and a rate above 0, not {self}")

    def seconds(self, size: float) -> float:
        """One message of ``size`` bytes."""
        return self.alpha_s + size / self.bytes_s


_GB = 1e9
LINKS: dict[str, Link] = {
    # Per GPU and direction. NVIDIA's data sheets: A100 600 GB/s and H100 900 GB/s in both directions together.
    "nvlink3": Link(alpha_s=3e-6, bytes_s=300 * _GB * 0.8),
    "nvlink4": Link(alpha_s=3e-6, bytes_s=450 * _GB * 0.8),
    # x16, PCI-SIG's rates of 31.5 and 63 GB/s.
    "pcie4": Link(alpha_s=5e-6, bytes_s=31.5 * _GB * 0.8),
    "pcie5": Link(alpha_s=5e-6, bytes_s=63 * _GB * 0.8),
    # Per port. InfiniBand EDR, HDR, NDR: 100, 200, 400 Gbit/s.
    "ib-edr": Link(alpha_s=5e-6, bytes_s=12.5 * _GB * 0.9),
    "ib-hdr": Link(alpha_s=5e-6, bytes_s=25 * _GB * 0.9),
    "ib-ndr": Link(alpha_s=5e-6, bytes_s=50 * _GB * 0.9),
    # TCP: tens of microseconds, and what is left of the rate after headers and the kernel.
    "ethernet-100g": Link(alpha_s=30e-6, bytes_s=12.5 * _GB * 0.8),
    "ethernet-25g": Link(alpha_s=30e-6, bytes_s=3.125 * _GB * 0.9),
    "ethernet-10g": Link(alpha_s=30e-6, bytes_s=1.25 * _GB * 0.9),
    "ethernet-1g": Link(alpha_s=50e-6, bytes_s=0.125 * _GB * 0.94),
}
"""Links by name: published rates times what large messages reach of them; the factors are assumptions, not measured
here. ``trivium plan --calibrate`` replaces them by what a network of yours does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """``nodes`` with ``per_node`` processes each.

    ports             network ports of a node, each an ``inter`` link
    oversubscription  how many times what the ports of the nodes can send exceeds what the switches above carry
    busy              the fraction of the links that others' traffic takes (contention)
    tree              whether the backend may choose trees where they are faster (NCCL); gloo has its ring alone
    interleaved       whether ranks go to nodes in turns, so that every hop of a ring crosses a link
    gamma_s           seconds to add a byte to another
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
        """What a node can send to others, over all of its ports."""
        rate = self.inter.bytes_s * self.ports * (1 - self.busy) / self.oversubscription
        return replace(self.inter, bytes_s=rate)


def ring_half(size: float, processes: int, link: Link, gamma_s: float = 0.0) -> float:
    """Seconds of a reduce-scatter or all-gather of ``size`` bytes around a ring on one kind of link."""
    if processes == 1:
        return 0.0
    turns = processes - 1
    return turns * link.alpha_s + turns / processes * size * (1 / link.bytes_s + gamma_s)


def ring_all_reduce(size: float, processes: int, link: Link, gamma_s: float = 0.0) -> float:
    """Seconds of an all-reduce around a ring on one kind of link."""
    return ring_half(size, processes, link, gamma_s) + ring_half(size, processes, link)


def tree_all_reduce(size: float, processes: int, link: Link, gamma_s: float = 0.0) -> float:
    """Seconds of a double binary tree: half of the tensor down each of two trees, pipelined."""
    if processes == 1:
        return 0.0
    return 2 * math.ceil(math.log2(processes)) * link.alpha_s + size * (2 / link.bytes_s + gamma_s)


def flat_seconds(size: float, cluster: Cluster, *, tree: bool | None = None) -> float:
    """The backend's own all-reduce: a ring whose slowest hop is between nodes, or a tree where that may be."""
    if cluster.nodes == 1:
        return ring_all_reduce(size, cluster.world, cluster.intra, cluster.gamma_s)
    crossing = cluster.per_node if cluster.interleaved else 1
    between = replace(cluster.node_link, bytes_s=cluster.node_link.bytes_s / crossing)
    slowest = replace(between, bytes_s=min(between.bytes_s, cluster.intra.bytes_s))
    ring = ring_all_reduce(size, cluster.world, slowest, cluster.gamma_s)
    if not (cluster.tree if tree is None else tree):
        return ring
    # NCCL's tree is a chain inside a node and a tree between nodes.
    chain = 2 * (cluster.per_node - 1) * cluster.intra.alpha_s
    return min(ring, chain + tree_all_reduce(size, cluster.nodes, slowest, cluster.gamma_s))


def hierarchical_seconds(size: float, cluster: Cluster, *, across: float = 1.0, pipelined: bool = False) -> float:
    """Reduce-scatter inside, all-reduce across by shard, all-gather inside.

    ``across`` is what a compression leaves of the bytes between nodes. ``pipelined``: segments overlap the three, as
    ``shared/comms/hierarchical.py`` has it, so that the slowest counts.
    """
    inside = ring_half(size, cluster.per_node, cluster.intra, cluster.gamma_s)
    back = ring_half(size, cluster.per_node, cluster.intra)
    share = replace(cluster.node_link, bytes_s=cluster.node_link.bytes_s / cluster.per_node)
    shard = size / cluster.per_node * across
    between = ring_all_reduce(shard, cluster.nodes, share, cluster.gamma_s)
    if cluster.tree:
        between = min(between, tree_all_reduce(shard, cluster.nodes, share, cluster.gamma_s))
    return max(between, inside + back) if pipelined else inside + between + back


def route_seconds(route: Route, size: float, cluster: Cluster, *, kept: float = 1.0, pipelined: bool = False) -> float:
    """Seconds of an all-reduce of ``size`` bytes by a route; ``kept`` is what a compression leaves of them.

    A compression in a flat route and in a ring goes all the way, in a hierarchical one between nodes alone.
    """
    if route == "hierarchical":
        return hierarchical_seconds(size, cluster, across=kept, pipelined=pipelined)
    return flat_seconds(size * kept, cluster, tree=None if route == "flat" else False)


def node_bytes(route: Route, size: float, cluster: Cluster, *, kept: float = 1.0) -> float:
    """Bytes that a node sends to others in an all-reduce of ``size`` bytes."""
    if cluster.nodes == 1:
        return 0.0
    if route == "hierarchical":
        return 2 * (cluster.nodes - 1) / cluster.nodes * size * kept
    crossing = cluster.per_node if cluster.interleaved else 1
    return crossing * 2 * (cluster.world - 1) / cluster.world * size * kept
