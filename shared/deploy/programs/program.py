"""What a program is: inputs by name in, outputs by name out, whatever computes them and in whatever number format.

A runtime writes programs into an artifact and loads them from it (``Runtime``); ``table`` lists the runtimes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from shared.app import DenseNetwork

Format: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]
"""In which numbers a program computes; its inputs and outputs are the network's own in every format."""
Tensors: TypeAlias = "Mapping[str, Tensor]"
Compute: TypeAlias = "Callable[[Tensors], dict[str, Tensor]]"


class ProgramError(Exception):
    """A program that cannot be used here, and why: another version's file, a missing package or instruction."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a program is loaded from.

    ``file`` is what its runtime wrote, None for a runtime that writes nothing; ``build`` makes the network with its
    weights, which may take seconds and is called by those runtimes alone that compute with torch's own modules.
    """

    file: Path | None
    build: Callable[[], DenseNetwork]


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
    program and no other was chosen, ``remarks`` which could not be used.
    """

    name: str
    compute: Compute
    device: str = "cpu"
    batched: bool = True
    max_batch: int | None = None
    reason: str = ""
    remarks: tuple[str, ...] = ()

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """The outputs by name, on the inputs' device. Raises ``ValueError`` for inputs of different numbers of rows."""
        if not self.batched:
            return self.compute(inputs)
        sizes = {name: value.shape[0] for name, value in inputs.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"the inputs have different numbers of rows: {sizes}")
        rows = next(iter(sizes.values()))
        if rows == 0:
            one = {name: value.new_zeros((1, *value.shape[1:])) for name, value in inputs.items()}
            return {name: value[:0] for name, value in self.compute(one).items()}
        if self.max_batch is None or rows <= self.max_batch:
            return self.compute(inputs)
        import torch

        parts = [
            self.compute({name: value[start : start + self.max_batch] for name, value in inputs.items()})
            for start in range(0, rows, self.max_batch)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def is_batched(dense: DenseNetwork) -> bool:
    """Whether axis 0 of every input and output is the one batch axis."""
    if dense.dynamic is None:
        return True
    labels = {dense.dynamic.get(name, {}).get(0) for name in (*dense.inputs, *dense.outputs)}
    return len(labels) == 1 and None not in labels


def relative_error(expected: Tensors, found: Tensors) -> float:
    """The largest difference of an output from ``expected``, in parts of that output's largest value."""
    worst = 0.0
    for name, value in expected.items():
        if value.numel():
            difference = (value.double() - found[name].double()).abs().max()
            worst = max(worst, float(difference / value.double().abs().max().clamp(min=1e-6)))
    return worst
