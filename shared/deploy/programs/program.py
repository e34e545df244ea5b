"""Programs: map inputs by name to outputs by name, whatever runtime computes them and in whatever number format.

A ``Runtime`` writes programs into an artifact and loads them from it; ``table`` lists the runtimes.
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
"""The number format that a program computes in; its inputs and outputs have the network's own types in every format."""
Tensors: TypeAlias = "Mapping[str, Tensor]"
Compute: TypeAlias = "Callable[[Tensors], dict[str, Tensor]]"
Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"


@dataclass(frozen=True, slots=True)
class ArrayCompute:
    """A computation on NumPy arrays. CPU tensors are passed to it as arrays without a copy."""

    arrays: Callable[[Arrays], dict[str, NDArray[Any]]]

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        import torch

        device = next(iter(inputs.values())).device
        outputs = self.arrays({name: value.detach().cpu().contiguous().numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value).to(device) for name, value in outputs.items()}


class ProgramError(Exception):
    """A program cannot be used on this machine: a file of another version, a missing package or CPU instruction."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a runtime loads a program from.

    ``file`` was written by the runtime; it is None for a runtime that writes no file. ``build`` builds the network with
    its weights, which may take seconds; only runtimes that compute with torch's modules call it. ``compiled`` is the
    cache folder, which may not exist yet, for what a runtime compiles for this machine. ``rows`` is the usual number of
    rows of a call; a runtime may compile the network for that number only.
    """

    file: Path | None
    build: Callable[[], DenseNetwork]
    compiled: Path | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """The device that a program runs on, ``cpu`` or ``cuda``, and the number of CPU threads."""

    device: str = "cpu"
    threads: int = 1


class Runtime(Protocol):
    """Compiles dense networks in the number formats ``formats``. Its version is that of the Python ``package``.

    ``file`` returns the name of the file that ``write`` writes into a folder, or None if the runtime loads programs
    from the weights. ``reads_onnx`` is True if the runtime can read ``model.onnx`` instead, in every format but INT8.
    ``why_not`` returns the reason why a format is not available on a device, or None if it is; it imports nothing
    heavy. ``load`` raises ``ProgramError`` if the program cannot be used.
    """

    @property
    def name(self) -> str: ...

    @property
    def package(self) -> str: ...

    @property
    def formats(self) -> tuple[Format, ...]: ...

    @property
    def reads_onnx(self) -> bool: ...

    def file(self, format: Format) -> str | None: ...

    def why_not(self, format: Format, device: str) -> str | None: ...

    def write(self, dense: DenseNetwork, folder: Path, format: Format) -> None: ...

    def load(self, source: Source, format: Format, place: Placement) -> Compute: ...


@dataclass(slots=True)
class Program:
    """A network ready to compute on ``device``.

    ``batched`` networks have one batch axis, 0, in every input and output. More than ``max_batch`` rows are computed
    in several batches; an empty batch is computed as one row of zeros, because kernels may not support empty tensors.
    ``reason`` says why this program was chosen, ``remarks`` which programs could not be used. ``version`` is the
    version of the network's artifact, or None for a run's checkpoint.

    A program with an ``opener`` is loaded by it on the first call; until then its name is empty. ``reader`` loads it
    ahead of the first call if that only reads a file, else returns None: see ``preload``.
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
    _preloaded: Program | None = field(default=None, init=False, repr=False, compare=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """Returns the outputs by name, on the inputs' device. Raises ``ValueError`` if inputs differ in their rows."""
        import torch

        self.open()
        return self._in_batches(self.compute, inputs, lambda value: value.new_zeros((1, *value.shape[1:])), torch.cat)

    def arrays(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """As ``__call__``, with NumPy arrays: a runtime that reads a file computes on them without importing torch."""
        self.open()
        if isinstance(self.compute, ArrayCompute):
            return self._in_batches(
                self.compute.arrays, inputs, lambda value: np.zeros((1, *value.shape[1:]), value.dtype), np.concatenate
            )
        import torch

        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        outputs = self({name: value.to(self.device) for name, value in tensors.items()})
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    def preload(self) -> None:
        """Loads the program before its first call, from another thread.

        The name stays empty until that call. If this fails, the first call loads the program as usual.
        """
        with self._lock:
            if self.reader is not None and self._preloaded is None:
                self._preloaded = self.reader()

    def open(self) -> None:
        """Loads a program with an ``opener``, if it is not loaded yet; this may time programs to choose the fastest."""
        if self.opener is None:
            return
        with self._lock:
            if self.opener is None:
                return
            loaded = self._preloaded or self.opener()
            self.name, self.reason, self.remarks = loaded.name, loaded.reason, loaded.remarks
            self.compute, self.device = loaded.compute, loaded.device
            self.batched, self.max_batch = loaded.batched, loaded.max_batch
            self.opener = self.reader = self._preloaded = None
        if "torch" in sys.modules:  # torch keeps the number of compute threads per calling thread
            set_compute_threads()

    def _in_batches(
        self,
        compute: Callable[[Mapping[str, Any]], dict[str, Any]],
        inputs: Mapping[str, Any],
        zero_row: Callable[[Any], Any],
        concatenate: Callable[[list[Any]], Any],
    ) -> dict[str, Any]:
        if not self.batched:
            return compute(inputs)
        sizes = {name: value.shape[0] for name, value in inputs.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"the inputs have different numbers of rows: {sizes}")
        rows = next(iter(sizes.values()))
        if rows == 0:
            zero_rows = {name: zero_row(value) for name, value in inputs.items()}
            return {name: value[:0] for name, value in compute(zero_rows).items()}
        if self.max_batch is None or rows <= self.max_batch:
            return compute(inputs)
        results = [
            compute({name: value[start : start + self.max_batch] for name, value in inputs.items()})
            for start in range(0, rows, self.max_batch)
        ]
        return {name: concatenate([result[name] for result in results]) for name in results[0]}


def is_batched(dense: DenseNetwork) -> bool:
    """Whether axis 0 of every input and output is the one batch axis."""
    if dense.dynamic is None:
        return True
    labels = {dense.dynamic.get(name, {}).get(0) for name in (*dense.inputs, *dense.outputs)}
    return len(labels) == 1 and None not in labels


MAX_RELATIVE_ERROR: Mapping[Format, float] = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.02, "int8": 0.5}
"""The maximum ``relative_error`` of a program against torch in fp32. For INT8 the domain's score decides as well."""


def relative_error(expected: Tensors, found: Tensors, all_rows: Tensors | None = None) -> float:
    """The largest difference between ``expected`` and ``found``, relative to the output's largest absolute value.

    If ``expected`` holds some rows of ``all_rows``, the largest value is taken over all rows. Returns infinity if a
    difference is NaN or shapes differ.
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
    """The root mean square difference, relative to the root mean square of ``expected``, of the worst output.

    It measures rounding: in bf16, single values of a map of millions may be far off. Returns infinity in the same cases
    as ``relative_error``.
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
