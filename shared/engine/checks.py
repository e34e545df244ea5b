"""Checks before the first step, so that an error is reported at once and not after hours of training."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

import shared
from shared.comms.group import Group
from shared.data.dataset import Dataset
from shared.data.order import Indices, Key
from shared.errors import InvalidInputError
from shared.recipe import Recipe
from shared.recipe_file import component_classes, differences, to_mapping


def refuse_unusable_network(model: nn.Module) -> None:
    """Raises ``InvalidInputError`` for what a config built as its network but cannot be trained."""
    refuse_other_type("model", model, nn.Module)
    parameters = dict(model.named_parameters())
    if lazy := next((name for name, value in parameters.items() if isinstance(value, UninitializedParameter)), None):
        raise InvalidInputError(
            f"the network's parameter {lazy} has no shape yet, because its layer is lazy; call the network on an "
            "example where the recipe's model builds it"
        )
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InvalidInputError("the network has no parameters to train; set requires_grad of at least one")


def refuse_late_parameters(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Raises ``InvalidInputError`` if the first forward pass has added layers, which the optimizer does not know.

    Frozen ones are accepted: some networks extend a table of positions so.
    """
    known = set(map(id, parameters))
    late = [name for name, value in model.named_parameters() if value.requires_grad and id(value) not in known]
    if late:
        raise InvalidInputError(
            f"the first forward pass of the network made new parameters ({', '.join(late[:3])}), which would not be "
            "trained; make them where the recipe's model builds the network"
        )


def refuse_unusable_data_set(part: str, dataset: Any) -> None:
    """Raises ``InvalidInputError`` if the ``part`` (training, validation) is no ``Dataset``."""
    if missing := [name for name in ("__len__", "batch") if not callable(getattr(dataset, name, None))]:
        raise InvalidInputError(
            f"the {part} data set {type(dataset).__name__} has no {' and no '.join(missing)}; a data set has __len__() "
            "and batch(indices, key), such as torch.utils.data.default_collate([self[index] for index in indices])"
        )


def refuse_other_type(name: str, built: object, kind: type) -> None:
    """Raises ``InvalidInputError`` unless the recipe's component ``name`` has built an instance of ``kind``."""
    if not isinstance(built, kind):
        raise InvalidInputError(
            f"the recipe's {name} built an object of type {type(built).__name__}; it must build a "
            f"{kind.__module__}.{kind.__qualname__}"
        )


def refuse_impure_batches(dataset: Dataset, indices: Indices, key: Key) -> None:
    """Raises ``InvalidInputError`` if a data set uses a global random generator or its batches are not reproducible.

    A run with such a data set would silently change after every resume and with the number of processes.
    """
    class_name = type(dataset).__name__
    before = _global_generators()
    first, second = dataset.batch(indices, key), dataset.batch(indices, key)
    if used := [name for name, state in _global_generators().items() if not _equal(state, before[name])]:
        raise InvalidInputError(
            f"the data set {class_name} draws from the global generator of {' and '.join(used)}, so a run with it "
            "cannot be repeated or resumed; draw from key.generator(index)"
        )
    if not _equal(first, second):
        raise InvalidInputError(
            f"the data set {class_name} returns two different batches for the same indices and key, so a run with it "
            "cannot be repeated or resumed; draw random numbers only from key.generator(index)"
        )


def refuse_different_data(dataset: Dataset, indices: Indices, key: Key, group: Group) -> None:
    """Raises ``InvalidInputError`` on every process if one of them reads other values for the same samples.

    This happens if a host has an older copy of the data, or if a batch depends on the process: on its rank, or on the
    order of a set of strings. Sizes, means and mean magnitudes of the arrays may differ by a hundredth, because
    processors round differently.
    """
    if group.world == 1:
        return
    summaries = group.gather(list(_summaries(dataset.batch(indices, key))))
    for rank, summary in enumerate(summaries):
        if len(summary) != len(summaries[0]) or not all(map(_similar, summary, summaries[0])):
            raise InvalidInputError(
                f"rank {rank} ({group.members[rank].description}) reads other values than rank 0 "
                f"({group.members[0].description}) for the samples {', '.join(map(str, indices))}: give every host the "
                f"same copy of the data, and let batch() of {type(dataset).__name__} depend only on its arguments"
            )


def _summaries(batch: Any) -> Iterator[tuple[int, float, float]]:
    """The size, mean and mean magnitude of each array in a nested batch."""
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    elif is_dataclass(batch):
        batch = [getattr(batch, field.name) for field in fields(batch)]
    if isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _summaries(part)
    is_dense = isinstance(batch, Tensor) and batch.layout is torch.strided and not batch.is_complex()
    if is_dense or (isinstance(batch, np.ndarray) and batch.dtype.kind in "biuf"):
        yield _summary(batch)


