"""Tensors that are spread over processes (torch's ``DTensor``), on their way into a checkpoint and out of one.

Files hold whole tensors by name, whatever the strategy: a run may go on by another, or on other numbers of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def is_spread(value: Any) -> bool:
    """Whether the value is a tensor of which this process holds a part."""
    # Where nothing was spread, torch's module for it need not be imported.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_part(tensor: Any) -> Any:
    """This process's part of a tensor that is spread, and any other as it is."""
    return tensor.to_local() if is_spread(tensor) else tensor


def gathered(value: Any, *, keep: bool) -> Any:
    """``value`` with whole tensors in place of spread ones, on the host; None in their place where not ``keep``.

    Every process calls it with the same structure. Tensors are gathered one by one, so that no process holds more
    than the whole of one, but for those that keep them.
    """
    if is_spread(value):
        whole = value.full_tensor().cpu()
        return whole if keep else None
    if isinstance(value, Mapping):
        return {name: gathered(part, keep=keep) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([gathered(part, keep=keep) for part in value])
    return value


def spread_as(value: Any, own: Any) -> Any:
    """``value`` with this process's parts of its tensors where those at the same place in ``own`` are spread."""
    if is_spread(own):
        return _spread(value, own)
    if isinstance(value, Mapping) and isinstance(own, Mapping):
        return {name: spread_as(part, own.get(name)) for name, part in value.items()}
    return value


def spread_optimizer_state(value: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state dict, in which what has the shape of a spread parameter is spread as that is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for number, kept in value["state"].items():
        parameter = parameters[int(number)]
        state[number] = {
            name: _spread(part, parameter)
            if is_spread(parameter) and isinstance(part, Tensor) and part.shape == parameter.shape
            else part
            for name, part in kept.items()
        }
    return {**value, "state": state}


def _spread(whole: Tensor, like: Any) -> Tensor:
    """This process's part of ``whole``, which every process holds."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
