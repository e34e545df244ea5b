"""Moving batches to the device: every object with tensors is moved or refused."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from shared.data.dataset import to_device
from shared.errors import InvalidInputError

META = torch.device("meta")
ONE = torch.ones(1)
Pair = namedtuple("Pair", "image label")


@dataclass(frozen=True, slots=True)
class Frame:
    points: torch.Tensor
    name: str
    boxes: list[torch.Tensor] = field(default_factory=list)


class BatchEncoding(UserDict):
    """Like Hugging Face's ``BatchEncoding``: a UserDict with a method ``to``."""

    def to(self, device):
        self.data = {name: value.to(device) for name, value in self.data.items()}
        return self


class Sample:
    def __init__(self, tensor):
        self.tensor = tensor


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Frame):
        return [value.points, *value.boxes]
    parts = value.values() if hasattr(value, "values") else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize(
    "batch",
    [
        {"x": ONE, "names": ["a"], "none": None, "array": np.ones(2)},
        OrderedDict(x=ONE),
        UserDict(x=ONE),
        BatchEncoding(x=ONE),
        MappingProxyType({"x": ONE}),
        Pair(ONE, [ONE]),
        (ONE, [ONE, {"deep": (ONE,)}]),
        Frame(ONE, "first", [ONE]),
        {"frames": [Frame(ONE, "first")]},
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_tensors_in_containers_of_any_kind_move(batch):
    moved = to_device(batch, META)
    assert tensors(moved) and all(tensor.device == META for tensor in tensors(moved))
    if not isinstance(batch, MappingProxyType):
        assert type(moved) is type(batch)


def test_non_tensors_are_kept_and_the_batch_is_not_modified():
    batch = {"frame": Frame(ONE, "first"), "labels": UserDict(y=ONE), "kind": Frame, "array": np.ones(2)}
    moved = to_device(batch, META)
    assert moved["frame"].name == "first" and moved["kind"] is Frame and moved["array"] is batch["array"]
    assert batch["frame"].points.device.type == "cpu" and batch["labels"]["y"].device.type == "cpu"


@pytest.mark.parametrize("thing", [Sample(ONE), Sample({"deep": [ONE]}), Slotted(ONE), {ONE}])
def test_an_object_that_cannot_be_moved_is_refused(thing):
    with pytest.raises(InvalidInputError, match=rf"batch\['sample'\]\[0\] is a {type(thing).__name__} with tensors"):
        to_device({"sample": [thing]}, META)
    assert to_device({"sample": [Sample("no tensor")]}, META)
