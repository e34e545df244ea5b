"""The interface of a data set (its length, and a batch by indices), and how a batch is moved to the device."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from shared.data.order import Indices, Key
from shared.errors import InvalidInputError

Batch: TypeAlias = Any
"""Tensors by name, usually a dictionary.

Mappings, lists, tuples, named tuples and dataclasses of tensors may be nested in any way, and may also contain plain
Python values and numpy arrays. Any other object with tensors must have a method ``to(device)`` (mmengine's data
elements, Hugging Face's ``BatchEncoding``, packed sequences).
"""


class Dataset(Protocol):
    """Samples that are collated into a batch by their indices, an int64 array of shape (samples,).

    ``batch`` must be a pure function of its arguments. Augmentation may draw random numbers only from
    ``key.generator(index)``; with ``key=None`` (evaluation) there is no augmentation.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Indices, key: Key | None) -> Batch: ...


def to_device(value: Any, device: torch.device) -> Any:
    """Copies every tensor in a nested batch to ``device``, asynchronously if the source is pinned.

    Raises ``InvalidInputError`` for an object that has tensors but cannot be moved; they would silently stay on their
    device.
    """

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=True)
        moved = leaf.to(device)
        return leaf if moved is None else moved

    return _map_tensors(value, move, "to", "batch")


def pinned(value: Any) -> Any:
    """The nested batch in page-locked memory, from which copies to the GPU overlap with computation."""
    return _map_tensors(value, lambda leaf: leaf.pin_memory(), "pin_memory", "batch")


def _map_tensors(value: Any, function: Callable[[Any], Any], method: str, where: str) -> Any:
    """``value`` with ``function`` applied to its tensors and to objects that have ``method``.

    ``where`` is the position of ``value`` in the batch, for error messages.
    """
    if isinstance(value, Tensor):
        return function(value)
    if value is None or isinstance(value, (str, bytes, int, float, complex, type)):
        return value
    if callable(getattr(value, method, None)):
        return function(value)
    if isinstance(value, Mapping):
        items = {name: _map_tensors(item, function, method, f"{where}[{name!r}]") for name, item in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return items
        # Another dictionary type keeps its type and its other attributes.
        copied_mapping = copy.copy(value)
        for name, item in items.items():
            copied_mapping[name] = item
        return copied_mapping
    if isinstance(value, (list, tuple)):
        moved = [_map_tensors(item, function, method, f"{where}[{number}]") for number, item in enumerate(value)]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    if dataclasses.is_dataclass(value):
        copied: Any = copy.copy(value)
        for field in dataclasses.fields(value):
            item = _map_tensors(getattr(value, field.name), function, method, f"{where}.{field.name}")
            object.__setattr__(copied, field.name, item)
        return copied
    # ``pinned`` may skip objects: ``to_device`` moves or refuses them afterwards.
    if method == "to" and _contains_tensors(value):
        raise InvalidInputError(
            f"{where} is a {type(value).__name__} with tensors that cannot be moved to the device; give it a method "
            "to(device), or make it a dataclass, a mapping or a tuple"
        )
    return value


def _contains_tensors(value: Any, depth: int = 3) -> bool:
    if isinstance(value, Tensor):
        return True
    if depth == 0 or isinstance(value, (str, bytes, int, float, type)):
        return False
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = list(value)
    else:
        slots = [getattr(value, name, None) for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = [*getattr(value, "__dict__", {}).values(), *slots]
    return any(_contains_tensors(part, depth - 1) for part in parts)
