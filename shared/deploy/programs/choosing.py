"""Which program a predictor computes with: the one that was asked for, or the fastest on this machine.

The fastest is measured once, on an input as large as the predictor's usual ones, and remembered in the user's cache
for the weights, the machine, its threads and the runtimes' versions, so that a machine goes on giving the same answers.
One whose outputs there are not those of torch in fp32, as nearly as its format allows, is passed over.
Weights without an ONNX that can be used, for it is missing, for one size of input alone or of unknown weights, get one
before that, which takes seconds and stays in the cache.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from shared.deploy.artifact import RECIPE
from shared.deploy.programs.choices import Choice, read_choice, write_choice
from shared.deploy.programs.machine import machine
from shared.deploy.programs.program import (
    LARGEST_ERROR,
    Format,
    Placement,
    Program,
    ProgramError,
    Source,
    Tensors,
    is_batched,
    relative_error,
    rms_error,
)
from shared.deploy.programs.store import Found, folder_of, found_programs, is_accepted, is_refused
from shared.deploy.programs.table import RUNTIMES, find_program
from shared.deploy.programs.timing import measure
from shared.errors import InvalidInputError
from shared.precision import cpu_has_bf16
from shared.progress import report_stage
from shared.threads import compute_threads, set_compute_threads

if TYPE_CHECKING:
    from torch import Tensor

    from shared.app import DenseNetwork
    from shared.deploy.artifact import Artifact

log = logging.getLogger("trivium.programs")
_NEAR, _NEAR_IMPORTING = 1.15, 1.3
_ALLOWED: Mapping[Format, float] = {"fp32": LARGEST_ERROR["fp32"], "bf16": 0.25, "fp16": 0.1, "int8": 0.5}
"""How far a program may be on the inputs that it is timed on; see ``_wrong``. What computes something else is at 1.

