"""Chooses the program that a predictor uses: the requested one, or the fastest on this machine.

The fastest program is measured once, on an input of the usual size. The choice is remembered in the user's cache, by
weights, machine, number of threads and versions of the runtimes, so that a machine keeps giving the same answers.
Programs whose outputs on that input differ too much from those of torch in fp32 are rejected.
If the weights have no usable ONNX file (missing, or made from unknown weights), one is exported first. That takes
seconds, and the file stays in the cache.
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
from shared.deploy.programs.machine import describe_machine
from shared.deploy.programs.program import (
    MAX_RELATIVE_ERROR,
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
from shared.deploy.programs.store import (
    StoredProgram,
    cache_folder,
    is_accepted,
    is_rejected,
    stored_programs,
    usable_programs,
)
from shared.deploy.programs.table import find_program
from shared.deploy.programs.timing import measure_latency
from shared.errors import InvalidInputError
from shared.precision import cpu_has_bf16
from shared.progress import report_stage
from shared.threads import compute_threads, set_compute_threads

if TYPE_CHECKING:
    from torch import Tensor

    from shared.app import DenseNetwork
    from shared.deploy.artifact import Artifact

log = logging.getLogger("trivium.programs")
_MAX_SLOWDOWN, _MAX_FILE_SLOWDOWN = 1.15, 1.3
_MAX_ERROR: Mapping[Format, float] = {"fp32": MAX_RELATIVE_ERROR["fp32"], "bf16": 0.25, "fp16": 0.1, "int8": 0.5}
"""The maximum error on the inputs that programs are timed on; see ``_inaccurate``. Unrelated outputs are at about 1.

