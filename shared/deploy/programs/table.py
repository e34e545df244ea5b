"""Finds runtimes and programs by name: ``torch``, ``onnx``, ``openvino-bf16``."""

from __future__ import annotations

from shared.deploy.programs.cuda_graph import load_cuda_graph
from shared.deploy.programs.inductor import AotInductor, load_compiled, missing_compiler
from shared.deploy.programs.onnx_runtime import OnnxRuntime
from shared.deploy.programs.openvino import OpenVino
from shared.deploy.programs.program import Format, Runtime
from shared.deploy.programs.torch_eager import TorchModules, load_eager
from shared.deploy.programs.torchscript import TorchScript
from shared.errors import InvalidInputError

_RUNTIMES: tuple[Runtime, ...] = (
    TorchModules(name="torch", start=load_eager),
    OnnxRuntime(),
    OpenVino(),
    TorchScript(),
    AotInductor(),
    TorchModules(name="compile", start=load_compiled, unavailable=missing_compiler),
    TorchModules(
        name="cudagraph",
        start=load_cuda_graph,
        unavailable=lambda device: None if device == "cuda" else "it runs only on GPUs",
    ),
)
RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in _RUNTIMES}


def program_name(runtime: str, format: Format) -> str:
    """The name of a runtime's program in a format; fp32 is omitted."""
    return runtime if format == "fp32" else f"{runtime}-{format}"


def find_program(name: str) -> tuple[Runtime, Format]:
    """The runtime and the format of the program ``name``. Raises ``InvalidInputError`` for an unknown name."""
    runtime, _, suffix = name.partition("-")
    format_name = suffix or "fp32"
    if runtime not in RUNTIMES or format_name not in RUNTIMES[runtime].formats:
        raise InvalidInputError(f"there is no program {name!r}; there are {', '.join(program_names())}")
    return RUNTIMES[runtime], next(choice for choice in RUNTIMES[runtime].formats if choice == format_name)


def program_names() -> list[str]:
    """The names of all programs, whether available on this machine or not."""
    return [program_name(name, format) for name, runtime in RUNTIMES.items() for format in runtime.formats]