PointPillars on a real sweep is at 0.16 in bf16, by torch and by OpenVINO alike, and at 0.36 in INT8: with nearly the AP
of fp32.
"""
_asked: ContextVar[tuple[str, str | None, Found | None] | None] = ContextVar("asked_program", default=None)
_on_use: ContextVar[bool] = ContextVar("programs_on_use", default=False)


@contextmanager
def asked_program(name: str | None, model: str | None = None, found: Found | None = None) -> Iterator[None]:
    """Inside, predictors are loaded with the program called ``name``; None leaves what was asked before.

    With ``model`` that holds for the model of this name alone, and others have what they would have otherwise.
    ``found`` is the program's file where it is not kept yet.

    Refuses a name that there is not. Where nothing asks, the environment variable TRIVIUM_PROGRAM does.
    """
    if name is None:
        yield
        return
    find_program(name)
    token = _asked.set((name, model, found))
    try:
        yield
    finally:
        _asked.reset(token)


@contextmanager
def programs_on_use() -> Iterator[None]:
    """Inside, predictors are loaded with programs that are loaded when they are first called.

    So of an application's several models only those are loaded that an input needs.
    """
    token = _on_use.set(True)
    try:
        yield
    finally:
        _on_use.reset(token)


@dataclass(frozen=True, slots=True)
class Network:
    """What programs are opened of: an artifact's dense network.

    ``build`` makes it with its weights from torch's modules, which may take seconds. ``example`` gives inputs as large
    as the usual ones, and like them: programs are timed and compared on them. ``varying`` names the axes besides the
    batch that differ between calls, by input: a program whose file has them fixed is of no use. ``formats`` are those
    that may be chosen without being asked for. ``most_threads`` is for a network whose operations are too small for
    more; ``rows`` is how many most calls have.
    """

    artifact: Artifact
    build: Callable[[], DenseNetwork]
    example: Callable[[], Tensors]
    varying: Mapping[str, Sequence[int]]
    max_batch: int | None = None
    formats: Sequence[Format] = ("fp32", "bf16", "fp16", "int8")
    most_threads: int | None = None
    rows: int | None = None


def open_program(network: Network, device: str = "cpu") -> Program:
    """The program that was asked for (``asked_program``), else the one chosen before, else the fastest.

    One that cannot be loaded is passed over, which the program's ``remarks`` and the log say.
    """
    name, model, at = _asked.get() or (None, None, None)
    if model not in (None, network.artifact.manifest.name):
        name = at = None
    asked = name or os.environ.get("TRIVIUM_PROGRAM") or None
    if asked is not None:
        find_program(asked)
    if _on_use.get():
        program = Program(
            name="",
            compute=_unopened,
            device=device,
            opener=lambda: _opened(network, device, asked, at),
            reader=(lambda: _read_ahead(network, device)) if asked is None else None,
        )
    else:
        program = _opened(network, device, asked, at)
    program.version = network.artifact.manifest.version
    return program


def _unopened(inputs: Tensors) -> dict[str, Tensor]:
    raise AssertionError("a program is opened before it computes")


def _opened(network: Network, device: str, asked: str | None, at: Found | None) -> Program:
    place = _placement(network, device)
    candidates, remarks = _candidates(network, place)
    build = _once(network)
    if asked is not None:
        if at is not None:
            candidates[asked] = at
        runtime, format = find_program(asked)
        if runtime.reads_onnx and format != "int8":
            candidates, remarks = _with_onnx(network, candidates, build, place, remarks)
        try:
            program = _load(asked, network, candidates, build, place)
            return replace(program, reason="it was asked for", remarks=_logged(remarks + _refused(asked, candidates)))
        except ProgramError as error:
            remarks += (f"{asked}, which was asked for, cannot be used: {error}",)
    if (choice := read_choice(network.artifact, place)) is not None:
        try:
            program = _load(choice.program, network, candidates, build, place)
            return replace(program, reason=choice.reason, remarks=_logged(remarks))
        except ProgramError as error:
            remarks += (f"{choice.program}, which was chosen before, cannot be used: {error}",)
    candidates, remarks = _with_onnx(network, candidates, build, place, remarks)
    program, choice, passed_over = _fastest(network, candidates, build, place)
    write_choice(network.artifact, place, choice)
    return replace(program, reason=choice.reason, remarks=_logged((*remarks, *passed_over)))


def _placement(network: Network, device: str) -> Placement:
    return Placement(device, min(compute_threads(), network.most_threads or compute_threads()))


def _read_ahead(network: Network, device: str) -> Program | None:
    """The program chosen before, where it is read from a file.

    Others are not for a thread beside the one that reads the input: to choose one is to measure the machine, and one of
    torch's modules imports a library of which the other thread may have imported half. Raises ``ProgramError``.
    """
    place = _placement(network, device)
    choice = read_choice(network.artifact, place)
    if choice is None or not _is_file(choice.program):
        return None
    candidates, remarks = _candidates(network, place)
    program = _load(choice.program, network, candidates, network.build, place)
    return replace(program, reason=choice.reason, remarks=_logged(remarks))


def _refused(name: str, files: Mapping[str, Found]) -> tuple[str, ...]:
    """A remark on a quantised program that lost too much of the domain's score."""
    if name not in files or not is_refused(entry := files[name].entry):
        return ()
    pairs = zip(entry.scores.get("before", ()), entry.scores.get("after", ()), strict=False)
    listed = "; ".join(f"{one['name']} {one['value']:.4g} before, {other['value']:.4g} after" for one, other in pairs)
    return (f"{name}, which was asked for, was refused for its score: {listed}",)


def candidates_on(device: str) -> list[str]:
    """The names of the programs that may be chosen without being asked for, the one preferred among equals first.

    bf16 is for a CPU that computes in it; torch.compile needs a compiler, and is there where it is asked for.
    """
    if device != "cpu":
        return ["cudagraph-fp16", "torch-fp16", "torch-bf16", "torch", "onnx"]
    formats = ["torch", "onnx", "openvino", "torchscript", "aotinductor"]
    if cpu_has_bf16():
        formats = ["torch-bf16", "openvino-bf16", *formats]
    return [name for name in (*formats, "openvino-int8", "onnx-int8") if name.partition("-")[0] in RUNTIMES]


