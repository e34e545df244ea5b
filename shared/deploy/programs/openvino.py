"""OpenVINO on Intel and AMD CPUs, which reads ``model.onnx``, or its own format for quantised networks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
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
    """OpenVINO's core: one instance for the life of the process.

    The CPU plug-in gives the thread that loads it another stack for signal handlers, and frees that stack together with
    the last model. If another thread frees that model, the next signal that Python handles, such as Ctrl-C, ends the
    process with a segmentation fault (openvino 2026.4).
    """
    import openvino

    return openvino.Core()


class OpenVino:
    """fp32, bf16 if the CPU supports it, and INT8, made by ``trivium quantize`` with NNCF.

    Layers of an INT8 network that are not quantised run in bf16 if that is faster on the CPU, else in fp32.
    """

    name = "openvino"
    package = "openvino"
    reads_onnx = True
    formats: tuple[Format, ...] = ("fp32", "bf16", "int8")

    def file(self, format: Format) -> str | None:
        return "openvino-int8.xml" if format == "int8" else "openvino.xml"

    def why_not(self, format: Format, device: str) -> str | None:
        if device != "cpu":
            return "it runs only on the CPU"
        if find_spec("openvino") is None:
            return "openvino is not installed; install trivium[openvino]"
        if format == "bf16" and not cpu_has_bf16():
            return "this CPU has neither AVX512-BF16 nor AMX"
        return None

    def write(self, dense: DenseNetwork, folder: Path, format: Format) -> None:
        """Writes ``openvino.xml`` and ``.bin`` from the folder's ``model.onnx``, which is written first if missing."""
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
        return compute if source.rows is None else ArrayCompute(in_fixed_batches(source.rows, compute.arrays))


def compile_model(
    path: Path, format: Format, place: Placement, cache_dir: Path | None = None, rows: int | None = None
) -> Any:
    """Compiles the model in a file. Raises ``ProgramError`` for a file that this version cannot read or compile.

    The compiled model is cached in ``cache_dir``, in a subfolder named by the digest of the file: OpenVINO itself
    distinguishes files only by path, size and time in whole seconds. With ``rows``, the model takes only batches of
    that size.
    """
    import openvino

    settings = _settings(format, place)
    if cache_dir is not None:
        try:
            cache_dir = cache_dir / content_digest(path)[:16]
            cache_dir.mkdir(parents=True, exist_ok=True)
            settings["CACHE_DIR"] = str(cache_dir)
        except OSError:  # the cache cannot be written: the model is compiled each time
            pass
    try:
        if rows is None and format != "bf16":
            return open_core().compile_model(str(path), "CPU", settings)
        model = open_core().read_model(path)
        if format == "bf16":
            model = with_exact_image(model)
        if rows is not None:
            model.reshape({port.get_any_name(): [rows, *list(port.partial_shape)[1:]] for port in model.inputs})
        return open_core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise ProgramError(f"openvino {openvino.get_version()} cannot use {path.name}: {reason}") from error


def compile_in_memory(model: Any, format: Format, place: Placement) -> Any:
    """Compiles a model that is not in a file. Quantised layers run in INT8 whatever the format."""
    return open_core().compile_model(model, "CPU", _settings(format, place))


def _settings(format: Format, place: Placement) -> dict[str, Any]:
    # Layers of an INT8 network that are not quantised run in bf16 if the CPU is faster with it.
    use_bf16 = format == "bf16" or (format == "int8" and cpu_gains_from_bf16())
    return {
        "INFERENCE_NUM_THREADS": place.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # other runtimes in the process and other workers use the same cores
        "INFERENCE_PRECISION_HINT": "bf16" if use_bf16 else "f32",
    }


def content_digest(path: Path) -> str:
    """The SHA-256 of a model file and, for OpenVINO's format, of the weights file next to it."""
    digest = hashlib.sha256()
    for file in (path, path.with_suffix(".bin")):
        if file.is_file():
            digest.update(str(describe_file(file)["sha256"]).encode())
    return digest.hexdigest()


def in_fixed_batches(
    batch_size: int, compute: Callable[[Arrays], dict[str, NDArray[Any]]]
) -> Callable[[Arrays], dict[str, NDArray[Any]]]:
    """Returns a computation that splits any number of rows into batches of ``batch_size``, padding the last with zeros.

    A model of one batch size is up to a third faster than one of any size, and compiling both would take twice as long.
    """

    def compute_in_batches(inputs: Arrays) -> dict[str, NDArray[Any]]:
        count, results = len(next(iter(inputs.values()))), []
        for start in range(0, count, batch_size):
            batch = {name: value[start : start + batch_size] for name, value in inputs.items()}
            num_rows = min(batch_size, count - start)
            if num_rows < batch_size:
                batch = {
                    name: np.concatenate([value, np.zeros((batch_size - num_rows, *value.shape[1:]), value.dtype)])
                    for name, value in batch.items()
                }
            results.append({name: value[:num_rows] for name, value in compute(batch).items()})
        if len(results) == 1:
            return results[0]
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}

    return compute_in_batches


def openvino_compute(compiled: Any) -> ArrayCompute:
    """Returns a computation by a compiled model, which does not copy the inputs."""
    outputs = [sorted(port.get_names())[0] for port in compiled.outputs]
    request = compiled.create_infer_request()

    def compute(inputs: Arrays) -> dict[str, NDArray[Any]]:
        results = request.infer(dict(inputs), share_inputs=True)
        return {name: results[index].copy() for index, name in enumerate(outputs)}

    return ArrayCompute(compute)
