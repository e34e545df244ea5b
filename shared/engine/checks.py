"""What is looked at before the first step, so that a fault is told at once and not after hours."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import shared
from shared.comms.group import Group
from shared.data.dataset import Dataset
from shared.data.order import Indices, Key
from shared.errors import InvalidInputError
from shared.recipe import Recipe
from shared.recipe_file import component_classes, differences, to_mapping


def refuse_impure_batches(dataset: Dataset, indices: Indices, key: Key) -> None:
    """Refuses a data set that makes two batches of one key, or draws from a global generator.

    Such a run is another one after every resume, and on every number of processes, without a word.
    """
    kind = type(dataset).__name__
    before = _global_generators()
    one, other = dataset.batch(indices, key), dataset.batch(indices, key)
    if drawn := [name for name, state in _global_generators().items() if not _equal(state, before[name])]:
        raise InvalidInputError(
            f"the data set {kind} draws from the global generator of {' and '.join(drawn)}, so that no run with it "
            "could be repeated or resumed; draw from key.generator(index)"
        )
    if not _equal(one, other):
        raise InvalidInputError(
            f"the data set {kind} makes two different batches of the same indices and key, so that no run with it "
            "could be repeated or resumed; draw from key.generator(index) alone"
        )


def _global_generators() -> dict[str, Any]:
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "random": random.getstate()}


def _equal(one: Any, other: Any) -> bool:
    """Whether two nested batches hold the same; objects of unknown kinds count as equal."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and _same_bits(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if is_dataclass(one):
        return all(_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, (str, bytes, int, float, bool)):
        return one == other or (one != one and other != other)
    return True


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.layout is torch.strided and not one.is_quantized:
        return torch.equal(one.nan_to_num(), other.nan_to_num()) if one.is_floating_point() else torch.equal(one, other)
    return True


def refuse_different_processes(recipe: Recipe, model: nn.Module, checkpoint: str, group: Group) -> None:
    """Refuses to start where the processes were not given the same: recipe, model, checkpoint or installed sources."""
    if group.world == 1:
        return
    shapes = {name: (tuple(value.shape), str(value.dtype)) for name, value in model.state_dict().items()}
    facts = {
        "settings": to_mapping(recipe),
        "classes": component_classes(recipe),
        "shapes": {name: f"{shape} {dtype}" for name, (shape, dtype) in shapes.items()},
        "facts": {
            "the number of processes": group.world,
            "the checkpoint to go on from": checkpoint or "none",
            "torch's version": torch.__version__,
            "the hash of the installed sources": sources_digest(recipe),
        },
    }
    told = group.gather(facts)
    keys = [json.dumps(there, sort_keys=True) for there in told]
    usual = keys.index(Counter(keys).most_common(1)[0][0])
    for rank, there in enumerate(told):
        found = [phrase for name in facts for phrase in differences(there[name], told[usual][name])]
        if found:
            more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
            raise InvalidInputError(
                f"process {rank} was started with something else than process {usual}: {'; '.join(found[:3])}{more}"
            )


def sources_digest(recipe: Recipe) -> str:
    """SHA-256 of the Python sources of the runtime and of the packages that the recipe's components come from."""
    packages = {shared.__name__, *(name.split(".")[0] for name in component_classes(recipe).values())}
    digest = hashlib.sha256()
    for package in sorted(packages):
        for root in getattr(sys.modules.get(package), "__path__", ()):
            for file in sorted(Path(root).rglob("*.py")):
                digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