def _candidates(network: Network, place: Placement) -> tuple[dict[str, Found], tuple[str, ...]]:
    """The files of the programs by name; of a runtime that reads another's file, that one."""
    found, remarks = found_programs(network.artifact)
    fixed = [
        name
        for spec in network.artifact.manifest.inputs
        for name, axes in network.varying.items()
        if spec.name == name and any(spec.shape[axis] != -1 for axis in axes)
    ]
    if fixed and "onnx" in found and found["onnx"].path.parent == network.artifact.path:
        del found["onnx"]
    return found, remarks


def _with_onnx(
    network: Network,
    files: dict[str, Found],
    build: Callable[[], DenseNetwork],
    place: Placement,
    remarks: tuple[str, ...],
) -> tuple[dict[str, Found], tuple[str, ...]]:
    """The files and remarks, and the ONNX of the weights, which OpenVINO reads too: one is made where it is lacking,
    and kept in the cache. Where it cannot be made, a remark says why."""
    if "onnx" in files or place.device != "cpu":
        return files, remarks
    from shared.deploy.programs.making import keep_onnx

    runtime, _ = find_program("onnx")
    reason = runtime.why_not("fp32", "cpu")
    if reason is None and find_spec("onnxscript") is None:
        reason = "onnxscript is not installed; install trivium[export]"
    if reason is not None:
        return files, (*remarks, f"no ONNX was made: {reason}")
    report_stage("making a program of the network, once")
    try:
        if not (dense := build()).has_onnx:
            return files, remarks
        keep_onnx(network.artifact, dense)
    except Exception as error:  # what torch's exporter raises for a network that it cannot trace is its own affair
        return files, (*remarks, f"no ONNX could be made: {str(error).strip().partition(chr(10))[0]}")
    return {**files, "onnx": found_programs(network.artifact)[0]["onnx"]}, remarks


def _load(
    name: str,
    network: Network,
    files: Mapping[str, Found],
    build: Callable[[], DenseNetwork],
    place: Placement,
) -> Program:
    """The program called ``name``. Raises ``ProgramError``."""
    runtime, format = find_program(name)
    if (reason := runtime.why_not(format, place.device)) is not None:
        raise ProgramError(reason)
    file = None
    if (own := runtime.file(format)) is not None:
        at = files.get(name) or (files.get("onnx") if runtime.reads_onnx and format != "int8" else None)
        if at is None:
            raise ProgramError(f"there is no {own} of these weights; `trivium programs` makes it")
        file = at.path
    source = Source(file, build, compiled=folder_of(network.artifact) / "compiled", rows=network.rows)
    compute = runtime.load(source, format, place)
    if "torch" in sys.modules:  # a program that is read from a file needs none
        set_compute_threads()
    batched = all(
        spec.shape[:1] == (-1,) for spec in (*network.artifact.manifest.inputs, *network.artifact.manifest.outputs)
    )
    if not network.artifact.manifest.inputs:
        batched = is_batched(build())
    return Program(name=name, compute=compute, device=place.device, batched=batched, max_batch=network.max_batch)


