"""From hosts and the switches between them to an order of ranks whose rings stay inside switches. Pure; no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shared.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Tree:
    """A switch with what hangs below it; without children a host, or a GPU within one."""

    name: str
    children: tuple[Tree, ...] = ()

    def leaves(self) -> list[str]:
        """The names of the hosts, in the order in which they hang."""
        return [self.name] if not self.children else [name for child in self.children for name in child.leaves()]

    def switches(self) -> Iterator[Tree]:
        """This switch and all below it, from the top; hosts are none."""
        if self.children:
            yield self
            for child in self.children:
                yield from child.switches()

    @property
    def of_gpus(self) -> bool:
        """Whether it tells the GPUs of one host, and not the hosts of a cluster."""
        return all(re.fullmatch(r"gpu\d+", name) for name in self.leaves())

    def lines(self, indent: str = "") -> list[str]:
        """The tree for a terminal, one line a switch or host; hosts of a switch stand in one line."""
        if not self.children:
            return [indent + self.name]
        if all(not child.children for child in self.children):
            return [f"{indent}{self.name}: {' '.join(child.name for child in self.children)}"]
        return [indent + self.name] + [line for child in self.children for line in child.lines(indent + "  ")]


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts names by their numbers: node2 before node10."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part)


def hosts_in_order(hosts: Sequence[str], tree: Tree | None) -> list[str]:
    """The hosts so that those below one switch are neighbours, at every level of the tree.

    A ring through this order leaves each switch once, which is the least that a ring through all hosts can do. Below
    a switch, and without a tree, hosts come in the order of the numbers in their names.
    """
    if tree is None:
        return sorted(hosts, key=natural_key)
    known = tree.leaves()
    if missing := sorted(set(hosts) - set(known), key=natural_key):
        raise InvalidInputError(
            f"the topology does not have the host {', '.join(missing[:5])}; it has {', '.join(known[:5])}"
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
    """How often a ring leaves a switch: ``most`` for the worst switch of a level, ``total`` over the level."""

    level: int
    switches: int
    most: int
    total: int


def ring_crossings(order: Sequence[str], tree: Tree) -> list[Crossings]:
    """For each level below the root, how often the ring through ``order`` leaves the switches of that level.

    A ring all-reduce of S bytes over P processes sends ``2 (P - 1) / P S`` bytes over every hop, so the uplink of a
    switch carries that as often as the ring leaves it. Once is the least for a switch that holds some of the hosts.
    """
    found: list[Crossings] = []
    level, switches = 1, [child for child in tree.children if child.children]
    while switches:
        counts = [leaving(order, set(switch.leaves())) for switch in switches]
        found.append(Crossings(level, len(switches), max(counts), sum(counts)))
        level, switches = level + 1, [child for switch in switches for child in switch.children if child.children]
    return found


def leaving(order: Sequence[str], inside: set[str]) -> int:
    """How many hops of the ring through ``order`` go from a host inside to one outside."""
    return sum(a in inside and b not in inside for a, b in zip(order, [*order[1:], order[0]], strict=True))


def tree_from_latency(latency_us: Mapping[tuple[str, str], float], *, gap: float = 1.5) -> Tree:
    """The switches that measured latencies speak of: hosts that are near each other hang below one.

    ``latency_us`` has the time between each pair of hosts, in one direction or both (the smaller counts). Clusters by
    single linkage (Kruskal's algorithm); where the next merge takes more than ``gap`` times as long as the one
    before, a new level begins, so that noise within a level makes none.
    """
    hosts = sorted({host for pair in latency_us for host in pair}, key=natural_key)
    if len(hosts) < 2:
        raise InvalidInputError("a topology from latencies needs at least two hosts")
    nearest: dict[tuple[str, str], float] = {}
    for (one, other), value in latency_us.items():
        if one == other:
            continue
        if not value > 0:
            raise InvalidInputError(f"the latency from {one} to {other} is {value} µs; it must be above 0")
        pair = (min(one, other), max(one, other))
        nearest[pair] = min(value, nearest.get(pair, value))
    clusters: dict[str, tuple[Tree, float]] = {host: (Tree(host), 0.0) for host in hosts}
    for (one, other), value in sorted(nearest.items(), key=lambda item: item[1]):
        (left, left_us), (right, right_us) = clusters[one], clusters[other]
        if left is right:
            continue
        parts = _opened(left, left_us, value, gap) + _opened(right, right_us, value, gap)
        height = max([us for _, us in ((left, left_us), (right, right_us)) if us and value <= us * gap] or [value])
        merged = Tree(f"within {height:.3g} µs", tuple(parts))
        for host in merged.leaves():
            clusters[host] = (merged, height)
    tree = clusters[hosts[0]][0]
    if apart := sorted(set(hosts) - set(tree.leaves()), key=natural_key):
        raise InvalidInputError(f"no latency was measured between {hosts[0]} and {apart[0]}")
    return tree


def _opened(tree: Tree, height_us: float, value_us: float, gap: float) -> list[Tree]:
    """The cluster as it is, or its parts where the new merge is of the same level."""
    return list(tree.children) if tree.children and value_us <= height_us * gap else [tree]
