"""The processes of a run: who am I among how many, and what we tell each other."""

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
    """This process's place in the run: ``rank`` of ``world`` processes, computing on ``device``.

    ``members`` are the processes in the order of their ranks, where there are several; those of a host are neighbours.
    """

    rank: int
    world: int
    device: torch.device
    members: tuple[Member, ...] = ()
    log: CollectiveLog = field(default_factory=CollectiveLog, compare=False, repr=False)
    timeouts: Timeouts = field(default_factory=Timeouts, compare=False, repr=False)

    @property
    def leader(self) -> bool:
        """Whether this is the one process that writes files and speaks to the terminal."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """What the device is called: the GPU's name, or ``cpu``."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @property
    def nodes(self) -> tuple[tuple[int, ...], ...]:
        """The ranks on each host, in the order of the hosts' first ranks."""
        by_host: dict[str, list[int]] = {}
        for rank, member in enumerate(self.members):
            by_host.setdefault(member.host, []).append(rank)
        return tuple(map(tuple, by_host.values())) or (tuple(range(self.world)),)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks, on every process."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        with self.log.running("all_gather_object"):
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Gives the tensors the leader's values on every process."""
        if self.world > 1:
            for tensor in tensors:
                with self.log.running("broadcast", bytes=tensor.nbytes):
                    dist.broadcast(tensor, 0)

    def agree(self, flag: bool) -> bool:
        """True on every process as soon as it is true on one."""
        if self.world == 1:
            return flag
        return bool(self.largest(float(flag))[0])

    def largest(self, *values: float) -> list[float]:
        """The largest of the processes' values, for each of several."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with self.log.running("all_reduce", bytes=tensor.nbytes):
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def total(self, value: Tensor) -> Tensor:
        """The sum of the processes' tensors, on every process."""
        if self.world > 1:
            value = value.clone()
            with self.log.running("all_reduce", bytes=value.nbytes):
                dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean of the processes' tensors, on every process."""
        return self.total(value) / self.world

    def barrier(self) -> None:
        if self.world > 1:
            with self.log.running("barrier"):
                dist.barrier()

    def refuse_differences(self, facts: Mapping[str, Hashable]) -> None:
        """Refuses to go on, on every process alike, where the processes hold different ``facts``.

        The message names the processes that differ from most others (of two, from the first), and what they hold.
        Facts are compared one by one, so every process must give the same names in the same order.
        """
        if self.world == 1:
            return
        told = self.gather(tuple(facts.items()))
        found: list[str] = []
        odd: dict[int, None] = {}
        for position, values in enumerate(zip(*told, strict=False)):
            usual = _most_frequent([value for _, value in values])
            for rank, (name, value) in enumerate(values):
                if value != usual:
                    odd[rank] = None
                    found.append(f"{name} is {value} there and {usual} elsewhere" if position < 1000 else name)
        for rank, pairs in enumerate(told):
            if len(pairs) != _most_frequent([len(one) for one in told]):
                odd[rank] = None
                found.append(f"it holds {len(pairs)} facts and others {len(told[0])}")
        if odd:
            who = ", ".join(f"rank {rank} ({self.members[rank].words})" for rank in list(odd)[:3])
            more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
            raise InvalidInputError(f"the processes disagree: {who} differs: {'; '.join(found[:3])}{more}")


def _most_frequent(values: Sequence[Hashable]) -> Hashable:
    """The value that most hold; of equally frequent ones the first."""
    return Counter(values).most_common(1)[0][0]
