"""Checks before the first step of a run, and the detection of divergence in the step in which it occurs."""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from shared.comms.group import Group
from shared.data.order import Key, Permutation
from shared.engine.checks import refuse_different_processes
from shared.engine.divergence import DivergenceError
from shared.errors import InvalidInputError
from shared.optimizers import SGD, AdamW, Constant, CosineRestarts
from shared.recipe import InputSpec, resolve
from shared.recipe_file import read_recipe_file
from tests.shared.engine import line
from tests.shared.engine.line import train, weights
from tests.shared.processes import run


def no_step_was_made(path):
    return not list((path / "checkpoints").glob("step-*")) and not (path / "events.jsonl").exists()


def with_points(batch):
    """The recipe on points whose batches are modified by ``batch``."""

    class Altered(line.Points):
        def batch(self, indices, key):
            return batch(self, super().batch(indices, key))

    class Data(line.Data):
        def train(self, input=None):
            return Altered(self.length)

    return replace(line.recipe(), data=Data())


def noise_of(generator):
    return lambda self, batch: batch | {"x": batch["x"] + generator()}


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (noise_of(lambda: torch.rand(1)), "Altered draws from the global generator of torch"),
        (noise_of(lambda: float(np.random.rand())), "Altered draws from the global generator of numpy"),
        (noise_of(random.random), "Altered draws from the global generator of random"),
        (
            noise_of(np.random.default_rng(0).random),
            "Altered returns two different batches for the same indices and key",
        ),
    ],
    ids=["torch", "numpy", "random", "its own"],
)
def test_a_data_set_with_irreproducible_batches_is_refused_by_name(tmp_path, alter, message):
    with pytest.raises(InvalidInputError, match=message):
        line.run(with_points(alter), tmp_path)
    assert no_step_was_made(tmp_path)


def test_batches_with_missing_values_are_equal_to_themselves(tmp_path):
    def alter(self, batch):
        return batch | {"nothing": torch.full((2,), float("nan")), "array": np.array([np.nan]), "count": float("nan")}

    assert line.run(replace(with_points(alter), limits=replace(line.recipe().limits, steps=1)), tmp_path).steps == 1


def test_a_monitor_that_is_never_scored_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(InvalidInputError, match=r"limits\.monitor is 'map', but the task's scores are loss, samples"):
        train(tmp_path, monitor="map")
    assert no_step_was_made(tmp_path)


def test_a_monitor_that_only_the_whole_data_set_scores_is_accepted(tmp_path):
    class Rare(line.Regression):
        def scores(self):
            scores = line.Scores()
            summary = scores.summary
            scores.summary = lambda: summary() | ({"rare": 1.0} if scores.count == 13 else {})
            return scores

    assert train(tmp_path, Rare, monitor="rare", steps=5).scores["rare"] == 1.0


def test_another_recipe_in_the_directory_is_refused_with_what_differs(tmp_path):
    train(tmp_path, steps=5)
    other_recipe = replace(line.recipe(steps=7), optimizer=AdamW(learning_rate=0.5), seed=1)
    with pytest.raises(
        InvalidInputError, match=r"optimizer.learning_rate is 0.5, not 0.02; seed is 1, not 0; continue"
    ):
        line.run(other_recipe, tmp_path)
    with pytest.raises(InvalidInputError, match="optimizer is SGD, not AdamW"):
        line.run(replace(line.recipe(), optimizer=SGD(learning_rate=0.02)), tmp_path)


def test_a_batch_larger_than_the_data_is_logged(tmp_path, capsys):
    from shared.engine.loop import fit
    from shared.engine.run import Run

    fit(line.recipe(batch=100_000, epochs=1), Run(tmp_path, "line", "line"), device="cpu")
    assert "limits.batch is 100000, but there are only 40 samples: the batch is 40" in capsys.readouterr().out


@pytest.mark.parametrize(
    "optimizer",
    [AdamW(learning_rate=-5), AdamW(betas=(1.5, 0.9)), SGD(momentum=0.0, nesterov=True)],
)
def test_settings_that_torch_refuses_are_refused_with_a_message(tmp_path, optimizer):
    with pytest.raises(InvalidInputError, match="the recipe's optimizer or schedule cannot be built: "):
        line.run(replace(line.recipe(), optimizer=optimizer), tmp_path)


@pytest.mark.parametrize("settings", [{"period": 0.0}, {"multiplier": 0}, {"warmup_steps": -1}, {"floor": 2.0}])
def test_schedules_that_never_end_are_refused(settings):
    with pytest.raises(InvalidInputError, match="schedule: "):
        CosineRestarts(**settings)
    with pytest.raises(InvalidInputError, match="warmup_steps is -1"):
        Constant(warmup_steps=-1)


def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="fp16 needs a GPU"):
        line.run(replace(line.recipe(), precision="fp16"), tmp_path)


