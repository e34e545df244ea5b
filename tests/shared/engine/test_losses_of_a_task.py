"""What a task may return as its loss; anything else is refused with the name of the loss."""

from __future__ import annotations

import pytest
import torch

from shared.engine.task import WeightedLoss
from shared.errors import InvalidInputError
from tests.shared.engine import line
from tests.shared.engine.line import train


def task(make):
    """A task whose loss is ``make(squares)`` of the squared errors, shape (batch,)."""

    class Task(line.Regression):
        def loss(self, model, batch):
            return make((model(batch["x"]) - batch["y"]).square()[:, 0])

    return Task


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda squares: squares.mean().item(), r"the loss loss is of type float; Task\.loss returns a floating-point"),
        (lambda squares: None, "the loss loss is of type NoneType"),
        (lambda squares: (squares.mean(), squares.detach()), "the loss loss is of type tuple"),
        (lambda squares: {"box": [squares.mean()]}, "the loss box is of type list"),
        (lambda squares: (squares > 1).sum(), r"the loss loss is a tensor of torch\.int64"),
        (lambda squares: squares.mean().detach(), r"the loss \(loss\) depends on no parameter of the network that is"),
        (lambda squares: {}, r"the loss \(an empty mapping\) depends on no parameter"),
        (lambda squares: WeightedLoss(squares, 4), r"WeightedLoss loss has a mean of shape \(4,\) and a weight of sha"),
        (lambda squares: WeightedLoss(squares.mean(), torch.ones(4)), r"and a weight of shape \(4,\); each must be"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_refused_by_name(tmp_path, make, message):
    with pytest.raises(InvalidInputError, match=message):
        train(tmp_path, task(make), steps=1)


def test_a_whole_number_beside_other_losses_is_a_constant(tmp_path):
    """Detectors return it for a batch without objects, which may come late in a run."""
    with_constant = train(tmp_path / "two", task(lambda squares: {"class": squares.mean(), "box": torch.tensor(0)}))
    alone = train(tmp_path / "one", task(lambda squares: {"class": squares.mean()}))
    assert with_constant.steps == 30 and with_constant.scores == alone.scores


def test_a_batch_without_any_of_the_elements_has_a_weighted_loss_of_zero(tmp_path):
    """torch's mean over no elements is not a number, and a network trains on without it."""

    class Rare(line.Regression):
        def elements(self, batch):
            return batch["x"][:, 0] > 0.7

        def loss(self, model, batch):
            known = self.elements(batch)
            return WeightedLoss((model(batch["x"]) - batch["y"]).square()[:, 0][known].mean(), known.sum())

        def count(self, batch):
            return {"loss": self.elements(batch).sum()}

    assert train(tmp_path / "whole", Rare).steps == 30
    assert train(tmp_path / "single", Rare, micro_batch=1).steps == 30
