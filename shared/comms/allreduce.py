"""All-reduce by three routes, each blocking and in place: the backend's own, a ring, and node by node.

Bytes, for S bytes over P processes on N nodes with L = P / N each:

- ring (Patarasuk and Yuan, 2009): every process sends ``2 (P - 1) / P S`` to its neighbour, so a node's link carries
  that once where neighbours share a node, and L times where none do;
- hierarchical (as BlueConnect, Cho et al., 2019): reduce-scatter inside, all-reduce across by shards of ``S / L``,
  all-gather inside: a node's link carries ``L 2 (N - 1) / N S / L = 2 (N - 1) / N S``.
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
"""Where the chunks of a flat tensor begin and end: chunk ``i`` is ``tensor[bounds[i]:bounds[i + 1]]``."""


@dataclass(frozen=True, slots=True)
class Peers:
    """Some of the run's processes that exchange tensors: ``name`` in the log, torch's group, this one's place in it."""

    name: str
    group: Any
    rank: int
    size: int
    log: CollectiveLog

    def all_reduce(self, tensor: Tensor) -> None:
        """The sum over the peers, by the backend's own algorithm."""
        if self.size > 1 and tensor.numel():
            with self.log.running("all_reduce", self.name, tensor.nbytes, blocking=False):
                dist.all_reduce(tensor, group=self.group)


class Route(Protocol):
    """A way to sum a tensor over processes, in place."""

    def all_reduce(self, tensor: Tensor) -> None: ...


