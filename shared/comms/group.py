"""The processes of a run: who am I among how many, and what we tell each other."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shared.errors import InvalidInputError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """This process's place in the run: ``rank`` of ``world`` processes, computing on ``device``."""

    rank: int
    world: int
    device: torch.device

    @property
    def leader(self) -> bool:
        """Whether this is the one process that writes files and speaks to the terminal."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """What the device is called: the GPU's name, or ``cpu``."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks, on every process."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Gives the tensors the leader's values on every process."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, flag: bool) -> bool:
        """True on every process as soon as it is true on one."""
        if self.world == 1:
            return flag
        tensor = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return bool(tensor.item())

    def largest(self, *values: float) -> list[float]:
        """The largest of the processes' values, for each of several."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def total(self, value: Tensor) -> Tensor:
        """The sum of the processes' tensors, on every process."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean of the processes' tensors, on every process."""
        return self.total(value) / self.world

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


@contextmanager
def join(device: str | None = None) -> Iterator[Group]:
    """Joins the group that ``torchrun`` describes in the environment; alone without it.

    ``device`` is ``cpu`` or ``cuda``; by default the GPU of this process's local rank where there is one.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("there is no GPU that torch can use here; leave --device out, or say --device cpu")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    if world == 1:
        yield Group(0, 1, place)
        return
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(minutes=10))
    try:
        yield Group(dist.get_rank(), world, place)
        # All leave together: one that ended while the leader still wrote was now and then aborted by torch's teardown.
        dist.barrier()
    finally:
        # A wrapped model keeps the group's threads; if they outlive the interpreter, they abort the process.
        gc.collect()
        dist.destroy_process_group()