def _summary(values: np.ndarray | Tensor) -> tuple[int, float, float]:
    flat, total, magnitude = values.reshape(-1), 0.0, 0.0
    # In parts, because doubles of all values would take several times the memory of the batch.
    for start in range(0, len(flat), _SUMMED_AT_ONCE):
        part = flat[start : start + _SUMMED_AT_ONCE]
        # ``astype`` copies: torch takes neither reversed arrays nor other byte orders, and warns of read-only ones.
        doubles = part.double() if isinstance(part, Tensor) else torch.from_numpy(part.astype(np.float64))
        # Without infinities, such as those of an attention mask: their difference is not a number.
        doubles = doubles.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        total, magnitude = total + float(doubles.sum()), magnitude + float(doubles.abs().sum())
    size = max(1, len(flat))
    return len(flat), total / size, magnitude / size


_SUMMED_AT_ONCE = 2**20


def _similar(left: tuple[int, float, float], right: tuple[int, float, float]) -> bool:
    if left == right:
        return True
    (size, mean, magnitude), (other_size, other_mean, other_magnitude) = left, right
    tolerance = 0.01 * max(magnitude, other_magnitude)
    return (
        abs(size - other_size) <= 0.01 * max(size, other_size)
        and abs(mean - other_mean) <= tolerance
        and abs(magnitude - other_magnitude) <= tolerance
    )


def _global_generators() -> dict[str, Any]:
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "random": random.getstate()}


def _equal(left: Any, right: Any) -> bool:
    """Whether two nested batches are equal; objects of unknown types count as equal."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return left.shape == right.shape and left.dtype == right.dtype and _same_bits(left, right)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right, equal_nan=left.dtype.kind in "fc")
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(_equal(left[name], right[name]) for name in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    if is_dataclass(left):
        return all(_equal(getattr(left, field.name), getattr(right, field.name)) for field in fields(left))
    if isinstance(left, (str, bytes, int, float, bool)):
        return left == right or (left != left and right != right)
    return True


def _same_bits(left: Tensor, right: Tensor) -> bool:
    if left.layout is torch.strided and not left.is_quantized:
        return (
            torch.equal(left.nan_to_num(), right.nan_to_num()) if left.is_floating_point() else torch.equal(left, right)
        )
    return True


def refuse_different_processes(recipe: Recipe, model: nn.Module, checkpoint: str, group: Group) -> None:
    """Raises ``InvalidInputError`` unless all processes have the same recipe, model, checkpoint and sources."""
    if group.world == 1:
        return
    shapes = {name: (tuple(value.shape), str(value.dtype)) for name, value in model.state_dict().items()}
    facts = {
        "settings": to_mapping(recipe),
        "classes": component_classes(recipe),
        "shapes": {name: f"{shape} {dtype}" for name, (shape, dtype) in shapes.items()},
        "facts": {
            "the number of processes": group.world,
            "the checkpoint to resume from": checkpoint or "none",
            "torch's version": torch.__version__,
            "the hash of the installed sources": sources_digest(recipe),
        },
    }
    facts_by_rank = group.gather(facts)
    keys = [json.dumps(rank_facts, sort_keys=True) for rank_facts in facts_by_rank]
    majority = keys.index(Counter(keys).most_common(1)[0][0])
    for rank, rank_facts in enumerate(facts_by_rank):
        found = [change for name in facts for change in differences(rank_facts[name], facts_by_rank[majority][name])]
        if found:
            more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
            other_facts = facts_by_rank[majority]["facts"]
            wrong = (name for name, fact in rank_facts["facts"].items() if fact != other_facts[name])
            remedy = next((f"; {_REMEDIES[name]}" for name in wrong if name in _REMEDIES), "")
            raise InvalidInputError(
                f"process {rank} was started differently from process {majority}: {'; '.join(found[:3])}{more}{remedy}"
            )


_REMEDIES = {
    "the checkpoint to resume from": "the run's directory (--out) must be on a disk that all hosts share",
    "torch's version": "install the same version of torch on every host",
    "the hash of the installed sources": "install the same version of the code on every host",
}
"""What to do if a fact differs between processes."""


def sources_digest(recipe: Recipe) -> str:
    """The first 16 hex digits of the SHA-256 of all Python sources of the runtime and of the components' packages."""
    packages = {shared.__name__, *(name.split(".")[0] for name in component_classes(recipe).values())}
    digest = hashlib.sha256()
    for package in sorted(packages):
        for root in getattr(sys.modules.get(package), "__path__", ()):
            for file in sorted(Path(root).rglob("*.py")):
                digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
