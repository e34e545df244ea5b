"""The number format of the forward pass, in training and in inference. Torch is imported only when used."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
"""``auto`` is bf16 on a GPU or CPU that is faster in it, else fp32."""


class ChosenPrecision(NamedTuple):
    """``dtype`` is the autocast type, None if the pass runs in fp32; ``reason`` says why it was chosen, for the log."""

    dtype: torch.dtype | None
    reason: str

    @property
    def name(self) -> str:
        """``fp32``, ``bf16`` or ``fp16``."""
        import torch

        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]


@cache
def cpu_has_bf16() -> bool:
    """Whether this processor has bf16 instructions (AVX512-BF16 or AMX), so that bf16 is not emulated."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@cache
def cpu_gains_from_bf16() -> bool:
    """Whether this processor is faster in bf16 than in fp32, in training and inference.

    True for AMX and for AVX512-BF16 on AMD. On Intel, AVX512-BF16 multiplies at half the rate of the fp32 instructions:
    convolutions and matrix products took 1.7 times as long on a Xeon without AMX (torch 2.14.1, oneDNN 3.12).
    """
    import torch

    capabilities = torch.cpu.get_capabilities()
    return cpu_has_bf16() and bool(capabilities.get("amx_bf16") or "Intel" not in str(capabilities.get("cpu_name")))


def choose_precision(precision: Precision, device: torch.device, begun: str = "") -> ChosenPrecision:
    """The format of the forward pass for ``precision`` on ``device``.

    ``begun`` is the format of the first steps if the run is resumed: ``auto`` then keeps it even on a device that would
    choose another, because a change of format would make it a different run. Raises ``InvalidInputError`` for fp16 on a
    CPU, which only emulates it.
    """
    import torch

    if precision == "fp16" and device.type == "cpu":
        raise InvalidInputError("fp16 needs a GPU; on a CPU use --precision fp32 or --precision bf16")
    if precision != "auto":
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return ChosenPrecision(dtype, f"{precision}, set in the recipe")
    chosen = _fastest(device)
    if begun in ("", chosen.name):
        return chosen
    dtype = torch.bfloat16 if begun == "bf16" else None
    return ChosenPrecision(dtype, f"{begun}, in which the run began (a new run would use {chosen.name} here)")


def _fastest(device: torch.device) -> ChosenPrecision:
    """The format that ``auto`` selects on the device."""
    import torch

    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return ChosenPrecision(torch.bfloat16, "bf16, which this GPU supports")
        return ChosenPrecision(None, "fp32: this GPU has no bf16")
    if device.type == "cpu" and cpu_gains_from_bf16():
        return ChosenPrecision(torch.bfloat16, "bf16, which this CPU supports (AVX512-BF16 or AMX)")
    if device.type == "cpu" and cpu_has_bf16():
        return ChosenPrecision(None, "fp32: this CPU, an Intel without AMX, is slower in bf16")
    return ChosenPrecision(None, "fp32: this CPU has neither AVX512-BF16 nor AMX")


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The autocast type for ``precision`` on ``device``; None if the pass runs in fp32."""
    return choose_precision(precision, device).dtype


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """The autocast context of the forward pass; it does nothing if ``dtype`` is None."""
    import torch

    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def refuse_unsupported(model: nn.Module, dtype: torch.dtype | None, device: torch.device) -> None:
    """Raises ``InvalidInputError`` for a recurrent network in a format in which this CPU has no recurrent layers."""
    from torch import nn

    if dtype is None or device.type != "cpu" or cpu_runs_recurrent_layers(dtype):
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            raise InvalidInputError(
                f"this CPU cannot compute the {type(module).__name__} {name} in {str(dtype).removeprefix('torch.')}; "
                "use --precision fp32"
            )


def widen_small_convolutions(model: nn.Module, dtype: torch.dtype | None, device: torch.device) -> None:
    """Makes the convolutions of ``model`` compute in fp32 for inputs on which oneDNN's bf16 gradients are wrong.

    In oneDNN 3.12 on a CPU, the bf16 weight gradients are wrong or written out of bounds for some inputs that are
    narrower than the kernel: a kernel of 3 x 3 x 3 on two slices, or a stride of 2 on a single row.
    """
    import torch
    from torch import nn

    if dtype is not torch.bfloat16 or device.type != "cpu":
        return
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and max(module.kernel_size) > 1:
            # torch calls this between a convolution's forward pass and its padding. A hook cannot leave autocast.
            widened = _Widening(module._conv_forward, module.kernel_size)
            module._conv_forward = widened  # type: ignore[method-assign]


class _Widening:
    """The forward pass of a convolution, in fp32 if the input is narrower than the kernel."""

    def __init__(self, forward: Callable[..., Tensor], kernel: tuple[int, ...]) -> None:
        self.forward, self.kernel = forward, kernel

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        import torch

        if all(
            side >= kernel_side for side, kernel_side in zip(input.shape[-len(self.kernel) :], self.kernel, strict=True)
        ):
            return self.forward(input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return self.forward(input.float(), weight, bias)


@cache
def cpu_runs_recurrent_layers(dtype: torch.dtype) -> bool:
    """Whether this CPU can run recurrent layers in ``dtype``. Found by running one: oneDNN needs more than AVX2."""
    import torch
    from torch import nn

    try:
        with torch.random.fork_rng(devices=()), torch.no_grad(), torch.autocast("cpu", dtype=dtype):
            nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
    except RuntimeError:
        return False
    return True
