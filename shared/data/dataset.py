"""What the engine asks of a data set: its length, and a batch by indices; and how a batch gets to the device."""

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
"""Tensors under names, most often a dictionary.

Mappings, lists, tuples, named tuples and dataclasses of tensors may be nested in any way, and hold plain Python values
and numpy arrays besides. Whatever else holds tensors must have a method ``to(device)`` (mmengine's data elements,
Hugging Face's ``BatchEncoding``, packed sequences).
"""


class Dataset(Protocol):
    """Samples that can be gathered into a batch by their indices.

    ``batch`` is a pure function of its arguments. Augmentation draws from ``key.generator(index)`` alone; with
    ``key=None`` (evaluation) nothing is augmented.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Indices, key: Key | None) -> Batch: ...


def to_device(value: Any, device: torch.device) -> Any:
    """Copies every tensor in a nested batch to ``device``, without waiting where the source is pinned.

    Refuses an object that holds tensors and cannot be moved: they would stay where they are without a word.
    """

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=True)
        moved = leaf.to(device)
        return leaf if moved is None else moved

    return _mapped(value, move, "to", "batch")


def pinned(value: Any) -> Any:
    """The same nested batch in page-locked memory, from which copies to the GPU run beside computation."""
    return _mapped(value, lambda leaf: leaf.pin_memory(), "pin_memory", "batch")


def _mapped(value: Any, function: Callable[[Any], Any], method: str, where: str) -> Any:
    """``value`` with ``function`` applied to its tensors and to the objects that have ``method`` themselves."""
    if isinstance(value, Tensor):
        return function(value)
    if value is None or isinstance(value, (str, bytes, int, float, complex, type)):
        return value
    if callable(getattr(value, method, None)):
        return function(value)
    if isinstance(value, Mapping):
        items = {name: _mapped(item, function, method, f"{where}[{name!r}]") for name, item in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return items
        # Another kind of dictionary stays that kind, with whatever else it holds.
        twin = copy.copy(value)
        for name, item in items.items():
            twin[name] = item
        return twin
    if isinstance(value, (list, tuple)):
        moved = [_mapped(item, function, method, f"{where}[{number}]") for number, item in enumerate(value)]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    if dataclasses.is_dataclass(value):
        copied: Any = copy.copy(value)
        for field in dataclasses.fields(value):
            item = _mapped(getattr(value, field.name), function, method, f"{where}.{field.name}")
            object.__setattr__(copied, field.name, item)
        return copied
    # ``pinned`` may leave out what ``to_device`` moves or refuses afterwards.
    if method == "to" and _holds_tensors(value):
        raise InvalidInputError(
            f"{where} is a {type(value).__name__} whose tensors would stay where they are; give it a method "
            "to(device), or make it a dataclass, a mapping or a tuple"
        )
    return value


def _holds_tensors(value: Any, depth: int = 3) -> bool:
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
    return any(_holds_tensors(part, depth - 1) for part in parts)
