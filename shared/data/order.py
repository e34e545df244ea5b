"""The order of the samples: a pure function of (seed, epoch, position).

The whole state of the data order is one integer, the number of completed steps. The global batch of a step does not
depend on the number of processes, so a run can resume on any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """The key of all randomness in the data: the seed of the run and the epoch."""

    seed: int
    epoch: int

    def generator(self, index: int) -> np.random.Generator:
        """The random generator of one sample in this epoch, the same on every process and after a resume."""
        entropy = (self.seed, self.epoch, int(index), 0x5EED)
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


@runtime_checkable
class Order(Protocol):
    """The samples in the global batch of each step, the same on every process and independent of earlier calls.

    A data config can supply an order other than ``Permutation`` (weighted sampling, buckets of equal length) with a
    method ``order(seed, batch)``. Steps count from 0 over the whole run. ``indices`` must return at least one sample
    for each process.
    """

    @property
    def steps_per_epoch(self) -> int: ...

    def key(self, step: int) -> Key: ...

    def indices(self, step: int) -> Indices: ...


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, length: int) -> Indices:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
    permutation = generator.permutation(length).astype(np.int64)
    permutation.flags.writeable = False
    return permutation


@dataclass(frozen=True, kw_only=True, slots=True)
class Permutation:
    """``length`` samples in global batches of ``batch`` for a run with ``seed``.

    Every epoch is a new permutation. The incomplete last batch of an epoch is dropped unless it is the only one.
    """

    seed: int
    length: int
    batch: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError("an order needs at least one sample; the data set is empty")
        if self.batch < 1:
            raise ValueError(f"the batch must have at least one sample, not {self.batch}")

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.length // self.batch)

    def key(self, step: int) -> Key:
        """The key of the epoch of step number ``step`` (from 0)."""
        return Key(seed=self.seed, epoch=step // self.steps_per_epoch)

    def indices(self, step: int) -> Indices:
        """The samples of the global batch of step number ``step`` (from 0), shape (batch,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch
        return _permutation(self.seed, epoch, self.length)[start : start + self.batch]


def samples_of_rank(indices: Indices, rank: int, world: int) -> Indices:
    """The contiguous slice of a global batch for process ``rank`` of ``world``; slice sizes differ by at most one."""
    return indices if world == 1 else np.array_split(indices, world)[rank]


def evenly_spaced(length: int, limit: int | None = None) -> list[int]:
    """The indices of at most ``limit`` of ``length`` samples, evenly spaced from the first to the last; all if None."""
    count = length if limit is None else min(limit, length)
    chosen: list[int] = np.unique(np.linspace(0, length - 1, count).round().astype(np.int64)).tolist()
    return chosen
