"""What torch's compiler makes: ahead of time into ``aotinductor.pt2``, or when a program is loaded.

Both need a C++ compiler on a CPU: they are there where they are asked for, and never needed.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.deploy.programs.cuda_graph import capture, graphed
from shared.deploy.programs.machine import vector_instructions
from shared.deploy.programs.program import Compute, Format, Placement, ProgramError, Source, Tensors
from shared.deploy.programs.torch_eager import autocast_dtype
from shared.precision import autocast

if TYPE_CHECKING:
    from torch import Tensor

    from shared.app import DenseNetwork

_COMPILERS = ("g++", "clang++", "c++")


def compiler() -> str | None:
    """The C++ compiler that torch would call, or None."""
    named = os.environ.get("CXX")
    return next((found for name in (named, *_COMPILERS) if name and (found := shutil.which(name))), None)


def without_compiler(device: str) -> str | None:
    """Why torch cannot compile for the device, None where it can."""
    return "there is no C++ compiler (g++ or clang++)" if device == "cpu" and compiler() is None else None


class AotInductor:
    """fp32, from torch.export. The file holds a shared object for this kind of machine."""

    name = "aotinductor"
    reads_onnx = False
    formats: tuple[Format, ...] = ("fp32",)

    def version(self) -> str:
        from importlib.metadata import version

        return version("torch")

    def file(self, format: Format) -> str | None:
        return "aotinductor.pt2"

    def why_not(self, format: Format, device: str) -> str | None:
        return None if device == "cpu" else "it is made for the CPU"

    def write(self, dense: DenseNetwork, folder: Path, format: Format) -> None:
        """Exports and compiles the network; raises ``ProgramError`` where there is no compiler."""
        import torch

        from shared.deploy.onnx_network import dynamic_shapes

        if (reason := without_compiler("cpu")) is not None:
            raise ProgramError(f"aotinductor cannot be made: {reason}")
        module = dense.module.cpu().eval()
        example = tuple(value.cpu() for value in dense.inputs.values())
        with torch.no_grad():
            exported = torch.export.export(module, example, dynamic_shapes=dynamic_shapes(dense))
            torch._inductor.aoti_compile_and_package(
                exported,
                package_path=str(folder / "aotinductor.pt2"),
                inductor_configs={"aot_inductor.metadata": _described(dense)},
            )

    def load(self, source: Source, format: Format, place: Placement) -> Compute:
        import torch
        from torch._C import _aoti

        assert source.file is not None
        loader: Any = _aoti.AOTIModelPackageLoader  # whose stub leaves the function out
        again = "make it again: trivium programs --make aotinductor"
        try:
            # Loading executes what the compiler wrote, so what that needs is read before.
            told = loader.load_metadata_from_package(str(source.file), "model")
            if not {"inputs", "outputs", "instructions"} <= told.keys():
                raise ProgramError(f"{source.file.name} names neither its inputs nor the CPU that it is for; {again}")
            if missing := sorted(set(told["instructions"].split()) - vector_instructions()):
                raise ProgramError(f"{source.file.name} needs {', '.join(missing)}, which this CPU lacks; {again}")
            package = torch._inductor.aoti_load_package(str(source.file))
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ProgramError(f"torch {torch.__version__} cannot load {source.file.name}: {reason}") from error
        names, outputs = told["inputs"].split("\n"), told["outputs"].split("\n")

        def compute(inputs: Tensors) -> dict[str, Tensor]:
            with torch.inference_mode():
                found = package(*(inputs[name] for name in names))
            return dict(zip(outputs, [found] if isinstance(found, torch.Tensor) else found, strict=True))

        return compute


def _described(dense: DenseNetwork) -> dict[str, str]:
    """What a package says of itself.

    The names of its inputs in the order in which it takes them, those of its outputs, and the vector instructions of
    this CPU: torch compiles with ``-march=native``, so that any of them may be in the package. ``AOTI_CPU_ISA``, which
    torch adds, has those alone that it chose for its own loops.
    """
    return {
        "inputs": "\n".join(dense.inputs),
        "outputs": "\n".join(dense.outputs),
        "instructions": " ".join(sorted(vector_instructions())),
    }


def compiled(dense: DenseNetwork, format: Format, device: str) -> Compute:
    """torch.compile as the program is loaded: the first call of each shape takes as long as a compiler does.

    On a GPU each shape is compiled for itself and captured in a graph.
    """
    import torch

    place = torch.device(device)
    if place.type == "cuda":
        return graphed(dense, autocast_dtype(format), device, capture, partial(torch.compile, dynamic=False))
    module = torch.compile(dense.module.to(place).eval(), dynamic=True)
    names, outputs, dtype = list(dense.inputs), list(dense.outputs), autocast_dtype(format)

    def compute(inputs: Tensors) -> dict[str, Tensor]:
        with torch.no_grad(), autocast(dtype, place):
            found = module(*(inputs[name] for name in names))
        found = [found] if isinstance(found, torch.Tensor) else found
        return {name: value.float() for name, value in zip(outputs, found, strict=True)}

    return compute
