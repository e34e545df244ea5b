"""Makes programs of a network: writes each, compares it with eager torch and times it, on the same inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.deploy.artifact import NETWORK, Artifact, ProgramEntry
from shared.deploy.programs.machine import machine
from shared.deploy.programs.program import (
    LARGEST_ERROR,
    Placement,
    Program,
    ProgramError,
    Source,
    Tensors,
    is_batched,
    relative_error,
)
from shared.deploy.programs.store import folder_of, keep, weights_digest
from shared.deploy.programs.table import find_program
from shared.deploy.programs.timing import measure
from shared.deploy.programs.torch_eager import eager
from shared.threads import compute_threads

if TYPE_CHECKING:
    from shared.app import DenseNetwork


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs of a network, the last as large as the usual ones, and what they are."""

    inputs: Sequence[Tensors]
    description: str


def random_examples(dense: DenseNetwork) -> Examples:
    """The network's own example alone, where nothing of its domain is at hand."""
    return Examples((dict(dense.inputs),), "the network's own example, random numbers")


def make_programs(
    dense: DenseNetwork,
    names: Sequence[str],
    folder: Path,
    weights: str,
    examples: Examples,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, ProgramEntry]:
    """Writes the programs called ``names`` into ``folder`` and says of each what was measured.

    ``weights`` is the digest of the weights that ``dense`` has. Raises ``ProgramError`` for one that cannot be made
    here, and ``ArithmeticError`` for one whose outputs are others than torch's.
    """
    place = Placement("cpu", compute_threads())
    reference = eager(dense)
    expected = [reference(inputs) for inputs in examples.inputs]
    made = {}
    for name in names:
        runtime, format = find_program(name)
        if (reason := runtime.why_not(format, place.device)) is not None:
            raise ProgramError(f"{name} cannot be made: {reason}")
        file = runtime.file(format)
        if file is None:
            continue
        if not (folder / file).is_file():
            runtime.write(dense, folder, format)
        compute = runtime.load(Source(folder / file, lambda: dense), format, place)
        program = Program(name=name, compute=compute, batched=is_batched(dense))
        error = compare(program, examples.inputs, expected)
        if not error <= LARGEST_ERROR[format]:
            raise ArithmeticError(f"the program {name} differs from torch by {error:.2e} of its largest output")
        taken = measure({name: program}, examples.inputs[-1])[name]
        made[name] = ProgramEntry(
            file=file,
            weights=weights,
            version=runtime.version(),
            error=float(f"{error:.3g}"),
            latency_ms=float(f"{taken:.4g}"),
            inputs=examples.description,
            machine=machine(place.device, place.threads),
        )
        say(f"{name}: {taken:.3g} ms a call, differs from torch by {error:.1e} ({examples.description})")
    return made


def keep_onnx(artifact: Artifact, dense: DenseNetwork) -> Path:
    """Makes the ONNX of an artifact's network and keeps it in the cache; returns where it lies.

    Raises ``ArithmeticError`` where it differs from torch, and what the exporter raises for a network it cannot trace.
    """
    with tempfile.TemporaryDirectory(prefix="trivium-onnx-") as aside:
        entries = make_programs(dense, ["onnx"], Path(aside), weights_digest(artifact), random_examples(dense))
        keep(artifact, Path(aside), entries)
    return folder_of(artifact) / NETWORK


def compare(program: Program, inputs: Sequence[Tensors], expected: Sequence[Tensors]) -> float:
    """The largest relative error of a program on the inputs; on each whole, by single rows, and on no row."""
    worst = 0.0
    for given, wanted in zip(inputs, expected, strict=True):
        worst = max(worst, relative_error(wanted, program(given)))
        if program.batched:
            first = {name: value[:1] for name, value in given.items()}
            row = {name: value[:1] for name, value in wanted.items()}
            worst = max(worst, relative_error(row, program(first), wanted))
            none = program({name: value[:0] for name, value in given.items()})
            if any(none[name].shape != (0, *value.shape[1:]) for name, value in wanted.items()):
                raise ArithmeticError(f"the program {program.name} gives other shapes for no rows than torch does")
    return worst
