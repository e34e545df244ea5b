"""TorchScript: the network traced on its example, for users whose C++ or Java loads ``torchscript.pt``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.deploy.programs.program import Compute, Format, Placement, ProgramError, Source, Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from shared.app import DenseNetwork


class TorchScript:
    """fp32. torch 2.14 calls it deprecated, in favour of torch.export; what loads it is not."""

    name = "torchscript"
    reads_onnx = False
    formats: tuple[Format, ...] = ("fp32",)

    def version(self) -> str:
        from importlib.metadata import version

        return version("torch")

    def file(self, format: Format) -> str | None:
        return "torchscript.pt"

    def why_not(self, format: Format, device: str) -> str | None:
        return None

    def write(self, dense: DenseNetwork, folder: Path, format: Format) -> None:
        """Traces and freezes the network; the names of its outputs go into the file as well."""
        import torch

        jit, module = _jit(), dense.module.cpu().eval()
        with torch.no_grad(), _deprecated():
            traced = jit.trace(module, tuple(value.cpu() for value in dense.inputs.values()), check_trace=False)
            frozen = jit.freeze(traced)
            names = {"inputs.txt": "\n".join(dense.inputs), "outputs.txt": "\n".join(dense.outputs)}
            jit.save(frozen, str(folder / "torchscript.pt"), _extra_files=names)

    def load(self, source: Source, format: Format, place: Placement) -> Compute:
        import torch

        assert source.file is not None
        names: dict[str, str | bytes] = {"inputs.txt": "", "outputs.txt": ""}
        try:
            with _deprecated():
                module = _jit().load(str(source.file), map_location=place.device, _extra_files=names)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ProgramError(f"torch {torch.__version__} cannot read {source.file.name}: {reason}") from error
        inputs, outputs = (_text(names[name]).split("\n") for name in ("inputs.txt", "outputs.txt"))

        def compute(given: Tensors) -> dict[str, Tensor]:
            with torch.inference_mode():
                found = module(*(given[name] for name in inputs))
            return dict(zip(outputs, [found] if isinstance(found, torch.Tensor) else found, strict=True))

        return compute


def _jit() -> Any:
    """``torch.jit``, which has no types."""
    import torch

    return torch.jit


def _text(held: str | bytes) -> str:
    return held.decode() if isinstance(held, bytes) else held


class _deprecated(warnings.catch_warnings):  # noqa: N801 - used as a function, in a with statement
    """Silences what torch says of TorchScript's future, and of shapes that tracing reads as numbers."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.jit.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit.*")
        warnings.filterwarnings("ignore", category=_jit().TracerWarning)
