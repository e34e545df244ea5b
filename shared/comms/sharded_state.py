"""Gathers sharded tensors (torch's ``DTensor``) for a checkpoint, and shards the tensors of a checkpoint again.

Checkpoints contain full tensors by name, whatever the strategy, so a run can resume with a different strategy or a
different number of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def is_sharded(value: Any) -> bool:
    """Whether the value is a sharded tensor, of which this process holds one shard."""
    # If nothing was sharded, the module of DTensor need not be imported.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_tensor(tensor: Any) -> Any:
    """This process's shard of a sharded tensor; any other value unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def gather_tensors(value: Any, *, keep: bool) -> Any:
    """``value`` with full tensors on the host in place of sharded ones, or None in their place without ``keep``.

    Every process must call it with the same structure. Tensors are gathered one by one, so that a process without
    ``keep`` never holds more than one full tensor.
    """
    if is_sharded(value):
        full = value.full_tensor().cpu()
        return full if keep else None
    if isinstance(value, Mapping):
        return {name: gather_tensors(part, keep=keep) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([gather_tensors(part, keep=keep) for part in value])
    return value


def shard_like(value: Any, own: Any) -> Any:
    """``value`` with its tensors sharded like the tensors at the same position in ``own``."""
    if is_sharded(own):
        return _shard(value, own)
    if isinstance(value, Mapping) and isinstance(own, Mapping):
        return {name: shard_like(part, own.get(name)) for name, part in value.items()}
    return value


def shard_optimizer_state(value: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state dict; tensors with the shape of a sharded parameter are sharded like the parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for number, parameter_state in value["state"].items():
        parameter = parameters[int(number)]
        state[number] = {
            name: _shard(part, parameter)
            if is_sharded(parameter) and isinstance(part, Tensor) and part.shape == parameter.shape
            else part
            for name, part in parameter_state.items()
        }
    return {**value, "state": state}


def _shard(full: Tensor, like: Any) -> Tensor:
    """This process's shard of the full tensor ``full``, sharded like ``like``. Every process must have ``full``."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
