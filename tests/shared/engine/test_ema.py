"""The moving average of the weights: its formula, its resumption and its export."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from shared.cli.main import main
from shared.comms.group import Group
from shared.engine.checkpoint import Checkpoints, model_state
from shared.engine.ema import ExponentialMovingAverage
from shared.engine.evaluate import evaluate
from shared.errors import InvalidInputError
from shared.recipe_file import digest, to_mapping
from tests.shared.engine import line
from tests.shared.engine.line import same_weights, weights
from tests.shared.processes import run

ALONE = Group(0, 1, torch.device("cpu"))


class Normalised(line.Network):
    """A linear layer after batch normalisation; its weight has two names."""

    def build(self, input=None):
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1), nn.Dropout(0.0))
        model[2].twin = model[1].weight
        return model


def recipe(decay=0.9, **limits):
    return replace(line.recipe(**limits), model=Normalised(), ema_decay=decay)


def average(path, step):
    file = path / "checkpoints" / f"step-{step:08d}" / "ema.safetensors"
    return {name.removeprefix("average."): value for name, value in load_file(file).items()}


def test_the_average_follows_its_formula_and_the_decay_warms_up():
    model = Normalised().build()
    ema = ExponentialMovingAverage(model, decay=0.3)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for number in range(5):
        with torch.no_grad():
            for value in [*model.parameters(), model[0].running_mean, model[0].running_var]:
                value.add_(torch.randn_like(value))
            model[0].num_batches_tracked += 1
        decay = min(0.3, (1 + number) / (10 + number))
        expected = {n: decay * expected[n] + (1 - decay) * v for n, v in model.state_dict().items()}
        ema.update()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with ema.applied(ALONE):
        for name, value in model.state_dict().items():
            if name == "0.num_batches_tracked":
                assert value == 5
            else:
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert same_weights(before, model.state_dict())


def test_a_run_validates_saves_and_exports_the_average(tmp_path):
    result = line.run(recipe(), tmp_path)
    saved_weights = model_state(Checkpoints(tmp_path / "checkpoints", recipe_digest="").latest())
    assert not torch.equal(saved_weights["1.weight"], weights(tmp_path, 30)["1.weight"])
    assert torch.equal(saved_weights["1.weight"], saved_weights["2.twin"])
    model = Normalised().build()
    model.load_state_dict(saved_weights)
    scores = evaluate(model, line.Regression(), line.Points(13), 4, ALONE)
    assert scores["loss"] == pytest.approx(result.history[-1]["loss"], rel=1e-6)
    # The same training without averaging ends with the weights that went into the average.
    line.run(recipe(None), tmp_path / "without")
    assert same_weights(weights(tmp_path, 30), weights(tmp_path / "without", 30))


@pytest.mark.parametrize("stop", [7, 15], ids=["within an epoch", "at a checkpoint"])
def test_a_resumed_run_continues_with_the_same_average(tmp_path, stop):
    line.run(recipe(), tmp_path / "whole")
    line.run(recipe(steps=stop), tmp_path / "parts")
    line.run(recipe(), tmp_path / "parts")
    assert same_weights(average(tmp_path / "whole", 30), average(tmp_path / "parts", 30))


def train_in_parts(path):
    """Three runs one after the other in the same processes."""
    for name, steps in (("whole", 30), ("parts", 15), ("parts", 30)):
        line.run(recipe(steps=steps), path / name)


def test_two_processes_resume_bitwise_and_score_the_saved_average(tmp_path):
    run(train_in_parts, tmp_path)
    assert same_weights(average(tmp_path / "whole", 30), average(tmp_path / "parts", 30))
    model = Normalised().build()
    model.load_state_dict(model_state(tmp_path / "parts/checkpoints/step-00000030"))
    result = line.run(recipe(steps=30), tmp_path / "parts")
    scores = evaluate(model, line.Regression(), line.Points(13), 4, ALONE)
    assert scores["loss"] == pytest.approx(result.history[-1]["loss"], rel=1e-6)


def test_a_run_does_not_resume_with_a_different_decay_and_older_digests_stay_valid(tmp_path):
    line.run(recipe(steps=5), tmp_path)
    with pytest.raises(InvalidInputError, match=r"ema_decay is 0\.99, not 0\.9"):
        line.run(recipe(0.99), tmp_path)
    assert len({digest(recipe(decay)) for decay in (None, 0.9, 0.99)}) == 3
    assert digest(replace(recipe(None), compile=True)) == digest(recipe(None))
    assert to_mapping(recipe(0.9))["ema_decay"] == 0.9


@pytest.mark.parametrize("decay", ["0", "1", "-0.5"])
def test_an_invalid_decay_is_refused_on_the_command_line(tmp_path, capsys, decay):
    code = main(["train", "finance", "--recipe", "tiny", "--out", str(tmp_path / "run"), f"--ema-decay={decay}"])
    assert code == 2 and "ema_decay is" in capsys.readouterr().err
