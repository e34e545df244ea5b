"""Compiles a network to programs: writes each, compares it with eager torch and times it, all on the same inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from shared.deploy.artifact import NETWORK, Artifact, ProgramEntry
from shared.deploy.programs.machine import describe_machine
from shared.deploy.programs.program import (
    MAX_RELATIVE_ERROR,
    Placement,
    Program,
    ProgramError,
    Source,
    Tensors,
    is_batched,
    relative_error,
)
from shared.deploy.programs.store import add_to_cache, cache_folder, weights_digest
from shared.deploy.programs.table import find_program
from shared.deploy.programs.timing import measure_latency
from shared.deploy.programs.torch_eager import load_eager
from shared.threads import compute_threads

if TYPE_CHECKING:
    from shared.app import DenseNetwork


@dataclass(frozen=True, slots=True)
class Examples:
    """Example inputs of a network and their description. The last input has the usual size."""

    inputs: Sequence[Tensors]
    description: str


def random_examples(dense: DenseNetwork) -> Examples:
    """The network's own example input of random numbers, for when no input of its domain is available."""
    return Examples((dict(dense.inputs),), "the network's own example, random numbers")


def make_programs(
    dense: DenseNetwork,
    names: Sequence[str],
    folder: Path,
    weights: str,
    examples: Examples,
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, ProgramEntry]:
    """Writes the programs ``names`` into ``folder``; returns their manifest entries by name.

    ``weights`` is the digest of the weights of ``dense``. ``report`` gets a line on each program. Raises
    ``ProgramError`` for a program that cannot be made on this machine, and ``ArithmeticError`` for a program whose
    outputs differ from torch's by more than ``MAX_RELATIVE_ERROR``.
    """
    place = Placement("cpu", compute_threads())
    reference = load_eager(dense)
    expected = [reference(inputs) for inputs in examples.inputs]
    entries = {}
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
        error = largest_error(program, examples.inputs, expected)
        if not error <= MAX_RELATIVE_ERROR[format]:
            raise ArithmeticError(f"the program {name} differs from torch by {error:.2e} of its largest output")
        latency_ms = measure_latency({name: program}, examples.inputs[-1])[name]
        entries[name] = ProgramEntry(
            file=file,
            weights=weights,
            version=version(runtime.package),
            error=float(f"{error:.3g}"),
            latency_ms=float(f"{latency_ms:.4g}"),
            inputs=examples.description,
            machine=describe_machine(place.device, place.threads),
        )
        report(f"{name}: {latency_ms:.3g} ms a call, differs from torch by {error:.1e} ({examples.description})")
    return entries


def cache_onnx(artifact: Artifact, dense: DenseNetwork) -> Path:
    """Exports an artifact's network as ONNX into the cache; returns the path of the file.

    Raises ``ArithmeticError`` if it differs from torch, and the exporter's own errors if it cannot trace the network.
    """
    with tempfile.TemporaryDirectory(prefix="trivium-onnx-") as folder:
        entries = make_programs(dense, ["onnx"], Path(folder), weights_digest(artifact), random_examples(dense))
        add_to_cache(artifact, Path(folder), entries)
    return cache_folder(artifact) / NETWORK


def largest_error(program: Program, inputs: Sequence[Tensors], expected: Sequence[Tensors]) -> float:
    """The largest relative error of a program on the inputs: on each whole batch and on its first row alone.

    Raises ``ArithmeticError`` if the outputs for an empty batch have other shapes than torch's.
    """
    worst = 0.0
    for example, expected_outputs in zip(inputs, expected, strict=True):
        worst = max(worst, relative_error(expected_outputs, program(example)))
        if program.batched:
            first_row = {name: value[:1] for name, value in example.items()}
            expected_row = {name: value[:1] for name, value in expected_outputs.items()}
            worst = max(worst, relative_error(expected_row, program(first_row), expected_outputs))
            empty = program({name: value[:0] for name, value in example.items()})
            if any(empty[name].shape != (0, *value.shape[1:]) for name, value in expected_outputs.items()):
                raise ArithmeticError(f"the program {program.name} returns other shapes than torch for an empty batch")
    return worst
