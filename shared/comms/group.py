"""The processes of a run: rank, number of processes, and collective operations between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shared.comms.collective_log import CollectiveLog
from shared.comms.watch import Member, Timeouts
from shared.errors import InvalidInputError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """This process among all processes of the run: ``rank`` of ``world``, computing on ``device``.

    ``members`` lists the processes in rank order, with those of a host next to each other; empty for a single process.
    """

    rank: int
    world: int
    device: torch.device
    members: tuple[Member, ...] = ()
    log: CollectiveLog = field(default_factory=CollectiveLog, compare=False, repr=False)
    timeouts: Timeouts = field(default_factory=Timeouts, compare=False, repr=False)

    @property
    def leader(self) -> bool:
        """Whether this is the process that writes files and console output."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """The name of the device: the GPU's name, or ``cpu``."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @property
    def nodes(self) -> tuple[tuple[int, ...], ...]:
        """The ranks on each host; hosts are ordered by their first rank."""
        by_host: dict[str, list[int]] = {}
        for rank, member in enumerate(self.members):
            by_host.setdefault(member.host, []).append(rank)
        return tuple(map(tuple, by_host.values())) or (tuple(range(self.world)),)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in rank order, on every process."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        with self.log.running("all_gather_object"):
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Copies the leader's values into the tensors on every process, in place."""
        if self.world > 1:
            for tensor in tensors:
                with self.log.running("broadcast", bytes=tensor.nbytes):
                    dist.broadcast(tensor, 0)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any process; the same result on every process."""
        if self.world == 1:
            return flag
        return bool(self.max(float(flag))[0])

    def max(self, *values: float) -> list[float]:
        """The maximum over processes of each of the values."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with self.log.running("all_reduce", bytes=tensor.nbytes):
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def sum(self, value: Tensor) -> Tensor:
        """The sum of the tensors over all processes, on every process."""
        if self.world > 1:
            value = value.clone()
            with self.log.running("all_reduce", bytes=value.nbytes):
                dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean of the tensors over all processes, on every process."""
        return self.sum(value) / self.world

    def barrier(self) -> None:
        """Waits until every process has called it."""
        if self.world > 1:
            with self.log.running("barrier"):
                dist.barrier()

    def refuse_differences(self, facts: Mapping[str, Hashable]) -> None:
        """Raises ``InvalidInputError`` on every process if ``facts`` differ between the processes.

        The message names the processes that differ from the majority (of two processes, from the first) and their
        values. Facts are compared by position, so every process must pass the same names in the same order.
        """
        if self.world == 1:
            return
        facts_by_rank = self.gather(tuple(facts.items()))
        found: list[str] = []
        outliers: dict[int, None] = {}
        for position, values in enumerate(zip(*facts_by_rank, strict=False)):
            majority = _most_frequent([value for _, value in values])
            for rank, (name, value) in enumerate(values):
                if value != majority:
                    outliers[rank] = None
                    found.append(f"{name} is {value} there and {majority} elsewhere" if position < 1000 else name)
        for rank, pairs in enumerate(facts_by_rank):
            if len(pairs) != _most_frequent([len(rank_facts) for rank_facts in facts_by_rank]):
                outliers[rank] = None
                found.append(f"it has {len(pairs)} facts and the first process {len(facts_by_rank[0])}")
        if outliers:
            who = ", ".join(f"rank {rank} ({self.members[rank].description})" for rank in list(outliers)[:3])
            more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
            raise InvalidInputError(f"the processes disagree: {who} differs: {'; '.join(found[:3])}{more}")


def _most_frequent(values: Sequence[Hashable]) -> Hashable:
    """The most frequent value; the first one if several are equally frequent."""
    return Counter(values).most_common(1)[0][0]
