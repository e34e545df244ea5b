"""Orders ranks by the switches between their hosts, so that rings cross few switches. Pure functions; no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shared.errors import InvalidInputError

_LEVEL_GAP = 1.5


@dataclass(frozen=True, slots=True)
class Tree:
    """A switch with the switches and hosts below it; without children, a host or a GPU of a host."""

    name: str
    children: tuple[Tree, ...] = ()

    def leaves(self) -> list[str]:
        """The names of the hosts below, in tree order."""
        return [self.name] if not self.children else [name for child in self.children for name in child.leaves()]

    def switches(self) -> Iterator[Tree]:
        """This switch and all switches below it, top down, without hosts."""
        if self.children:
            yield self
            for child in self.children:
                yield from child.switches()

    @property
    def of_gpus(self) -> bool:
        """Whether the leaves are the GPUs of one host, not the hosts of a cluster."""
        return all(re.fullmatch(r"gpu\d+", name) for name in self.leaves())

    def lines(self, indent: str = "") -> list[str]:
        """The tree as text with one line per switch; the hosts of a switch are on its line."""
        if not self.children:
            return [indent + self.name]
        if all(not child.children for child in self.children):
            return [f"{indent}{self.name}: {' '.join(child.name for child in self.children)}"]
        return [indent + self.name] + [line for child in self.children for line in child.lines(indent + "  ")]


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that compares the numbers in names numerically: node2 before node10."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part)


def hosts_in_order(hosts: Sequence[str], tree: Tree | None) -> list[str]:
    """The hosts in an order in which the hosts below each switch are adjacent, at every level of the tree.

    A ring in this order leaves each switch once, which is the minimum for a ring through all hosts. Below a switch, and
    without a tree, hosts are sorted by the numbers in their names. Raises ``InvalidInputError`` for a host that is not
    in the tree.
    """
    if tree is None:
        return sorted(hosts, key=natural_key)
    known = tree.leaves()
    if missing := sorted(set(hosts) - set(known), key=natural_key):
        raise InvalidInputError(
            f"the topology does not contain the host {', '.join(missing[:5])}; it contains {', '.join(known[:5])}"
            f"{', ...' if len(known) > 5 else ''}"
        )
    wanted = set(hosts)
    return [name for name in _sorted_leaves(tree) if name in wanted]


def _sorted_leaves(tree: Tree) -> list[str]:
    if not tree.children:
        return [tree.name]
    below = [_sorted_leaves(child) for child in tree.children]
    return [name for leaves in sorted(below, key=lambda leaves: natural_key(leaves[0])) for name in leaves]


@dataclass(frozen=True, slots=True)
class Crossings:
    """How often a ring leaves the switches of a level: ``most`` is the maximum over switches, ``total`` the sum."""

    level: int
    switches: int
    most: int
    total: int


def ring_crossings(order: Sequence[str], tree: Tree) -> list[Crossings]:
    """For each level below the root, how often the ring in ``order`` leaves the switches of that level.

    A ring all-reduce of S bytes over P processes sends ``2 (P - 1) / P S`` bytes over every hop, so the uplink of a
    switch carries this amount each time the ring leaves it. For a switch with some but not
    all of the hosts the minimum is one.
    """
    crossings: list[Crossings] = []
    level, switches = 1, [child for child in tree.children if child.children]
    while switches:
        counts = [count_exits(order, set(switch.leaves())) for switch in switches]
        crossings.append(Crossings(level, len(switches), max(counts), sum(counts)))
        level, switches = level + 1, [child for switch in switches for child in switch.children if child.children]
    return crossings


def count_exits(order: Sequence[str], inside: set[str]) -> int:
    """The number of hops of the ring in ``order`` that go from a host in ``inside`` to another host."""
    return sum(a in inside and b not in inside for a, b in zip(order, [*order[1:], order[0]], strict=True))


def tree_from_latency(latency_us: Mapping[tuple[str, str], float]) -> Tree:
    """Infers switches from measured latencies: hosts with a low latency between them are below the same switch.

    ``latency_us`` has the time between each pair of hosts in one or both directions (the smaller counts). The hosts are
    clustered by single linkage (Kruskal's algorithm). A merge at more than 1.5 times the latency of the previous one
    starts a new level, so that noise within a level does not. Raises ``InvalidInputError`` if a latency is not
    positive, or if no chain of measurements connects two hosts.
    """
    hosts = sorted({host for pair in latency_us for host in pair}, key=natural_key)
    if len(hosts) < 2:
        raise InvalidInputError("a topology from latencies needs at least two hosts")
    min_latency_us: dict[tuple[str, str], float] = {}
    for (source, target), value in latency_us.items():
        if source == target:
            continue
        if not value > 0:
            raise InvalidInputError(f"the latency from {source} to {target} is {value} µs; it must be above 0")
        pair = (min(source, target), max(source, target))
        min_latency_us[pair] = min(value, min_latency_us.get(pair, value))
    clusters: dict[str, tuple[Tree, float]] = {host: (Tree(host), 0.0) for host in hosts}
    for (source, target), value in sorted(min_latency_us.items(), key=lambda item: item[1]):
        (left, left_us), (right, right_us) = clusters[source], clusters[target]
        if left is right:
            continue
        parts = _parts_to_merge(left, left_us, value) + _parts_to_merge(right, right_us, value)
        height = max(
            [us for _, us in ((left, left_us), (right, right_us)) if us and value <= us * _LEVEL_GAP] or [value]
        )
        merged = Tree(f"within {height:.3g} µs", tuple(parts))
        for host in merged.leaves():
            clusters[host] = (merged, height)
    tree = clusters[hosts[0]][0]
    if unconnected := sorted(set(hosts) - set(tree.leaves()), key=natural_key):
        raise InvalidInputError(f"no latency was measured between {hosts[0]} and {unconnected[0]}")
    return tree


def _parts_to_merge(tree: Tree, height_us: float, value_us: float) -> list[Tree]:
    """The children of the cluster if the new merge is on the same level as its own, else the cluster itself."""
    return list(tree.children) if tree.children and value_us <= height_us * _LEVEL_GAP else [tree]
