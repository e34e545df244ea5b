"""Programs of torch's compiler: compiled ahead of time into ``aotinductor.pt2``, or when a program is loaded.

Both need a C++ compiler on a CPU. They are used on request, and never required.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.deploy.programs.cuda_graph import capture, graph_compute
from shared.deploy.programs.machine import vector_instructions
from shared.deploy.programs.program import Compute, Format, Placement, ProgramError, Source, Tensors
from shared.deploy.programs.torch_eager import autocast_dtype, load_eager, name_outputs

if TYPE_CHECKING:
    from torch import Tensor

    from shared.app import DenseNetwork

_COMPILERS = ("g++", "clang++", "c++")


def find_compiler() -> str | None:
    """The path of the C++ compiler that torch would call, or None."""
    named = os.environ.get("CXX")
    return next((found for name in (named, *_COMPILERS) if name and (found := shutil.which(name))), None)


def missing_compiler(device: str) -> str | None:
    """The reason why torch cannot compile for the device, or None if it can."""
    return "there is no C++ compiler (g++ or clang++)" if device == "cpu" and find_compiler() is None else None


class AotInductor:
    """fp32, compiled from torch.export. The file holds a shared object for this kind of CPU."""

    name = "aotinductor"
    package = "torch"
    reads_onnx = False
    formats: tuple[Format, ...] = ("fp32",)

    def file(self, format: Format) -> str | None:
        return "aotinductor.pt2"

    def why_not(self, format: Format, device: str) -> str | None:
        return None if device == "cpu" else "it is made for the CPU"

    def write(self, dense: DenseNetwork, folder: Path, format: Format) -> None:
        """Exports and compiles the network. Raises ``ProgramError`` if there is no compiler."""
        import torch

        from shared.deploy.onnx_network import dynamic_shapes

        if (reason := missing_compiler("cpu")) is not None:
            raise ProgramError(f"aotinductor cannot be made: {reason}")
        module = dense.module.cpu().eval()
        example = tuple(value.cpu() for value in dense.inputs.values())
        with torch.no_grad():
            exported = torch.export.export(module, example, dynamic_shapes=dynamic_shapes(dense))
            torch._inductor.aoti_compile_and_package(
                exported,
                package_path=str(folder / "aotinductor.pt2"),
                inductor_configs={"aot_inductor.metadata": _package_metadata(dense)},
            )

    def load(self, source: Source, format: Format, place: Placement) -> Compute:
        import torch
        from torch._C import _aoti

        assert source.file is not None
        loader: Any = _aoti.AOTIModelPackageLoader  # its type stub lacks load_metadata_from_package
        remedy = "make it again: trivium programs --make aotinductor"
        try:
            # Loading executes compiled code, so the instructions that it needs are checked first.
            metadata = loader.load_metadata_from_package(str(source.file), "model")
            if not {"inputs", "outputs", "instructions"} <= metadata.keys():
                raise ProgramError(f"{source.file.name} names neither its inputs nor the CPU that it is for; {remedy}")
            if missing := sorted(set(metadata["instructions"].split()) - vector_instructions()):
                raise ProgramError(f"{source.file.name} needs {', '.join(missing)}, which this CPU lacks; {remedy}")
            package = torch._inductor.aoti_load_package(str(source.file))
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ProgramError(f"torch {torch.__version__} cannot load {source.file.name}: {reason}") from error
        input_names, output_names = metadata["inputs"].split("\n"), metadata["outputs"].split("\n")

        def compute(inputs: Tensors) -> dict[str, Tensor]:
            with torch.inference_mode():
                return name_outputs(output_names, package(*(inputs[name] for name in input_names)))

        return compute


def _package_metadata(dense: DenseNetwork) -> dict[str, str]:
    """The metadata of a package: its input names in order, its output names, and this CPU's vector instructions.

    torch compiles with ``-march=native``, so the package may contain any of these instructions. ``AOTI_CPU_ISA``, which
    torch adds, names only those that it chose for its own loops.
    """
    return {
        "inputs": "\n".join(dense.inputs),
        "outputs": "\n".join(dense.outputs),
        "instructions": " ".join(sorted(vector_instructions())),
    }


def load_compiled(dense: DenseNetwork, format: Format, device: str) -> Compute:
    """Returns a computation by torch.compile. The first call of each input shape takes the time of a compilation.

    On a GPU each shape is compiled separately and captured in a CUDA graph.
    """
    import torch

    if device == "cuda":
        return graph_compute(dense, autocast_dtype(format), device, capture, partial(torch.compile, dynamic=False))
    compiled: Any = torch.compile(dense.module, dynamic=True)
    return load_eager(replace(dense, module=compiled), format, device)
