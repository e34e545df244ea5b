"""A fake GPU: tensors that lie on the CPU, say that they lie on ``cuda:0``, and do not mix with those that lie
on the CPU and say so.

It shows, where there is no GPU, that code computes with everything on the one device that it was given, and that the
ways which it takes on CUDA alone run. It does not show what CUDA's kernels give, nor how fast.
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
    """Holds ``inner``, a tensor on the CPU. torch's C++ takes it for one on ``meta``, Python for one on CUDA."""

    inner: Tensor
    device = CUDA
    is_cuda, is_cpu, is_meta = True, False, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> FakeCudaTensor:
        made: FakeCudaTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="meta",
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"{self.inner!r} on {CUDA}"

    def tolist(self) -> Any:
        return self.inner.tolist()

    # What Python indexes by is made a tensor here: C++ would make it on ``meta``, where it has no values.
    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_on_cuda(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_on_cuda(key), _scalar(value, self.dtype))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _FakeCudaMode(TorchDispatchMode):
    """Catches what makes tensors from nothing on a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    """Calls an operator on what the tensors hold; what comes out is where torch would have put it."""
    flat = tree_flatten((args, kwargs))[0]
    mine = [value for value in flat if isinstance(value, FakeCudaTensor)]
    asked = next((value for value in flat if isinstance(value, torch.device)), None)
    if asked is not None:
        # A gradient's formula, in C++, makes its tensors on the device that it sees.
        inside = bool(mine) or torch._C._current_graph_task_id() != -1
        on_cuda = asked.type == "cuda" or (asked.type == "meta" and inside)
    else:
        on_cuda = isinstance(args[0], FakeCudaTensor) if func is _aten.copy_.default else bool(mine)
    if func is _aten.where.self:
        # C++ hands a number on as a scalar on meta. In a gradient it is zero; elsewhere ``choose`` has seen to it.
        args = tuple(torch.zeros_like(v, device="cpu") if _plain(v) and v.is_meta and not v.dim() else v for v in args)
    if mine and asked is None and func is not _aten.copy_.default:
        strangers = [v for v in flat if _plain(v) and v.dim() and not (func in _TAKE_CPU_INDICES and v.device == CPU)]
        if strangers:
            shapes = ", ".join(f"{tuple(v.shape)} on {v.device}" for v in strangers)
            raise RuntimeError(f"{func}: expected all tensors to be on {CUDA}, and found {shapes}")
    to_cpu = asked is not None and (bool(mine) or on_cuda)
    held = tree_map(lambda v: v.inner if isinstance(v, FakeCudaTensor) else v, (args, kwargs))
    if to_cpu:
        held = tree_map(lambda v: CPU if isinstance(v, torch.device) else v, held)
    out = func(*held[0], **held[1])
    if not on_cuda:
        return out
    changed = {id(value.inner): value for value in mine}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return changed[id(value)] if id(value) in changed else FakeCudaTensor(value)

    return tree_map(wrapped, out)


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, FakeCudaTensor)


def _on_cuda(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_on_cuda(part) for part in key)
    return FakeCudaTensor(torch.tensor(key)) if isinstance(key, (list, range, np.ndarray)) else key


def _scalar(value: Any, dtype: torch.dtype | None) -> Any:
    return FakeCudaTensor(torch.tensor(value, dtype=dtype)) if isinstance(value, (bool, int, float)) else value


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """In its block, ``cuda`` is the fake GPU. What would ask a driver is answered in Python instead."""
    with pytest.MonkeyPatch.context() as patch, _FakeCudaMode():
        _answer_for_the_driver(patch)
        _make_on_cuda(patch)
        yield CUDA


def _answer_for_the_driver(patch: pytest.MonkeyPatch) -> None:
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
    # A tensor of this kind cannot be made in inference mode; decorators have made theirs of the class already.
    enter, leave = torch.no_grad.__enter__, torch.no_grad.__exit__
    patch.setattr(torch.inference_mode, "__enter__", enter)
    patch.setattr(torch.inference_mode, "__exit__", leave)


def _make_on_cuda(patch: pytest.MonkeyPatch) -> None:
    """What reads ``device`` in C++ before it comes to an operator."""
    to, where = Tensor.to, torch.where

    def device_of(value: Any) -> Any:
        return CUDA if isinstance(value, (str, torch.device)) and str(value) == "cuda" else value

    def move(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], FakeCudaTensor):
            args = (CUDA, args[0].dtype, *args[1:])
        return to(self, *map(device_of, args), **{name: device_of(value) for name, value in kwargs.items()})

    def made_by(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor if device is None else move(tensor, device)

        return made

    tensor = made_by(torch.tensor)

    def new_tensor(self: Tensor, data: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
        return tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    def choose(condition: Tensor, *choices: Any) -> Any:
        if isinstance(condition, FakeCudaTensor):
            dtype = next((choice.dtype for choice in choices if isinstance(choice, Tensor)), None)
            choices = tuple(_scalar(choice, dtype) for choice in choices)
        return where(condition, *choices)

    patch.setattr(torch, "tensor", tensor)
    patch.setattr(torch, "as_tensor", made_by(torch.as_tensor))
    patch.setattr(torch, "where", choose)
    patch.setattr(Tensor, "where", lambda self, condition, other: choose(condition, self, other))
    patch.setattr(Tensor, "to", move)
    patch.setattr(Tensor, "pin_memory", lambda self: self)
    patch.setattr(Tensor, "cuda", lambda self, *_, **__: move(self, CUDA))
    patch.setattr(Tensor, "new_tensor", new_tensor)
