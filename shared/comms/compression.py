"""Gradient compression for communication: half precision, and PowerSGD with error feedback."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from shared.comms.allreduce import Route, equal_bounds
from shared.comms.profiles import powersgd_compresses
from shared.errors import InvalidInputError

MAX_BF16_TERMS = 256
"""The largest number of values that may be summed one after the other in bf16, which has 8 significant bits.

Each addition rounds the sum. A value smaller than half of its last bit is lost, so a sum of equal values stops growing
after 256 to 512 of them.
"""


class Part(NamedTuple):
    """The gradient of one parameter within a flat tensor: its name, start offset and shape."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


class Compressor(Protocol):
    """Sums a flat tensor over processes and sends fewer bytes.

    ``divisible`` is whether a tensor may be sent in segments. ``bounds`` splits a tensor into ``shares`` chunks for the
    processes of a node. ``sum`` replaces ``flat`` by the sum over the ``count`` processes of ``route``. ``next_step``
    is called after each training step. ``state_dict`` is the state that this process keeps between steps.
    """

    @property
    def divisible(self) -> bool: ...

    def bounds(self, length: int, parts: Sequence[Part], shares: int) -> list[int]: ...

    def sum(self, flat: Tensor, parts: Sequence[Part], route: Route, count: int) -> None: ...

    def next_step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class NoCompression:
    """Sends all bytes. Has no state."""

    divisible = True

    def bounds(self, length: int, parts: Sequence[Part], shares: int) -> list[int]:
        return equal_bounds(length, shares)

    def sum(self, flat: Tensor, parts: Sequence[Part], route: Route, count: int) -> None:
        route.all_reduce(flat)

    def next_step(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class HalfPrecision(NoCompression):
    """Sends 16 bits per value: fp16 (more precise, overflows at 65504) or bf16 (the range of fp32)."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def sum(self, flat: Tensor, parts: Sequence[Part], route: Route, count: int) -> None:
        if flat.element_size() <= 2:
            return route.all_reduce(flat)
        half = flat.to(self.dtype)
        route.all_reduce(half)
        flat.copy_(half)


def refuse_inexact_sum(compression: str, processes: int) -> None:
    """Raises ``InvalidInputError`` if a ring of ``processes`` would sum in bf16 and lose a part of the gradients."""
    if compression == "bf16" and processes > MAX_BF16_TERMS:
        raise InvalidInputError(
            f"strategy.compression is bf16, in which a ring of {processes} processes loses a part of the gradients, "
            f"because each process rounds the sum to 8 bits (at most {MAX_BF16_TERMS} processes); use fp16, or "
            "--strategy.route hierarchical, which compresses only between nodes"
        )


class PowerSGD:
    """Low-rank gradients with error feedback (Vogels, Karimireddy and Jaggi, 2019, algorithms 1 and 2).

    A gradient is a matrix M (n, m) and is sent as P = M Q and Q = Mᵀ P with ``rank`` columns each, starting from the Q
    of the last step. The approximation error of this process's M is added to its next gradient. Gradients that this
    would not halve (``powersgd_compresses``) are sent uncompressed, as are all gradients in the first ``start`` steps,
    when they change fastest.

    The error stays with the process that computed it, so each process has its own state.
    """

    def __init__(self, rank: int, start: int) -> None:
        self.rank, self.start, self.step = rank, start, 0
        self.errors: dict[str, Tensor] = {}
        self.bases: dict[str, Tensor] = {}

    @property
    def divisible(self) -> bool:
        return self.step < self.start

    def bounds(self, length: int, parts: Sequence[Part], shares: int) -> list[int]:
        """Bounds between parameters, as close to equal shares as possible: a matrix is compressed as a whole."""
        if self.step < self.start:
            return equal_bounds(length, shares)
        cuts = [0, *(part.stop for part in parts)]
        equal = equal_bounds(length, shares)
        return [min(cuts, key=lambda cut: abs(cut - target)) for target in equal[:-1]] + [length]

    def sum(self, flat: Tensor, parts: Sequence[Part], route: Route, count: int) -> None:
        if self.step < self.start:
            return route.all_reduce(flat)
        matrices = [(part, self._matrix(flat, part)) for part in parts if powersgd_compresses(part.shape, self.rank)]
        uncompressed = [
            flat[part.start : part.stop] for part in parts if not powersgd_compresses(part.shape, self.rank)
        ]
        for part, matrix in matrices:
            if (error := self.errors.get(part.name)) is not None:
                matrix += error
        bases = [self._basis(part, matrix) for part, matrix in matrices]
        left = [matrix @ basis for (_, matrix), basis in zip(matrices, bases, strict=True)]
        _sum_together([*left, *uncompressed], route)
        left = [torch.linalg.qr(p.float()).Q.to(p.dtype) for p in left]
        right = [matrix.T @ p for (_, matrix), p in zip(matrices, left, strict=True)]
        _sum_together(right, route)
        for (part, matrix), p, q in zip(matrices, left, right, strict=True):
            summed = p @ q.T
            # The engine refuses a gradient that is not finite; it must not remain in the error.
            self.errors[part.name] = (matrix - summed / count).nan_to_num_(0.0, 0.0, 0.0)
            self.bases[part.name] = q.nan_to_num(0.0, 0.0, 0.0)
            matrix.copy_(summed)

    def next_step(self) -> None:
        """Called when all gradients of a step have been summed."""
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "errors": self.errors, "bases": self.bases}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self.errors, self.bases = dict(state["errors"]), dict(state["bases"])

    def _matrix(self, flat: Tensor, part: Part) -> Tensor:
        return flat[part.start : part.stop].view(part.shape[0], -1)

    def _basis(self, part: Part, matrix: Tensor) -> Tensor:
        """The Q of the last step; initially random, seeded by the parameter's name so that all processes agree."""
        basis = self.bases.get(part.name)
        if basis is None or not bool(basis.any()):
            generator = torch.Generator().manual_seed(zlib.crc32(part.name.encode()))
            basis = torch.randn(matrix.shape[1], self.rank, generator=generator)
        return basis.to(matrix)


def _sum_together(tensors: Sequence[Tensor], route: Route) -> None:
    """Sums tensors over the processes of ``route`` in place, in one message."""
    if not tensors:
        return
    joined = torch.cat([tensor.reshape(-1) for tensor in tensors])
    route.all_reduce(joined)
    summed = torch.split(joined, [tensor.numel() for tensor in tensors])
    for tensor, values in zip(tensors, summed, strict=True):
        tensor.copy_(values.view(tensor.shape))