def equal_bounds(length: int, parts: int) -> list[int]:
    """Bounds of ``parts`` chunks whose lengths differ by at most one."""
    return [length * number // parts for number in range(parts + 1)]


def ring_reduce_scatter(tensor: Tensor, bounds: Bounds, peers: Peers) -> None:
    """Leaves the sum over the peers in this process's chunk, ``tensor[bounds[rank]:bounds[rank + 1]]``.

    ``tensor`` is flat; its other chunks hold partial sums afterwards. Each of ``size - 1`` turns sends one chunk to
    the next process of the ring and adds one from the previous.
    """
    with peers.log.running("reduce_scatter", peers.name, tensor.nbytes, blocking=False):
        _around(tensor, bounds, peers, peers.rank - 1, add=True)


def ring_all_gather(tensor: Tensor, bounds: Bounds, peers: Peers) -> None:
    """Gives every process all chunks, where each holds its own."""
    with peers.log.running("all_gather", peers.name, tensor.nbytes, blocking=False):
        _around(tensor, bounds, peers, peers.rank, add=False)


def _around(tensor: Tensor, bounds: Bounds, peers: Peers, first: int, *, add: bool) -> None:
    """Sends chunk ``first`` to the next of the ring, and so on: what comes from the previous one goes on next turn.

    All receives are posted first: a sender of gloo starts when it has heard of one, on a connection that data fills. A
    chunk goes in two halves, so that one is on its way while a process wakes up for the other; busy cores take
    milliseconds for that. Both sides know what is empty.
    """
    if peers.size == 1:
        return
    chunks = [(first - turn) % peers.size for turn in range(peers.size)]
    turns = [_halves(tensor[bounds[chunk] : bounds[chunk + 1]]) for chunk in chunks]
    if tensor.device.type == "cuda":
        return _in_order(turns, peers, add=add)
    before, after = (peers.rank - 1) % peers.size, (peers.rank + 1) % peers.size
    expected = []
    for halves in turns[1:]:
        arrived = [torch.empty_like(half) if add else half for half in halves]
        works = [dist.irecv(space, group=peers.group, group_src=before) for space in arrived]
        expected.append(list(zip(halves, arrived, works, strict=True)))
    sent = [dist.isend(half, group=peers.group, group_dst=after) for half in turns[0]]
    for turn, messages in enumerate(expected, 1):
        for half, arrived_half, work in messages:
            _wait(work)
            if add:
                half += arrived_half
            if turn + 1 < peers.size:
                sent.append(dist.isend(half, group=peers.group, group_dst=after))
    for work in sent:
        _wait(work)


def _in_order(turns: list[list[Tensor]], peers: Peers, *, add: bool) -> None:
    """The same turn by turn: NCCL's messages are in the order of a stream, and one that waits holds up the next."""
    before, after = (peers.rank - 1) % peers.size, (peers.rank + 1) % peers.size
    for turn in range(1, peers.size):
        arrived = [torch.empty_like(half) if add else half for half in turns[turn]]
        operations = [dist.P2POp(dist.irecv, space, group=peers.group, group_peer=before) for space in arrived]
        operations += [dist.P2POp(dist.isend, half, group=peers.group, group_peer=after) for half in turns[turn - 1]]
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        if add:
            for half, space in zip(turns[turn], arrived, strict=True):
                half += space


def _halves(chunk: Tensor) -> list[Tensor]:
    middle = (chunk.numel() + 1) // 2
    return [half for half in (chunk[:middle], chunk[middle:]) if half.numel()]


def _wait(work: Any) -> None:
    assert work is not None
    work.wait()


@dataclass(frozen=True, slots=True)
class Flat:
    """The backend's own all-reduce over all processes."""

    peers: Peers

    def all_reduce(self, tensor: Tensor) -> None:
        self.peers.all_reduce(tensor)


@dataclass(frozen=True, slots=True)
class Ring:
    """Reduce-scatter and all-gather in chunks around a ring of all processes, by point-to-point messages."""

    peers: Peers

    def all_reduce(self, tensor: Tensor) -> None:
        flat = tensor.view(-1)
        bounds = equal_bounds(flat.numel(), self.peers.size)
        ring_reduce_scatter(flat, bounds, self.peers)
        ring_all_gather(flat, bounds, self.peers)


def mesh_ranks(group: Group, shard: int | None = None) -> Tensor:
    """The ranks in a mesh (replicate, shard): a row for each node, or for each ``shard`` neighbouring processes.

    Refuses a mesh that the processes do not fill, naming the host that differs.
    """
    if shard is not None:
        if shard < 1 or group.world % shard:
            raise InvalidInputError(
                f"strategy.shard is {shard}, and {group.world} processes do not divide into groups of that size; "
                f"it can be {', '.join(str(n) for n in range(1, group.world + 1) if group.world % n == 0)}"
            )
        return torch.arange(group.world).view(-1, shard)
    sizes = {len(ranks) for ranks in group.nodes}
    if len(sizes) > 1:
        usual = len(group.nodes[0])
        odd = next(ranks for ranks in group.nodes if len(ranks) != usual)
        raise InvalidInputError(
            f"a hierarchical route needs as many processes on every host: {group.members[odd[0]].host} has {len(odd)} "
            f"and {group.members[0].host} has {usual}; start as many, or say --strategy.shard"
        )
    return torch.tensor(group.nodes)


def all_peers(group: Group) -> Peers:
    """All processes of the run, in a group of their own, so that its messages do not mix with the training's."""
    with connecting():
        joined = dist.new_group(group_desc="all")
    return Peers("all", joined, group.rank, group.world, group.log)


def mesh_peers(group: Group, shard: int | None = None) -> tuple[Peers, Peers, Peers]:
    """The processes inside this one's node, those across nodes, and those inside once more.

    From a device mesh (replicate, shard). On a GPU the last are the first: its operations are in order on a stream.
    """
    from torch.distributed.device_mesh import DeviceMesh

    ranks = mesh_ranks(group, shard)
    with connecting():
        mesh = DeviceMesh(group.device.type, ranks, mesh_dim_names=("replicate", "shard"))
        inside, across = mesh.get_group("shard"), mesh.get_group("replicate")
        own = next(row for row in ranks.tolist() if group.rank in row)
        twin = inside if group.device.type == "cuda" else dist.new_group(own, use_local_synchronization=True)
    near = Peers("inside", inside, dist.get_rank(inside), dist.get_world_size(inside), group.log)
    far = Peers("across", across, dist.get_rank(across), dist.get_world_size(across), group.log)
    back = near if twin is inside else Peers("inside", twin, near.rank, near.size, group.log)
    return near, far, back
