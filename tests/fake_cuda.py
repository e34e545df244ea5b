"""A fake GPU: tensors stored on the CPU that report the device ``cuda:0`` and cannot be mixed with CPU tensors.

It shows, without a GPU, that code keeps all tensors on the device that it was given, and that the branches for CUDA
run. It does not show what CUDA's kernels return, nor how fast they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
_aten = torch.ops.aten
_TAKE_CPU_INDICES = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


class FakeCudaTensor(Tensor):
    """Wraps ``inner``, a tensor on the CPU. torch's C++ code sees a ``meta`` tensor, Python code a CUDA tensor."""

    inner: Tensor
    device = CUDA
    is_cuda, is_cpu, is_meta = True, False, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> FakeCudaTensor:
        wrapper: FakeCudaTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="meta",
        )
        wrapper.inner = inner
        return wrapper

    def __repr__(self) -> str:
        return f"{self.inner!r} on {CUDA}"

    def tolist(self) -> Any:
        return self.inner.tolist()

    # Indices become tensors here, because C++ would create them on ``meta``, where they have no values.
    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_wrap_index(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_wrap_index(key), _wrap_scalar(value, self.dtype))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _FakeCudaMode(TorchDispatchMode):
    """Intercepts functions that create tensors on a device without a tensor argument."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    """Calls an operator on the wrapped CPU tensors; the result is on the device where torch would have put it."""
    flat = tree_flatten((args, kwargs))[0]
    fake_inputs = [value for value in flat if isinstance(value, FakeCudaTensor)]
    requested_device = next((value for value in flat if isinstance(value, torch.device)), None)
    if requested_device is not None:
        # Backward formulas in C++ create their tensors on the device that they see: ``meta``.
        inside = bool(fake_inputs) or torch._C._current_graph_task_id() != -1
        result_on_cuda = requested_device.type == "cuda" or (requested_device.type == "meta" and inside)
    else:
        result_on_cuda = isinstance(args[0], FakeCudaTensor) if func is _aten.copy_.default else bool(fake_inputs)
    if func is _aten.where.self:
        # C++ passes a number as a 0-d tensor on ``meta``. In a backward pass it is zero; otherwise ``choose`` below has
        # already wrapped it.
        args = tuple(
            torch.zeros_like(v, device="cpu") if _is_real_tensor(v) and v.is_meta and not v.dim() else v for v in args
        )
    if fake_inputs and requested_device is None and func is not _aten.copy_.default:
        other_device_inputs = [
            v for v in flat if _is_real_tensor(v) and v.dim() and not (func in _TAKE_CPU_INDICES and v.device == CPU)
        ]
        if other_device_inputs:
            shapes = ", ".join(f"{tuple(v.shape)} on {v.device}" for v in other_device_inputs)
            raise RuntimeError(f"{func}: expected all tensors to be on {CUDA}, and found {shapes}")
    to_cpu = requested_device is not None and (bool(fake_inputs) or result_on_cuda)
    cpu_arguments = tree_map(lambda v: v.inner if isinstance(v, FakeCudaTensor) else v, (args, kwargs))
    if to_cpu:
        cpu_arguments = tree_map(lambda v: CPU if isinstance(v, torch.device) else v, cpu_arguments)
    out = func(*cpu_arguments[0], **cpu_arguments[1])
    if not result_on_cuda:
        return out
    # An in-place operator returns its input, and so the same wrapper.
    wrapper_by_inner = {id(value.inner): value for value in fake_inputs}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return wrapper_by_inner[id(value)] if id(value) in wrapper_by_inner else FakeCudaTensor(value)

    return tree_map(wrap, out)


def _is_real_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, FakeCudaTensor)


def _wrap_index(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_wrap_index(part) for part in key)
    return FakeCudaTensor(torch.tensor(key)) if isinstance(key, (list, range, np.ndarray)) else key


def _wrap_scalar(value: Any, dtype: torch.dtype | None) -> Any:
    return FakeCudaTensor(torch.tensor(value, dtype=dtype)) if isinstance(value, (bool, int, float)) else value


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Inside the context, the device ``cuda`` is the fake GPU. Queries to the driver are answered in Python."""
    with pytest.MonkeyPatch.context() as patch, _FakeCudaMode():
        _patch_driver_queries(patch)
        _patch_tensor_creation(patch)
        yield CUDA


def _patch_driver_queries(patch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {
        "_lazy_init": None,
        "is_available": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_rng_state": torch.zeros(8, dtype=torch.uint8),
        "set_rng_state": None,
        "manual_seed_all": None,
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    patch.setattr(torch.backends.cudnn, "is_acceptable", lambda _: False)
    patch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None, raising=False)
    # A FakeCudaTensor cannot be created in inference mode. Decorators already hold instances, so the class is patched.
    enter, leave = torch.no_grad.__enter__, torch.no_grad.__exit__
    patch.setattr(torch.inference_mode, "__enter__", enter)
    patch.setattr(torch.inference_mode, "__exit__", leave)


def _patch_tensor_creation(patch: pytest.MonkeyPatch) -> None:
    """Patches functions that read ``device`` in C++ before they call an operator."""
    to, where = Tensor.to, torch.where

    def resolve_device(value: Any) -> Any:
        return CUDA if isinstance(value, (str, torch.device)) and str(value) == "cuda" else value

    def move(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], FakeCudaTensor):
            args = (CUDA, args[0].dtype, *args[1:])
        return to(self, *map(resolve_device, args), **{name: resolve_device(value) for name, value in kwargs.items()})

    def with_device(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def create_and_move(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            tensor = create(*args, **kwargs)
            return tensor if device is None else move(tensor, device)

        return create_and_move

    tensor = with_device(torch.tensor)

    def new_tensor(self: Tensor, data: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
        return tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    def choose(condition: Tensor, *choices: Any) -> Any:
        if isinstance(condition, FakeCudaTensor):
            dtype = next((choice.dtype for choice in choices if isinstance(choice, Tensor)), None)
            choices = tuple(_wrap_scalar(choice, dtype) for choice in choices)
        return where(condition, *choices)

    patch.setattr(torch, "tensor", tensor)
    patch.setattr(torch, "as_tensor", with_device(torch.as_tensor))
    patch.setattr(torch, "where", choose)
    patch.setattr(Tensor, "where", lambda self, condition, other: choose(condition, self, other))
    patch.setattr(Tensor, "to", move)
    patch.setattr(Tensor, "pin_memory", lambda self: self)
    patch.setattr(Tensor, "cuda", lambda self, *_, **__: move(self, CUDA))
    patch.setattr(Tensor, "new_tensor", new_tensor)
