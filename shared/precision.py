"""In which number format the forward pass runs. Torch is imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
"""``auto`` is bf16 on a GPU that has it and fp32 elsewhere."""


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The autocast type for ``precision`` on ``device``; None where the pass runs in fp32."""
    import torch

    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """The context of the forward pass; does nothing for ``dtype=None``."""
    import torch

    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
