"""Networks that users bring train as they do elsewhere, or are refused before the first step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from shared.errors import InvalidInputError
from shared.optimizers import SGD, AdamW
from tests.shared.engine import line
from tests.shared.engine.line import weights


def recipe(build, **limits):
    """The recipe of the line with the network that ``build`` returns."""
    kind = type("Network", (line.Network,), {"build": lambda self, input=None: build(), "__slots__": ()})
    return replace(line.recipe(**limits), model=kind())


def sliced(copy):
    """A layer for two columns, made of one for three, as for a network that was trained on more channels."""
    layer = nn.Linear(3, 8)
    layer.weight = nn.Parameter(copy(layer.weight.detach()[:, :2]))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("optimizer", [AdamW(learning_rate=0.02), SGD(learning_rate=0.02)])
def test_a_parameter_that_is_a_slice_trains_as_a_contiguous_copy_does(tmp_path, optimizer):
    for name, copy in (("slice", lambda weight: weight), ("copy", lambda weight: weight.contiguous())):
        line.run(replace(recipe(lambda copy=copy: sliced(copy), steps=5), optimizer=optimizer), tmp_path / name)
    for name, value in weights(tmp_path / "copy", 5).items():
        torch.testing.assert_close(weights(tmp_path / "slice", 5)[name], value)


class GrowsInForward(nn.Module):
    """A network that makes its last layer in the first forward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), None

    def forward(self, x):
        if self.last is None:
            self.last = nn.Linear(8, 1)
        return self.last(self.first(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: None, r"the recipe's model built an object of type NoneType; it must build a torch\.nn\..*Module"),
        (lambda: nn.Sequential(nn.LazyLinear(1)), "parameter 0.weight has no shape yet, because its layer is lazy"),
        (lambda: nn.Linear(2, 1).requires_grad_(False), "the network has no parameters to train"),
        (GrowsInForward, r"forward pass of the network made new parameters \(last\.weight, last\.bias\), which would"),
    ],
    ids=["no network", "lazy", "frozen", "grows"],
)
def test_a_network_that_cannot_be_trained_is_refused_before_the_first_step(tmp_path, build, message):
    with pytest.raises(InvalidInputError, match=message):
        line.run(recipe(build), tmp_path)
    assert not (tmp_path / "events.jsonl").exists()


class ExtendsItsPositions(nn.Module):
    """A network that replaces a frozen table by a longer one in the first forward pass."""

    def __init__(self):
        super().__init__()
        self.layer, self.positions = nn.Linear(2, 1), nn.Parameter(torch.zeros(1, 1), requires_grad=False)

    def forward(self, x):
        if len(self.positions) < len(x):
            self.positions = nn.Parameter(torch.zeros(len(x), 1), requires_grad=False)
        return self.layer(x) + self.positions[: len(x)]


def test_a_network_may_make_a_frozen_table_in_the_forward_pass(tmp_path):
    assert line.run(recipe(ExtendsItsPositions, steps=5), tmp_path).steps == 5
    assert weights(tmp_path, 5)["layer.weight"].any() and not weights(tmp_path, 5)["positions"].any()


class Indexed(torch.utils.data.Dataset):
    """A data set of torch, which has no batches."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.zeros(2), torch.zeros(1)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield torch.zeros(2)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Indexed, "the training data set Indexed has no batch; a data set has .*default_collate"),
        (Stream, "the training data set Stream has no __len__ and no batch;"),
        (lambda: None, "the training data set NoneType has no __len__ and no batch;"),
    ],
    ids=["torch", "stream", "none"],
)
def test_what_is_no_data_set_is_refused_with_what_it_lacks(tmp_path, dataset, message):
    class Data(line.Data):
        def train(self, input=None):
            return dataset()

    with pytest.raises(InvalidInputError, match=message):
        line.run(replace(line.recipe(), data=Data()), tmp_path)


def test_a_data_set_may_index_tensors_with_its_indices(tmp_path):
    """torch warns, once in a process, if a tensor is indexed with an array that is read-only."""
    read_only = []

    class Tensors(line.Points):
        def batch(self, indices, key):
            read_only.append(not indices.flags.writeable)
            return super().batch(indices, key)

    class Data(line.Data):
        def train(self, input=None):
            return Tensors(self.length)

    line.run(replace(line.recipe(steps=5), data=Data()), tmp_path)
    assert len(read_only) >= 5 and not any(read_only)


@dataclass(frozen=True)
class Plateau:
    def build(self, optimizer, steps_per_epoch):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)


@dataclass(frozen=True)
class Nothing:
    def build(self, *arguments):
        return None


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"optimizer": Nothing()}, r"optimizer built an object of type NoneType; it must build a torch\.optim\."),
        ({"schedule": Nothing()}, "schedule built an object of type NoneType"),
        ({"schedule": Plateau()}, "ReduceLROnPlateau is stepped with a score"),
    ],
)
def test_an_optimizer_or_schedule_of_another_type_is_refused(tmp_path, part, message):
    with pytest.raises(InvalidInputError, match=message):
        line.run(replace(line.recipe(), **part), tmp_path)
