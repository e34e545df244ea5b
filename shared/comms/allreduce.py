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
from itertools import pairwise
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
        space = tensor.new_empty(max(b - a for a, b in pairwise(bounds)))
        for turn in range(peers.size - 1):
            sent, received = (peers.rank - turn - 1) % peers.size, (peers.rank - turn - 2) % peers.size
            chunk = tensor[bounds[received] : bounds[received + 1]]
            arrived = space[: chunk.numel()]
            _exchange(tensor[bounds[sent] : bounds[sent + 1]], arrived, peers)
            chunk += arrived


def ring_all_gather(tensor: Tensor, bounds: Bounds, peers: Peers) -> None:
    """Gives every process all chunks, where each holds its own."""
    with peers.log.running("all_gather", peers.name, tensor.nbytes, blocking=False):
        for turn in range(peers.size - 1):
            sent, received = (peers.rank - turn) % peers.size, (peers.rank - turn - 1) % peers.size
            _exchange(tensor[bounds[sent] : bounds[sent + 1]], tensor[bounds[received] : bounds[received + 1]], peers)


def _exchange(sent: Tensor, received: Tensor, peers: Peers) -> None:
    """Sends to the next of the ring and receives from the previous. Both sides know what is empty.

    The receive is posted first: gloo tells the sender of it on the connection that the data then fills.
    """
    operations = []
    if received.numel():
        operations.append(dist.P2POp(dist.irecv, received, group=peers.group, group_peer=(peers.rank - 1) % peers.size))
    if sent.numel():
        operations.append(dist.P2POp(dist.isend, sent, group=peers.group, group_peer=(peers.rank + 1) % peers.size))
    if operations:
        for work in dist.batch_isend_irecv(operations):
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
        joined = dist.new_group()
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