def test_the_input_is_fitted_to_the_data_once_and_recorded(tmp_path):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Input(InputSpec):
        columns: int = 0

    class Data(line.Data):
        def fit_input(self, input):
            return replace(input, columns=input.columns + 2)

    recipe = replace(line.recipe(steps=5), input=Input(), data=Data())
    assert resolve(recipe).input.columns == 2 and resolve(line.recipe()) == line.recipe()
    line.run(recipe, tmp_path)
    assert read_recipe_file(tmp_path / "recipe.yaml")["recipe"]["input"] == {"columns": 2}
    assert line.run(replace(recipe, limits=line.recipe().limits), tmp_path).steps == 30


def test_a_data_config_may_supply_its_own_order(tmp_path):
    class Backwards:
        steps_per_epoch = 4

        def key(self, step):
            return Key(seed=0, epoch=step // 4)

        def indices(self, step):
            return np.arange(40)[::-1][step % 4 * 10 :][:10]

    data_sets = []

    class Data(line.Data):
        def train(self, input=None):
            data_sets.append(line.Points(40))
            return data_sets[-1]

        def order(self, seed, batch):
            return Backwards()

    result = line.run(replace(line.recipe(), data=Data()), tmp_path)
    assert result.steps == 12 and result.epochs == 3
    assert data_sets[0].asked[-1] == list(range(9, -1, -1))


@pytest.mark.parametrize("log_every", [5, 100])
def test_a_loss_that_is_not_finite_is_reported_with_step_samples_and_term(tmp_path, log_every):
    class Broken(line.Regression):
        calls = 0

        def loss(self, model, batch):
            Broken.calls += 1
            found = super().loss(model, batch)
            return found | {"nothing": found["nothing"] + (float("nan") if Broken.calls == 7 else 0.0)}

    Broken.calls = 0
    with pytest.raises(DivergenceError) as raised:
        train(tmp_path, Broken, log_every=log_every, checkpoint_every=100)
    samples = ", ".join(map(str, Permutation(seed=0, length=40, batch=4).indices(6).tolist()))
    message = str(raised.value)
    assert re.match(r"at step 7 the loss is nan \(square \d[^,]*, nothing nan\) and the gradient norm \d", message)
    assert f"for the samples {samples};" in message
    # The previous checkpoint is intact, and the run resumes from it.
    assert train(tmp_path, log_every=log_every, checkpoint_every=100).steps == 30


def test_the_optimizer_does_not_step_on_a_gradient_that_is_not_finite(tmp_path):
    models = []

    class Steep(line.Regression):
        def loss(self, model, batch):
            models.append(model)
            if len(models) == 3:
                self.before = {name: value.clone() for name, value in model.state_dict().items()}
                return super().loss(model, batch)["square"] * float("inf")
            return super().loss(model, batch)["square"]

    task = Steep()
    with pytest.raises(DivergenceError, match="at step 3 the loss is inf and the gradient norm nan"):
        train(tmp_path, lambda: task)
    assert all(torch.equal(value, task.before[name]) for name, value in models[-1].state_dict().items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """An optimizer of the last layer only."""

    def build(self, model):
        return torch.optim.SGD(model[-1].parameters(), lr=0.1)


def test_gradients_outside_the_optimizer_do_not_accumulate(tmp_path):
    norms = []

    class Watched(line.Regression):
        def loss(self, model, batch):
            first = model[0].weight.grad
            norms.append(0.0 if first is None else first.norm().item())
            return super().loss(model, batch)

    line.run(replace(line.recipe(Watched, steps=5), optimizer=Head(), model=line.Network(dropout=0.0)), tmp_path)
    assert norms == [0.0] * 5
    assert weights(tmp_path, 5)


def train_at_another_rate(path):
    rate = 0.5 if os.environ["RANK"] == "1" else 0.02
    with pytest.raises(InvalidInputError) as raised:
        line.run(replace(line.recipe(), optimizer=AdamW(learning_rate=rate)), path)
    return str(raised.value)


def test_processes_that_were_started_differently_do_not_train(tmp_path):
    for message in run(train_at_another_rate, tmp_path / "run"):
        assert "process 1 was started differently from process 0: optimizer.learning_rate is 0.5, not" in message


@pytest.mark.parametrize(
    ("fact", "remedy"),
    [
        ("the checkpoint to resume from", "must be on a disk that all hosts share"),
        ("the hash of the installed sources", "install the same version of the code on every host"),
        ("torch's version", "install the same version of torch on every host"),
    ],
)
def test_a_difference_between_hosts_comes_with_a_remedy(fact, remedy):
    class OtherHost(Group):
        def gather(self, value):
            return [value, {**value, "facts": {**value["facts"], fact: "other"}}]

    recipe = resolve(line.recipe())
    with pytest.raises(InvalidInputError, match=f"{fact} is other, not .*{remedy}"):
        refuse_different_processes(recipe, recipe.model.build(), "step-5", OtherHost(0, 2, torch.device("cpu")))
