"""TorchScript: the network traced on its example input, for C++ or Java programs that load ``torchscript.pt``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.deploy.programs.program import Compute, Format, Placement, ProgramError, Source, Tensors
from shared.deploy.programs.torch_eager import name_outputs

if TYPE_CHECKING:
    from torch import Tensor

    from shared.app import DenseNetwork


class TorchScript:
    """fp32. torch 2.14 deprecates making TorchScript, in favour of torch.export, but not loading it."""

    name = "torchscript"
    package = "torch"
    reads_onnx = False
    formats: tuple[Format, ...] = ("fp32",)

    def file(self, format: Format) -> str | None:
        return "torchscript.pt"

    def why_not(self, format: Format, device: str) -> str | None:
        return None

    def write(self, dense: DenseNetwork, folder: Path, format: Format) -> None:
        """Traces and freezes the network, and stores the names of its inputs and outputs in the same file.

        Raises ``ProgramError`` if torch cannot trace the network.
        """
        import torch

        jit, module = _jit(), dense.module.cpu().eval()
        with torch.no_grad(), _ignore_deprecation():
            try:
                traced = jit.trace(module, tuple(value.cpu() for value in dense.inputs.values()), check_trace=False)
            except Exception as error:
                # Tracing reads every property of every submodule. Those of a network that is a Lightning module, such
                # as pytorch-forecasting's, raise errors of any type without a trainer.
                reason = str(error).strip().partition("\n")[0]
                raise ProgramError(
                    f"torchscript cannot be made: torch {torch.__version__} cannot trace this network ({reason}); use "
                    "onnx or aotinductor"
                ) from error
            frozen = jit.freeze(traced)
            names = {"inputs.txt": "\n".join(dense.inputs), "outputs.txt": "\n".join(dense.outputs)}
            jit.save(frozen, str(folder / "torchscript.pt"), _extra_files=names)

    def load(self, source: Source, format: Format, place: Placement) -> Compute:
        import torch

        assert source.file is not None
        names: dict[str, str | bytes] = {"inputs.txt": "", "outputs.txt": ""}
        try:
            with _ignore_deprecation():
                module = _jit().load(str(source.file), map_location=place.device, _extra_files=names)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ProgramError(f"torch {torch.__version__} cannot read {source.file.name}: {reason}") from error
        input_names, output_names = (_decode(names[name]).split("\n") for name in ("inputs.txt", "outputs.txt"))

        def compute(tensors: Tensors) -> dict[str, Tensor]:
            with torch.inference_mode():
                return name_outputs(output_names, module(*(tensors[name] for name in input_names)))

        return compute


def _jit() -> Any:
    """``torch.jit`` as ``Any``: it has no type annotations."""
    import torch

    return torch.jit


def _decode(content: str | bytes) -> str:
    return content.decode() if isinstance(content, bytes) else content


class _ignore_deprecation(warnings.catch_warnings):  # noqa: N801 - used as a function, in a with statement
    """Ignores torch's deprecation warnings for TorchScript, and tracer warnings on shapes that become constants."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.jit.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit.*")
        warnings.filterwarnings("ignore", category=_jit().TracerWarning)
