"""All-reduce by three routes, each blocking and in place: the backend's algorithm, a ring, and hierarchical.

Bytes for a tensor of S bytes over P processes on N nodes with L = P / N processes each:

- ring (Patarasuk and Yuan, 2009): every process sends ``2 (P - 1) / P S`` to its neighbour, so a node's link carries
  this once if neighbours share a node, and L times if no neighbours do;
- hierarchical (as BlueConnect, Cho et al., 2019): reduce-scatter inside the node, all-reduce of shards of ``S / L``
  across nodes, all-gather inside: a node's link carries ``L 2 (N - 1) / N S / L = 2 (N - 1) / N S``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from shared.comms.abort import connecting
from shared.comms.collective_log import CollectiveLog
from shared.comms.group import Group
from shared.errors import InvalidInputError

Bounds = Sequence[int]
"""The boundaries of the chunks of a flat tensor: chunk ``i`` is ``tensor[bounds[i]:bounds[i + 1]]``."""


@dataclass(frozen=True, slots=True)
class Peers:
    """A subset of the run's processes that exchange tensors.

    ``name`` is its name in the log, ``group`` torch's process group, ``rank`` the rank of this process in it.
    """

    name: str
    group: Any
    rank: int
    size: int
    log: CollectiveLog

    def all_reduce(self, tensor: Tensor) -> None:
        """Sums ``tensor`` over the peers in place, with the backend's algorithm."""
        if self.size > 1 and tensor.numel():
            with self.log.running("all_reduce", self.name, tensor.nbytes, blocking=False):
                dist.all_reduce(tensor, group=self.group)


class Route(Protocol):
    """An algorithm that sums a tensor over processes, in place."""

    def all_reduce(self, tensor: Tensor) -> None: ...


