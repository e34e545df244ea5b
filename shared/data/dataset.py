"""What the engine asks of a data set: its length, and a batch by indices."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from shared.data.order import Indices, Key

Batch: TypeAlias = dict[str, Any]
"""Named tensors; values may be tensors, or lists, tuples and dictionaries of them, or plain Python values."""


class Dataset(Protocol):
    """Samples that can be gathered into a batch by their indices.

    ``batch`` is a pure function of its arguments. Augmentation draws from ``key.generator(index)`` alone; with
    ``key=None`` (evaluation) nothing is augmented.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Indices, key: Key | None) -> Batch: ...


def to_device(value: Any, device: torch.device) -> Any:
    """Copies every tensor in a nested batch to ``device``, without waiting where the source is pinned."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: to_device(item, device) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    return value


def pinned(value: Any) -> Any:
    """The same nested batch in page-locked memory, from which copies to the GPU run beside computation."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {name: pinned(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(pinned(item) for item in value)
    return value
