"""What a program is: inputs by name in, outputs by name out, whatever computes them and in whatever number format.

A runtime writes programs into an artifact and loads them from it (``Runtime``); ``table`` lists the runtimes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from shared.threads import set_compute_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from shared.app import DenseNetwork

Format: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]
"""In which numbers a program computes; its inputs and outputs are the network's own in every format."""
Tensors: TypeAlias = "Mapping[str, Tensor]"
Compute: TypeAlias = "Callable[[Tensors], dict[str, Tensor]]"
Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"


@dataclass(frozen=True, slots=True)
class ArrayCompute:
    """A computation on NumPy arrays, which torch's tensors on the CPU are taken for without a copy."""

    arrays: Callable[[Arrays], dict[str, NDArray[Any]]]

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        import torch

        place = next(iter(inputs.values())).device
        found = self.arrays({name: value.detach().cpu().contiguous().numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value).to(place) for name, value in found.items()}


class ProgramError(Exception):
    """A program that cannot be used here, and why: another version's file, a missing package or instruction."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a program is loaded from.

    ``file`` is what its runtime wrote, None for a runtime that writes nothing; ``build`` makes the network with its
    weights, which may take seconds and is called by those runtimes alone that compute with torch's own modules.
    ``compiled`` is a folder, which may be missing, where a runtime keeps what it compiles for this machine. ``rows`` is
    the number that most calls have, for which alone a runtime may compile the network.
    """

    file: Path | None
    build: Callable[[], DenseNetwork]
    compiled: Path | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and with how much a program computes: ``cpu`` or ``cuda``, and threads on the CPU."""

    device: str = "cpu"
    threads: int = 1


class Runtime(Protocol):
    """Compiles dense networks, each in the formats that it has.

    ``file`` is the name of what ``write`` writes into a folder, or None where a program is made from the weights each
    time; ``reads_onnx`` where ``model.onnx`` does for it in every format but INT8. ``why_not`` says why a format
    cannot be had on a device, None where it can; it imports nothing heavy. ``load`` raises ``ProgramError``.
    """

    @property
    def name(self) -> str: ...

    @property
    def formats(self) -> tuple[Format, ...]: ...

    @property
    def reads_onnx(self) -> bool: ...

    def version(self) -> str: ...

    def file(self, format: Format) -> str | None: ...

    def why_not(self, format: Format, device: str) -> str | None: ...

    def write(self, dense: DenseNetwork, folder: Path, format: Format) -> None: ...

    def load(self, source: Source, format: Format, place: Placement) -> Compute: ...


@dataclass(slots=True)
class Program:
    """A network ready to compute on ``device``.

    ``batched`` networks have one batch axis, 0, in every input and output. More than ``max_batch`` rows are computed
    in parts; for no rows one of zeros is, since kernels are not made for empty tensors. ``reason`` says why this
    program and no other was chosen, ``remarks`` which could not be used. ``version`` is that of the artifact whose
    network it is; None where there is none, as of a run's checkpoint. ``opener`` is of one that is loaded when it
    is first called, and gives all of this; until then the name is empty. ``reader`` gives it too where that takes
    reading a file alone, and None elsewhere: see ``read_ahead``.
    """

    name: str
    compute: Compute
    device: str = "cpu"
    batched: bool = True
    max_batch: int | None = None
    reason: str = ""
    remarks: tuple[str, ...] = ()
    version: int | None = None
    opener: Callable[[], Program] | None = None
    reader: Callable[[], Program | None] | None = None
    _ahead: Program | None = field(default=None, init=False, repr=False, compare=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """The outputs by name, on the inputs' device. Raises ``ValueError`` for inputs of different numbers of rows."""
        import torch

        self.open()
        return self._in_parts(self.compute, inputs, lambda one: one.new_zeros((1, *one.shape[1:])), torch.cat)

    def arrays(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """As a call, with NumPy arrays: a runtime that reads a file computes on them without importing torch."""
        self.open()
        if isinstance(self.compute, ArrayCompute):
            return self._in_parts(
                self.compute.arrays, inputs, lambda one: np.zeros((1, *one.shape[1:]), one.dtype), np.concatenate
            )
        import torch

        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        found = self({name: value.to(self.device) for name, value in tensors.items()})
        return {name: value.cpu().numpy() for name, value in found.items()}

    def read_ahead(self) -> None:
        """Loads a program that is to be loaded when it is first called, in another thread than the one that calls it.

        The name stays empty until that call. After an error the call opens the program itself, as if this had not been.
        """
        with self._lock:
            if self.reader is not None and self._ahead is None:
                self._ahead = self.reader()

    def open(self) -> None:
        """Loads a program that is to be loaded when it is first called; it is chosen, where it was not, by timing."""
        if self.opener is None:
            return
        with self._lock:
            if self.opener is None:
                return
            opened = self._ahead or self.opener()
            self.name, self.reason, self.remarks = opened.name, opened.reason, opened.remarks
            self.compute, self.device = opened.compute, opened.device
            self.batched, self.max_batch = opened.batched, opened.max_batch
            self.opener = self.reader = self._ahead = None
        if "torch" in sys.modules:  # each thread has its own number of them
            set_compute_threads()

    def _in_parts(
        self,
        compute: Callable[[Mapping[str, Any]], dict[str, Any]],
        inputs: Mapping[str, Any],
        row_of_zeros: Callable[[Any], Any],
        join: Callable[[list[Any]], Any],
    ) -> dict[str, Any]:
        if not self.batched:
            return compute(inputs)
        sizes = {name: value.shape[0] for name, value in inputs.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"the inputs have different numbers of rows: {sizes}")
        rows = next(iter(sizes.values()))
        if rows == 0:
            one = {name: row_of_zeros(value) for name, value in inputs.items()}
            return {name: value[:0] for name, value in compute(one).items()}
        if self.max_batch is None or rows <= self.max_batch:
            return compute(inputs)
        parts = [
            compute({name: value[start : start + self.max_batch] for name, value in inputs.items()})
            for start in range(0, rows, self.max_batch)
        ]
        return {name: join([part[name] for part in parts]) for name in parts[0]}


def is_batched(dense: DenseNetwork) -> bool:
    """Whether axis 0 of every input and output is the one batch axis."""
    if dense.dynamic is None:
        return True
    labels = {dense.dynamic.get(name, {}).get(0) for name in (*dense.inputs, *dense.outputs)}
    return len(labels) == 1 and None not in labels


LARGEST_ERROR: Mapping[Format, float] = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.02, "int8": 0.5}
"""How far a program may be from torch in fp32, by ``relative_error``; what INT8 may do the domain's score says."""


def relative_error(expected: Tensors, found: Tensors, all_rows: Tensors | None = None) -> float:
    """The largest difference of an output from ``expected``, in parts of that output's largest value.

    Where ``expected`` are some rows of ``all_rows``, the largest value is taken of all of them. Infinite where a
    difference is no number, and where shapes differ.
    """
    worst = 0.0
    for name, value in expected.items():
        if value.shape != found[name].shape:
            return math.inf
        if value.numel():
            largest = (all_rows or expected)[name].double().abs().max().clamp(min=1e-6)
            error = float((value.double() - found[name].double()).abs().max() / largest)
            worst = max(worst, error) if error == error else math.inf
    return worst


def rms_error(expected: Tensors, found: Tensors) -> float:
    """The root mean square of an output's differences from ``expected`` in parts of its own, of the worst output.

    The measure of rounding: single values of a map of millions may be far off in bf16. Infinite as ``relative_error``.
    """
    worst = 0.0
    for name, value in expected.items():
        if value.shape != found[name].shape:
            return math.inf
        if value.numel():
            difference = (value.double() - found[name].double()).square().mean().sqrt()
            error = float(difference / value.double().square().mean().sqrt().clamp(min=1e-6))
            worst = max(worst, error) if error == error else math.inf
    return worst