def _fastest(
    network: Network, files: Mapping[str, Found], build: Callable[[], DenseNetwork], place: Placement
) -> tuple[Program, Choice, list[str]]:
    """The fastest of the programs that can be had, how that was found, and which could not be used though present."""
    programs: dict[str, Program] = {}
    outputs: dict[str, Tensors] = {}
    passed_over, loading = [], {}
    example = {name: value.to(place.device) for name, value in network.example().items()}
    for name in candidates_on(place.device):
        runtime, format = find_program(name)
        if format not in network.formats:
            continue
        needed = runtime.file(format)
        there = needed is None or name in files or (runtime.reads_onnx and format != "int8" and "onnx" in files)
        if not there or runtime.why_not(format, place.device) is not None:
            continue
        if format == "int8" and not is_accepted(files[name].entry):
            continue
        began = time.process_time()
        try:
            program = _load(name, network, files, build, place)
            outputs[name] = program(example)
        except Exception as error:  # what a runtime raises for a network that it cannot compute is its own affair
            passed_over.append(f"{name} cannot be used: {str(error).strip().partition(chr(10))[0]}")
        else:
            programs[name], loading[name] = program, time.process_time() - began
    for name, remark in _wrong(outputs).items():
        del programs[name]
        passed_over.append(remark)
    if not programs:
        raise InvalidInputError(f"{network.artifact.path} cannot be used: {'; '.join(passed_over)}")
    # On a machine where others compute, the time on the wall tells which program was interrupted least.
    milliseconds = measure(programs, example, time.process_time if place.device == "cpu" else time.perf_counter)
    best = _best(milliseconds, loading)
    listed = ", ".join(f"{name} {value:.3g} ms" for name, value in sorted(milliseconds.items(), key=lambda one: one[1]))
    choice = Choice(
        program=best,
        reason=f"{_why(best, milliseconds)}: {listed} ({machine(place.device, place.threads)})",
        milliseconds=milliseconds,
    )
    return programs[best], choice, passed_over


def _wrong(outputs: Mapping[str, Tensors]) -> dict[str, str]:
    """The programs whose outputs differ too much, with a remark on each, from the outputs of all on the same inputs.

    They are compared with torch's in fp32, or with those of another program in fp32 where torch could not compute: in
    fp32 by the largest difference, in a format that rounds by the root mean square.
    """
    exact = [name for name in outputs if find_program(name)[1] == "fp32"]
    if not exact:
        return {}
    reference = "torch" if "torch" in exact else exact[0]
    remarks = {}
    for name, found in outputs.items():
        format = find_program(name)[1]
        compare, of = (relative_error, "the largest") if format == "fp32" else (rms_error, "the root mean square")
        error, allowed = compare(outputs[reference], found), _ALLOWED[format]
        if name != reference and error > allowed:
            remarks[name] = (
                f"{name} is passed over: its outputs differ from {reference}'s by {error:.2g} of {of}, where "
                f"{allowed:g} is allowed"
            )
    return remarks


def _best(milliseconds: Mapping[str, float], loading: Mapping[str, float]) -> str:
    """Of those that are as fast as the fastest within ``_NEAR`` the first to be ready, one that is read from a file.

    ``loading`` has the seconds until a program has answered once. One of torch's modules imports the library that the
    network was trained with, which takes as long as hundreds of calls: it must be ahead by ``_NEAR_IMPORTING``.
    """
    least = min(milliseconds.values())
    near = [name for name in milliseconds if milliseconds[name] <= _NEAR * least]
    if not any(map(_is_file, near)):
        read = [name for name in milliseconds if _is_file(name) and milliseconds[name] <= _NEAR_IMPORTING * least]
        near = [min(read, key=lambda name: milliseconds[name])] if read else near
    return min(near, key=lambda name: (not _is_file(name), loading[name]))


def _is_file(name: str) -> bool:
    runtime, format = find_program(name)
    return runtime.file(format) is not None


def _why(best: str, milliseconds: Mapping[str, float]) -> str:
    if milliseconds[best] == min(milliseconds.values()):
        return "the fastest here"
    behind = milliseconds[best] / min(milliseconds.values()) - 1
    return f"{behind:.0%} slower than the fastest here, and quicker to start"


def _once(network: Network) -> Callable[[], DenseNetwork]:
    """Builds the network once. Refuses settings by which torch, or the domain's library, cannot build one."""
    made: list[DenseNetwork] = []

    def build_once() -> DenseNetwork:
        if not made:
            try:
                made.append(network.build())
            except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
                if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
                    raise
                why = f"no network that can be built: {' '.join(str(error).split())[:200]}"
                raise InvalidInputError(f"{network.artifact.path / RECIPE} describes {why}") from error
        return made[0]

    return build_once


def _logged(remarks: tuple[str, ...]) -> tuple[str, ...]:
    for remark in remarks:
        log.warning("%s", remark)
    return remarks