On a real sweep, PointPillars is at 0.16 in bf16, with torch and OpenVINO alike, and at 0.36 in INT8, at nearly the AP
of fp32.
"""
_requested: ContextVar[tuple[str, str | None, StoredProgram | None] | None] = ContextVar("use_program", default=None)
_lazy: ContextVar[bool] = ContextVar("programs_on_use", default=False)


@contextmanager
def use_program(name: str | None, model: str | None = None, stored: StoredProgram | None = None) -> Iterator[None]:
    """Within this context, predictors are loaded with the program ``name``; None changes nothing.

    With ``model``, the request is only for the model of that name. ``stored`` is the program's file if it is not in the
    cache yet. Without a request, the environment variable TRIVIUM_PROGRAM names the program. Raises
    ``InvalidInputError`` for an unknown program.
    """
    if name is None:
        yield
        return
    find_program(name)
    token = _requested.set((name, model, stored))
    try:
        yield
    finally:
        _requested.reset(token)


@contextmanager
def lazy_programs() -> Iterator[None]:
    """Within this context, predictors load each program on its first call: only the models in use are loaded."""
    token = _lazy.set(True)
    try:
        yield
    finally:
        _lazy.reset(token)


@dataclass(frozen=True, slots=True)
class Network:
    """An artifact's dense network, for which programs are opened.

    ``build`` builds it from torch modules with its weights, which may take seconds. ``example`` returns inputs of the
    usual size and content, on which programs are timed and compared. ``formats`` are the formats that may be chosen
    without a request. ``most_threads`` limits the threads of a network whose operations are too small for more;
    ``rows`` is the usual number of rows of a call.
    """

    artifact: Artifact
    build: Callable[[], DenseNetwork]
    example: Callable[[], Tensors]
    max_batch: int | None = None
    formats: Sequence[Format] = ("fp32", "bf16", "fp16", "int8")
    most_threads: int | None = None
    rows: int | None = None


def open_program(network: Network, device: str = "cpu") -> Program:
    """Opens the requested program (``use_program``), else the one chosen before, else the fastest.

    A program that cannot be loaded is skipped, with a remark in the program's ``remarks`` and in the log.
    """
    requested_name, model, stored = _requested.get() or (None, None, None)
    if model not in (None, network.artifact.manifest.name):
        requested_name = stored = None
    requested = requested_name or os.environ.get("TRIVIUM_PROGRAM") or None
    if requested is not None:
        find_program(requested)
    if _lazy.get():
        program = Program(
            name="",
            compute=_not_loaded,
            device=device,
            opener=lambda: _choose_and_load(network, device, requested, stored),
            reader=(lambda: _preload_chosen(network, device)) if requested is None else None,
        )
    else:
        program = _choose_and_load(network, device, requested, stored)
    program.version = network.artifact.manifest.version
    return program


def _not_loaded(inputs: Tensors) -> dict[str, Tensor]:
    raise AssertionError("the program must be loaded before it computes")


def _choose_and_load(network: Network, device: str, requested: str | None, stored: StoredProgram | None) -> Program:
    place = _place_for(network, device)
    candidates, remarks = usable_programs(network.artifact, requested)
    build = _build_once(network)
    if requested is not None:
        if stored is not None:
            candidates[requested] = stored
        runtime, format = find_program(requested)
        if runtime.reads_onnx and format != "int8":
            candidates, remarks = _ensure_onnx(network, candidates, build, place, remarks)
        try:
            program = _load(requested, network, candidates, build, place)
            remarks += _rejection_remark(requested, candidates)
            return replace(program, reason="it was requested", remarks=_log_remarks(remarks))
        except ProgramError as error:
            remarks += (f"the requested program {requested} cannot be used: {error}",)
    if (choice := read_choice(network.artifact, place)) is not None:
        try:
            program = _load(choice.program, network, candidates, build, place)
            return replace(program, reason=choice.reason, remarks=_log_remarks(remarks))
        except ProgramError as error:
            remarks += (f"the program {choice.program}, chosen before, cannot be used: {error}",)
    name = network.artifact.manifest.name
    # It takes from seconds to minutes, in which a server does not answer yet.
    _report_slow_stage(f"timing the programs of {name}, once on this machine")
    candidates, remarks = _ensure_onnx(network, candidates, build, place, remarks)
    program, choice, rejected = _fastest(network, candidates, build, place)
    write_choice(network.artifact, place, choice)
    log.info("%s is computed by %s, %s", name, choice.program, choice.reason)
    return replace(program, reason=choice.reason, remarks=_log_remarks((*remarks, *rejected)))


def _place_for(network: Network, device: str) -> Placement:
    return Placement(device, min(compute_threads(), network.most_threads or compute_threads()))


def _preload_chosen(network: Network, device: str) -> Program | None:
    """Loads the program chosen before, if it is read from a file; else returns None.

    Other programs must not be loaded while another thread reads the input: choosing one measures the machine, and torch
    modules import a library that the other thread may have half imported. Raises ``ProgramError``.
    """
    place = _place_for(network, device)
    choice = read_choice(network.artifact, place)
    if choice is None or not _reads_file(choice.program):
        return None
    candidates, remarks = usable_programs(network.artifact, requested=None)
    program = _load(choice.program, network, candidates, network.build, place)
    return replace(program, reason=choice.reason, remarks=_log_remarks(remarks))


def _rejection_remark(name: str, files: Mapping[str, StoredProgram]) -> tuple[str, ...]:
    """A remark if the requested program is a quantised one that was rejected for its domain score."""
    if name not in files or not is_rejected(entry := files[name].entry):
        return ()
    pairs = zip(entry.scores.get("before", ()), entry.scores.get("after", ()), strict=False)
    listed = "; ".join(f"{old['name']} {old['value']:.4g} before, {new['value']:.4g} after" for old, new in pairs)
    return (f"the requested program {name} was rejected for its score: {listed}",)


def candidates_on(device: str) -> list[str]:
    """The names of the programs that may be chosen without a request, in order of preference.

    bf16 needs a CPU that supports it. torch.compile needs a compiler and is used only on request.
    """
    if device != "cpu":
        return ["cudagraph-fp16", "torch-fp16", "torch-bf16", "torch", "onnx"]
    names = ["torch", "onnx", "openvino", "torchscript", "aotinductor"]
    if cpu_has_bf16():
        names = ["torch-bf16", "openvino-bf16", *names]
    return [*names, "openvino-int8", "onnx-int8"]


def _ensure_onnx(
    network: Network,
    files: dict[str, StoredProgram],
    build: Callable[[], DenseNetwork],
    place: Placement,
    remarks: tuple[str, ...],
) -> tuple[dict[str, StoredProgram], tuple[str, ...]]:
    """Adds the ONNX file of the weights, exported into the cache if missing, or a remark on why it cannot be made."""
    if "onnx" in files or place.device != "cpu":
        return files, remarks
    from shared.deploy.programs.making import cache_onnx

    runtime, _ = find_program("onnx")
    reason = runtime.why_not("fp32", "cpu")
    if reason is None and find_spec("onnxscript") is None:
        reason = "onnxscript is not installed; install trivium[export]"
    if reason is not None:
        return files, (*remarks, f"no ONNX file was made: {reason}")
    _report_slow_stage(f"exporting {network.artifact.manifest.name} to ONNX, once on this machine")
    try:
        if not (dense := build()).has_onnx:
            return files, remarks
        cache_onnx(network.artifact, dense)
    except Exception as error:  # torch's exporter raises many kinds of errors for a network that it cannot trace
        return files, (*remarks, f"no ONNX file could be made: {str(error).strip().partition(chr(10))[0]}")
    return {**files, "onnx": stored_programs(network.artifact)[0]["onnx"]}, remarks


def _load(
    name: str,
    network: Network,
    files: Mapping[str, StoredProgram],
    build: Callable[[], DenseNetwork],
    place: Placement,
) -> Program:
    """Loads the program ``name``. Raises ``ProgramError`` if it cannot be used."""
    runtime, format = find_program(name)
    if (reason := runtime.why_not(format, place.device)) is not None:
        raise ProgramError(reason)
    file = None
    if (file_name := runtime.file(format)) is not None:
        stored = files.get(name) or (files.get("onnx") if runtime.reads_onnx and format != "int8" else None)
        if stored is None:
            command = "quantize" if format == "int8" else "programs"
            raise ProgramError(f"there is no {file_name} for these weights; `trivium {command}` makes it")
        file = stored.path
    source = Source(file, build, compiled=cache_folder(network.artifact) / "compiled", rows=network.rows)
    compute = runtime.load(source, format, place)
    if "torch" in sys.modules:  # a program that is read from a file does not need torch
        set_compute_threads()
    manifest = network.artifact.manifest
    batched = manifest.batched if manifest.has_network else is_batched(build())
    return Program(name=name, compute=compute, device=place.device, batched=batched, max_batch=network.max_batch)


def _fastest(
    network: Network, files: Mapping[str, StoredProgram], build: Callable[[], DenseNetwork], place: Placement
) -> tuple[Program, Choice, list[str]]:
    """Returns the fastest of the available programs, the choice with its reason, and remarks on rejected programs."""
    programs: dict[str, Program] = {}
    outputs: dict[str, Tensors] = {}
    rejected, loading = [], {}
    example = {name: value.to(place.device) for name, value in network.example().items()}
    for name in candidates_on(place.device):
        runtime, format = find_program(name)
        if format not in network.formats:
            continue
        file_name = runtime.file(format)
        is_present = file_name is None or name in files or (runtime.reads_onnx and format != "int8" and "onnx" in files)
        if not is_present or runtime.why_not(format, place.device) is not None:
            continue
        if format == "int8" and not is_accepted(files[name].entry):
            continue
        start = time.process_time()
        try:
            program = _load(name, network, files, build, place)
            outputs[name] = program(example)
        except Exception as error:  # runtimes raise many kinds of errors for a network that they cannot compute
            rejected.append(f"{name} cannot be used: {str(error).strip().partition(chr(10))[0]}")
        else:
            programs[name], loading[name] = program, time.process_time() - start
    for name, remark in _inaccurate(outputs).items():
        del programs[name]
        rejected.append(remark)
    if not programs:
        raise InvalidInputError(f"{network.artifact.path} cannot be used: {'; '.join(rejected)}")
    # Under other load, wall time would show which program was interrupted least, so CPU time is measured.
    milliseconds = measure_latency(programs, example, time.process_time if place.device == "cpu" else time.perf_counter)
    best = _choose_best(milliseconds, loading)
    listed = ", ".join(f"{name} {ms:.3g} ms" for name, ms in sorted(milliseconds.items(), key=lambda item: item[1]))
    choice = Choice(
        program=best,
        reason=f"{_reason(best, milliseconds)}: {listed} ({describe_machine(place.device, place.threads)})",
        milliseconds=milliseconds,
    )
    return programs[best], choice, rejected


def _inaccurate(outputs: Mapping[str, Tensors]) -> dict[str, str]:
    """Finds programs whose outputs differ too much, given all programs' outputs on the same inputs; a remark on each.

    The reference is torch in fp32, or another program in fp32 if torch could not compute. fp32 programs are compared by
    the largest difference, programs in formats that round by the root mean square.
    """
    fp32_programs = [name for name in outputs if find_program(name)[1] == "fp32"]
    if not fp32_programs:
        return {}
    reference = "torch" if "torch" in fp32_programs else fp32_programs[0]
    remarks = {}
    for name, program_outputs in outputs.items():
        format = find_program(name)[1]
        error_of, basis = (relative_error, "the largest") if format == "fp32" else (rms_error, "the root mean square")
        error, max_error = error_of(outputs[reference], program_outputs), _MAX_ERROR[format]
        if name != reference and error > max_error:
            remarks[name] = (
                f"{name} is rejected: its outputs differ from {reference}'s by {error:.2g} of {basis}, more than the "
                f"maximum of {max_error:g}"
            )
    return remarks


def _choose_best(milliseconds: Mapping[str, float], loading: Mapping[str, float]) -> str:
    """Chooses, among programs within ``_MAX_SLOWDOWN`` of the fastest, the quickest to load; files come first.

    ``loading`` has the seconds until a program has answered once. A program of torch modules imports the library that
    the network was trained with, which takes as long as hundreds of calls: it is chosen over a file only if it is
    faster by ``_MAX_FILE_SLOWDOWN``.
    """
    fastest = min(milliseconds.values())
    near = [name for name in milliseconds if milliseconds[name] <= _MAX_SLOWDOWN * fastest]
    if not any(map(_reads_file, near)):
        files = [
            name for name in milliseconds if _reads_file(name) and milliseconds[name] <= _MAX_FILE_SLOWDOWN * fastest
        ]
        near = [min(files, key=lambda name: milliseconds[name])] if files else near
    return min(near, key=lambda name: (not _reads_file(name), loading[name]))


def _reads_file(name: str) -> bool:
    runtime, format = find_program(name)
    return runtime.file(format) is not None


def _reason(best: str, milliseconds: Mapping[str, float]) -> str:
    if milliseconds[best] == min(milliseconds.values()):
        return "the fastest here"
    slowdown = milliseconds[best] / min(milliseconds.values()) - 1
    return f"{slowdown:.0%} slower than the fastest here, but quicker to start"


def _build_once(network: Network) -> Callable[[], DenseNetwork]:
    """Returns a function that builds the network once. It raises ``InvalidInputError`` if the settings allow none."""
    built: list[DenseNetwork] = []

    def build_once() -> DenseNetwork:
        if not built:
            try:
                built.append(network.build())
            except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
                if type(error).__name__ == "OutOfMemoryError":  # torch's error when a GPU runs out of memory
                    raise
                problem = f"a network that cannot be built: {' '.join(str(error).split())[:200]}"
                raise InvalidInputError(f"{network.artifact.path / RECIPE} describes {problem}") from error
        return built[0]

    return build_once


def _report_slow_stage(stage: str) -> None:
    report_stage(stage)
    log.info("%s", stage)


def _log_remarks(remarks: tuple[str, ...]) -> tuple[str, ...]:
    for remark in remarks:
        log.warning("%s", remark)
    return remarks
