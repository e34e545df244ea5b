"""ONNX Runtime, which reads the artifact's ``model.onnx``; other runtimes read that file too."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.deploy.artifact import NETWORK
from shared.deploy.programs.program import ArrayCompute, Arrays, Compute, Format, Placement, ProgramError, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shared.app import DenseNetwork

_PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


class OnnxRuntime:
    """fp32 from ``model.onnx``; INT8 from ``onnx-int8.onnx``, written by onnxruntime's quantiser."""

    name = "onnx"
    package = "onnxruntime"
    reads_onnx = True
    formats: tuple[Format, ...] = ("fp32", "int8")

    def file(self, format: Format) -> str | None:
        return NETWORK if format == "fp32" else "onnx-int8.onnx"

    def why_not(self, format: Format, device: str) -> str | None:
        if find_spec("onnxruntime") is None:
            return "onnxruntime is not installed; install trivium[export]"
        if device != "cpu" and "CUDAExecutionProvider" not in _available_providers():
            return "the installed onnxruntime has no CUDA support"
        return None

    def write(self, dense: DenseNetwork, folder: Path, format: Format) -> None:
        """Writes ``model.onnx`` and compares it with torch. Raises ``ArithmeticError`` if they differ."""
        from shared.deploy.onnx_network import write_onnx

        if format != "fp32":
            raise ProgramError("an INT8 network is made by `trivium quantize`")
        write_onnx(dense, folder / NETWORK)

    def load(self, source: Source, format: Format, place: Placement) -> Compute:
        assert source.file is not None
        return onnx_compute(open_session(source.file, place))


def open_session(path: Path, place: Placement) -> Any:
    """Opens an inference session on ``place``. Raises ``ProgramError`` for a file that this version cannot read."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = place.threads
    options.inter_op_num_threads = 1
    # A memory pattern is kept, with its memory, for each input size, and inputs have many sizes.
    options.enable_mem_pattern = False
    # Threads that spin while waiting would take CPU time from other programs in the process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    providers = [name for name in _PROVIDERS[place.device] if name in _available_providers()]
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime has many error classes, with no common base but Exception
        reason = str(error).strip().partition("\n")[0]
        raise ProgramError(f"onnxruntime {ort.__version__} cannot read {path.name}: {reason}") from error


def onnx_compute(session: Any) -> Compute:
    """Returns a computation by an inference session."""
    outputs = [tensor.name for tensor in session.get_outputs()]

    def compute(inputs: Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))

    return ArrayCompute(compute)


def _available_providers() -> list[str]:
    import onnxruntime as ort

    providers: list[str] = ort.get_available_providers()
    return providers
