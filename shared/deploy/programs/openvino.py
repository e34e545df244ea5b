"""OpenVINO on Intel's and AMD's CPUs: from ``model.onnx``, or from its own format where a network is quantised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.deploy.artifact import NETWORK, describe_file
from shared.deploy.programs.exact_image import with_exact_image
from shared.deploy.programs.program import ArrayCompute, Arrays, Compute, Format, Placement, ProgramError, Source
from shared.precision import cpu_gains_from_bf16, cpu_has_bf16

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shared.app import DenseNetwork


@lru_cache(maxsize=1)
def open_core() -> Any:
    """OpenVINO's core, one for as long as the process lives.

    Its plug-in for CPUs gives the thread that loads it another stack for signal handlers, and frees that stack with
    the last model. Where another thread lets go of that one, the next signal that Python handles, Ctrl-C say, ends the
    process by a segmentation fault (openvino 2026.4).
    """
    import openvino

    return openvino.Core()


class OpenVino:
    """fp32, bf16 where the CPU computes in it, and INT8, which ``trivium quantize`` makes with NNCF.

    The layers of an INT8 network that are not quantised are computed in bf16 where the CPU gains from it, else in fp32.
    """

    name = "openvino"
    reads_onnx = True
    formats: tuple[Format, ...] = ("fp32", "bf16", "int8")

    def version(self) -> str:
        from importlib.metadata import version

        return version("openvino")

    def file(self, format: Format) -> str | None:
        return "openvino-int8.xml" if format == "int8" else "openvino.xml"

    def why_not(self, format: Format, device: str) -> str | None:
        from importlib.util import find_spec

        if device != "cpu":
            return "it is for the CPU"
        if find_spec("openvino") is None:
            return "openvino is not installed; install trivium[openvino]"
        if format == "bf16" and not cpu_has_bf16():
            return "this CPU has neither AVX512-BF16 nor AMX"
        return None

    def write(self, dense: DenseNetwork, folder: Path, format: Format) -> None:
        """Writes ``openvino.xml`` and ``.bin`` from the folder's ``model.onnx``, which is written where it is not."""
        import openvino

        from shared.deploy.onnx_network import write_onnx

        if format == "int8":
            raise ProgramError("an INT8 network is made by `trivium quantize`")
        if not (folder / NETWORK).is_file():
            write_onnx(dense, folder / NETWORK)
        model = open_core().read_model(folder / NETWORK)
        openvino.save_model(model, folder / "openvino.xml", compress_to_fp16=False)

    def load(self, source: Source, format: Format, place: Placement) -> Compute:
        assert source.file is not None
        compute = openvino_compute(compile_model(source.file, format, place, source.compiled, source.rows))
        return compute if source.rows is None else ArrayCompute(in_parts_of(source.rows, compute.arrays))


def compile_model(
    path: Path, format: Format, place: Placement, kept: Path | None = None, rows: int | None = None
) -> Any:
    """The compiled model in a file. Raises ``ProgramError`` for one that this version cannot read or compile.

    It is read from the folder ``kept`` where it was compiled before, and is kept there, in a folder of its own for each
    content: OpenVINO tells files apart by their path, size and time in whole seconds. With ``rows`` it is for batches
    of so many rows alone.
    """
    import openvino

    settings = _settings(format, place)
    if kept is not None:
        try:
            kept = kept / content_digest(path)[:16]
            kept.mkdir(parents=True, exist_ok=True)
            settings["CACHE_DIR"] = str(kept)
        except OSError:  # a home that cannot be written to: the model is compiled each time
            pass
    try:
        if rows is None and format != "bf16":
            return open_core().compile_model(str(path), "CPU", settings)
        model = open_core().read_model(path)
        if format == "bf16":
            model = with_exact_image(model)
        if rows is None:
            return open_core().compile_model(model, "CPU", settings)
        model.reshape({port.get_any_name(): [rows, *list(port.partial_shape)[1:]] for port in model.inputs})
        return open_core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise ProgramError(f"openvino {openvino.get_version()} cannot use {path.name}: {reason}") from error


def compiled_in_memory(model: Any, format: Format, place: Placement) -> Any:
    """A model that has not been written to a file, compiled; quantised layers are computed in INT8 in any format."""
    return open_core().compile_model(model, "CPU", _settings(format, place))


def _settings(format: Format, place: Placement) -> dict[str, Any]:
    # What of an INT8 network is not quantised is computed in bf16 where the processor is faster at it.
    half = format == "bf16" or (format == "int8" and cpu_gains_from_bf16())
    return {
        "INFERENCE_NUM_THREADS": place.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the other runtimes of the process and other workers use the same cores
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
    }


def content_digest(path: Path) -> str:
    """The SHA-256 of a model's file, with that of the weights beside it where it is OpenVINO's own."""
    digest = hashlib.sha256()
    for file in (path, path.with_suffix(".bin")):
        if file.is_file():
            digest.update(str(describe_file(file)["sha256"]).encode())
    return digest.hexdigest()


def in_parts_of(
    rows: int, compute: Callable[[Arrays], dict[str, NDArray[Any]]]
) -> Callable[[Arrays], dict[str, NDArray[Any]]]:
    """Computes any number of rows so many at a time, the last of them filled up with zeros.

    A model of one size is up to a third faster than one of any, and compiling both would take twice the time.
    """

    def by_rows(inputs: Arrays) -> dict[str, NDArray[Any]]:
        count, parts = len(next(iter(inputs.values()))), []
        for start in range(0, count, rows):
            part = {name: value[start : start + rows] for name, value in inputs.items()}
            there = min(rows, count - start)
            if there < rows:
                part = {
                    name: np.concatenate([value, np.zeros((rows - there, *value.shape[1:]), value.dtype)])
                    for name, value in part.items()
                }
            parts.append({name: value[:there] for name, value in compute(part).items()})
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}

    return by_rows


def openvino_compute(compiled: Any) -> ArrayCompute:
    """Computes with a compiled model, without copying the inputs."""
    outputs = [sorted(port.get_names())[0] for port in compiled.outputs]
    request = compiled.create_infer_request()

    def compute(inputs: Arrays) -> dict[str, NDArray[Any]]:
        found = request.infer(dict(inputs), share_inputs=True)
        return {name: found[index].copy() for index, name in enumerate(outputs)}

    return ArrayCompute(compute)