def equal_bounds(length: int, parts: int) -> list[int]:
    """The bounds of ``parts`` chunks whose lengths differ by at most one."""
    return [length * number // parts for number in range(parts + 1)]


def ring_reduce_scatter(tensor: Tensor, bounds: Bounds, peers: Peers) -> None:
    """Leaves the sum over the peers in this process's chunk, ``tensor[bounds[rank]:bounds[rank + 1]]``.

    ``tensor`` is flat; its other chunks contain partial sums afterwards. Each of ``size - 1`` turns sends one chunk to
    the next process of the ring and adds the chunk from the previous one.
    """
    with peers.log.running("reduce_scatter", peers.name, tensor.nbytes, blocking=False):
        _pass_around_ring(tensor, bounds, peers, peers.rank - 1, add=True)


def ring_all_gather(tensor: Tensor, bounds: Bounds, peers: Peers) -> None:
    """Copies each process's chunk to all processes, in place."""
    with peers.log.running("all_gather", peers.name, tensor.nbytes, blocking=False):
        _pass_around_ring(tensor, bounds, peers, peers.rank, add=False)


def _pass_around_ring(tensor: Tensor, bounds: Bounds, peers: Peers, first: int, *, add: bool) -> None:
    """Sends chunk ``first`` to the next process of the ring; each following turn forwards the chunk just received.

    All receives are posted first, because a gloo sender starts only when it knows of the receive, and that message
    would queue behind the data on the same connection. A chunk is sent in two halves, so that one is in transit while a
    process wakes up for the other; on busy cores a wake-up takes milliseconds. Empty halves are neither sent nor
    received; both sides know the sizes.
    """
    if peers.size == 1:
        return
    chunks = [(first - turn) % peers.size for turn in range(peers.size)]
    turns = [_halves(tensor[bounds[chunk] : bounds[chunk + 1]]) for chunk in chunks]
    if tensor.device.type == "cuda":
        return _pass_turn_by_turn(turns, peers, add=add)
    previous_rank, next_rank = (peers.rank - 1) % peers.size, (peers.rank + 1) % peers.size
    expected = []
    for halves in turns[1:]:
        buffers = [torch.empty_like(half) if add else half for half in halves]
        works = [dist.irecv(buffer, group=peers.group, group_src=previous_rank) for buffer in buffers]
        expected.append(list(zip(halves, buffers, works, strict=True)))
    sent = [dist.isend(half, group=peers.group, group_dst=next_rank) for half in turns[0]]
    for turn, messages in enumerate(expected, 1):
        for half, buffer, work in messages:
            _wait(work)
            if add:
                half += buffer
            if turn + 1 < peers.size:
                sent.append(dist.isend(half, group=peers.group, group_dst=next_rank))
    for work in sent:
        _wait(work)


def _pass_turn_by_turn(turns: list[list[Tensor]], peers: Peers, *, add: bool) -> None:
    """Like ``_pass_around_ring``, one turn at a time: NCCL runs messages in stream order, so a waiting one blocks the
    next."""
    previous_rank, next_rank = (peers.rank - 1) % peers.size, (peers.rank + 1) % peers.size
    for turn in range(1, peers.size):
        buffers = [torch.empty_like(half) if add else half for half in turns[turn]]
        operations = [dist.P2POp(dist.irecv, buffer, group=peers.group, group_peer=previous_rank) for buffer in buffers]
        operations += [
            dist.P2POp(dist.isend, half, group=peers.group, group_peer=next_rank) for half in turns[turn - 1]
        ]
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        if add:
            for half, buffer in zip(turns[turn], buffers, strict=True):
                half += buffer


def _halves(chunk: Tensor) -> list[Tensor]:
    middle = (chunk.numel() + 1) // 2
    return [half for half in (chunk[:middle], chunk[middle:]) if half.numel()]


def _wait(work: Any) -> None:
    assert work is not None
    work.wait()


@dataclass(frozen=True, slots=True)
class Flat:
    """The backend's all-reduce over all processes."""

    peers: Peers

    def all_reduce(self, tensor: Tensor) -> None:
        self.peers.all_reduce(tensor)


@dataclass(frozen=True, slots=True)
class Ring:
    """Reduce-scatter and all-gather in chunks around a ring of all processes, with point-to-point messages."""

    peers: Peers

    def all_reduce(self, tensor: Tensor) -> None:
        flat = tensor.view(-1)
        bounds = equal_bounds(flat.numel(), self.peers.size)
        ring_reduce_scatter(flat, bounds, self.peers)
        ring_all_gather(flat, bounds, self.peers)


def mesh_ranks(group: Group, shard: int | None = None) -> Tensor:
    """The ranks as a mesh (replicate, shard): one row per node, or per ``shard`` adjacent processes.

    Raises ``InvalidInputError`` if the processes do not fill the mesh, naming a host with a different number.
    """
    if shard is not None:
        if shard < 1 or group.world % shard:
            raise InvalidInputError(
                f"strategy.shard is {shard}, but {group.world} processes do not divide into groups of that size; "
                f"possible sizes are {', '.join(str(n) for n in range(1, group.world + 1) if group.world % n == 0)}"
            )
        return torch.arange(group.world).view(-1, shard)
    sizes = {len(ranks) for ranks in group.nodes}
    if len(sizes) > 1:
        expected = len(group.nodes[0])
        differing = next(ranks for ranks in group.nodes if len(ranks) != expected)
        raise InvalidInputError(
            "the hierarchical route needs the same number of processes on every host, but "
            f"{group.members[differing[0]].host} has {len(differing)} and {group.members[0].host} has {expected}; "
            "start the same number, or set --strategy.shard"
        )
    return torch.tensor(group.nodes)


def all_peers(group: Group) -> Peers:
    """All processes of the run as a separate process group, so that its messages do not mix with others."""
    with connecting():
        process_group = dist.new_group(group_desc="all")
    return Peers("all", process_group, group.rank, group.world, group.log)


def mesh_peers(group: Group, shard: int | None = None) -> tuple[Peers, Peers, Peers]:
    """The peers inside this process's node, the peers across nodes, and a second group of the peers inside the node.

    They are the rows and columns of a device mesh (replicate, shard). On a GPU the second group is the first one,
    because operations run in stream order there.
    """
    from torch.distributed.device_mesh import DeviceMesh

    ranks = mesh_ranks(group, shard)
    with connecting():
        mesh = DeviceMesh(group.device.type, ranks, mesh_dim_names=("replicate", "shard"))
        inside, across = mesh.get_group("shard"), mesh.get_group("replicate")
        node_ranks = next(row for row in ranks.tolist() if group.rank in row)
        second = inside if group.device.type == "cuda" else dist.new_group(node_ranks, use_local_synchronization=True)
    inside_peers = Peers("inside", inside, dist.get_rank(inside), dist.get_world_size(inside), group.log)
    across_peers = Peers("across", across, dist.get_rank(across), dist.get_world_size(across), group.log)
    back = (
        inside_peers if second is inside else Peers("inside", second, inside_peers.rank, inside_peers.size, group.log)
    )
    return inside_peers, across_peers, back
