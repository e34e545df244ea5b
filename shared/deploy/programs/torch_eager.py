"""Eager torch: runs the network's own modules. All other programs are compared with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.deploy.programs.program import Compute, Format, Placement, Source, Tensors
from shared.precision import autocast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shared.app import DenseNetwork


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchModules:
    """A runtime that computes with the network's own modules. It needs only the weights, so it writes no file.

    ``fp16`` is for GPUs only. ``start`` returns the computation; ``unavailable`` returns the reason why a device has
    none, or None.
    """

    name: str
    package: str = "torch"
    start: Callable[[DenseNetwork, Format, str], Compute]
    unavailable: Callable[[str], str | None] = lambda device: None
    formats: tuple[Format, ...] = ("fp32", "bf16", "fp16")
    reads_onnx: bool = False

    def file(self, format: Format) -> str | None:
        return None

    def why_not(self, format: Format, device: str) -> str | None:
        return "fp16 runs only on GPUs" if (format, device) == ("fp16", "cpu") else self.unavailable(device)

    def write(self, dense: DenseNetwork, folder: Path, format: Format) -> None:
        """Does nothing: the weights are in the artifact."""

    def load(self, source: Source, format: Format, place: Placement) -> Compute:
        return self.start(source.build(), format, place.device)


def load_eager(dense: DenseNetwork, format: Format = "fp32", device: str = "cpu") -> Compute:
    """Returns a computation by ``dense.module``, moved to ``device``. Outputs are in fp32 whatever the format."""
    import torch

    torch_device = torch.device(device)
    module = dense.module.to(torch_device).eval()
    input_names, output_names, dtype = list(dense.inputs), list(dense.outputs), autocast_dtype(format)

    def compute(inputs: Tensors) -> dict[str, Tensor]:
        with torch.inference_mode(), autocast(dtype, torch_device):
            outputs = name_outputs(output_names, module(*(inputs[name] for name in input_names)))
        return {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}

    return compute


def name_outputs(names: Sequence[str], outputs: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
    """The outputs of a module by name; a module with one output may return the tensor itself."""
    import torch

    return dict(zip(names, [outputs] if isinstance(outputs, torch.Tensor) else outputs, strict=True))


def autocast_dtype(format: Format) -> torch.dtype | None:
    """The dtype for autocast; None for fp32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(format)
