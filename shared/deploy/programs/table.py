"""The runtimes by name, and programs by theirs: ``torch``, ``onnx``, ``openvino-bf16``."""

from __future__ import annotations

from shared.deploy.programs.cuda_graph import captured
from shared.deploy.programs.inductor import AotInductor, compiled, without_compiler
from shared.deploy.programs.onnx_runtime import OnnxRuntime
from shared.deploy.programs.openvino import OpenVino
from shared.deploy.programs.program import Format, Runtime
from shared.deploy.programs.torch_eager import TorchModules, eager
from shared.deploy.programs.torchscript import TorchScript
from shared.errors import InvalidInputError

_ALL: tuple[Runtime, ...] = (
    TorchModules(name="torch", start=eager),
    OnnxRuntime(),
    OpenVino(),
    TorchScript(),
    AotInductor(),
    TorchModules(name="compile", start=compiled, unavailable=without_compiler),
    TorchModules(
        name="cudagraph", start=captured, unavailable=lambda device: None if device == "cuda" else "it is for GPUs"
    ),
)
RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in _ALL}


def program_name(runtime: str, format: Format) -> str:
    """The name of a runtime's program in a format; fp32 goes without saying."""
    return runtime if format == "fp32" else f"{runtime}-{format}"


def find_program(name: str) -> tuple[Runtime, Format]:
    """The runtime and the format of the program called ``name``; refuses a name that there is not."""
    runtime, _, format = name.partition("-")
    chosen = format or "fp32"
    if runtime not in RUNTIMES or chosen not in RUNTIMES[runtime].formats:
        raise InvalidInputError(f"there is no program {name!r}; there are {', '.join(program_names())}")
    return RUNTIMES[runtime], next(known for known in RUNTIMES[runtime].formats if known == chosen)


def program_names() -> list[str]:
    """The names of all programs, whether they can be had here or not."""
    return [program_name(name, format) for name, runtime in RUNTIMES.items() for format in runtime.formats]
