"""What recipe.yaml records, and reading it back: from the named recipe, never by importing a class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import yaml

from shared.errors import InvalidInputError
from shared.optimizers import SGD, AdamW, Constant
from shared.recipe import OptimizerConfig, ScheduleConfig
from shared.recipe_file import component_classes, digest, read_recipe_file, save_recipe
from shared.recipes import choose_recipe, recipe_of
from shared.strategy import DDP, Auto, StrategyConfig
from tests.shared.engine import line


@dataclass(frozen=True, kw_only=True, slots=True)
class Ring:
    """A data set with the settings of ``line.Data``."""

    length: int = 40

    def train(self, input=None):
        return line.Points(self.length)

    def validation(self, input=None):
        return line.Points(3)

    def fingerprint(self):
        return {"description": "points on a ring", "synthetic": True}


def twin_of_adamw():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class AdamX:
        learning_rate: float = 0.02
        weight_decay: float = 1e-2
        betas: tuple[float, float] = (0.9, 0.999)

        def build(self, model):
            raise AssertionError("not built")

    return AdamX()


APP = SimpleNamespace(name="line", recipes=lambda: {"line": line.recipe}, data_sets=lambda: {"ring": Ring})


def document(tmp_path, recipe):
    save_recipe(tmp_path / "recipe.yaml", recipe, app="line", name="line")
    return read_recipe_file(tmp_path / "recipe.yaml")


def test_the_name_every_setting_and_every_class_are_recorded(tmp_path):
    found = document(tmp_path, line.recipe(steps=7))
    assert (found["app"], found["name"], found["digest"]) == ("line", "line", digest(line.recipe()))
    assert found["recipe"]["limits"]["steps"] == 7 and found["recipe"]["optimizer"]["learning_rate"] == 0.02
    assert found["classes"]["model"] == "tests.shared.engine.line.Network"
    assert found["classes"]["optimizer"] == "shared.optimizers.AdamW"
    assert found["classes"] == component_classes(line.recipe())


def test_equal_settings_of_different_classes_have_different_digests():
    assert digest(replace(line.recipe(), data=Ring())) != digest(line.recipe())
    assert digest(replace(line.recipe(), optimizer=twin_of_adamw())) != digest(line.recipe())


def test_the_micro_batch_does_not_change_the_digest():
    same = replace(line.recipe(micro_batch=2), strategy=DDP(find_unused_parameters=False))
    assert digest(same) == digest(line.recipe())
    assert digest(replace(line.recipe(), init="weights.pt")) != digest(line.recipe())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": Ring(length=9)},
        {"optimizer": SGD(learning_rate=0.1), "schedule": Constant(warmup_steps=2), "strategy": DDP()},
        {"optimizer": AdamW(betas=(0.8, 0.9)), "init": None, "seed": 4},
    ],
    ids=["the named recipe", "a data set of the application", "other components of the runtime", "other settings"],
)
def test_a_recipe_is_read_back_unchanged(tmp_path, changes):
    recipe = replace(line.recipe(), **changes)
    name, found = choose_recipe(APP, str((document(tmp_path, recipe), tmp_path / "recipe.yaml")[1]))
    assert name == "line" and found == recipe
    assert {path: type(getattr(found, path)) for path in changes} == {
        path: type(value) for path, value in changes.items()
    }


def test_an_unknown_class_is_refused_and_not_imported(tmp_path):
    found = document(tmp_path, replace(line.recipe(), optimizer=twin_of_adamw()))
    with pytest.raises(InvalidInputError, match=r"recorded classes differ .* whose optimizer is a AdamW, not a AdamX"):
        recipe_of(APP, found)
    found["classes"]["optimizer"] = "os.system"
    with pytest.raises(InvalidInputError, match="not a system"):
        recipe_of(APP, found)


def test_a_file_without_classes_is_still_read(tmp_path):
    found = document(tmp_path, line.recipe())
    del found["classes"], found["recipe"]["strategy"], found["recipe"]["init"]
    assert recipe_of(APP, found) == line.recipe()


@pytest.mark.parametrize(
    "text",
    [
        *("a: [", "\t", "just words", yaml.safe_dump({"app": "line"})),
        *("app: 2001-99-99", "app: " + "9" * 5000, "app: " + "{a: " * 1000, "app: !!python/name:os.system"),
        "a: &a [x, x]\napp: &b [*a, *a]\nname: *b\nrecipe: {}",
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InvalidInputError, match=r"recipe\.yaml (cannot be read as YAML|is not a recipe file)"):
        read_recipe_file(tmp_path / "recipe.yaml")


def test_the_components_implement_their_protocols():
    assert isinstance(AdamW(), OptimizerConfig) and isinstance(Constant(), ScheduleConfig)
    assert isinstance(Auto(), StrategyConfig) and not isinstance(line.recipe().limits, OptimizerConfig)


def test_settings_of_protocols_are_flags(capsys):
    from shared.cli.main import main

    with pytest.raises(SystemExit):
        main(["train", "finance", "--recipe", "tiny", "--", "--help"])
    output = capsys.readouterr().out
    for flag in (
        "--optimizer.learning-rate",
        "--schedule.warmup-steps",
        "--limits.micro-batch",
        "--init",
    ):
        assert flag in output
