"""A run may start from existing weights."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shared.engine.initial_weights import load_initial_weights, new_classes, shared_classes
from shared.errors import InvalidInputError
from shared.recipe import Axis, ClassAxes, InputSpec
from tests.shared.engine import line
from tests.shared.engine.line import train, weights


def network(outputs=1):
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, outputs))


def write(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("w.safetensors", dict),
        ("w.pt", dict),
        (
            "w.pth",
            lambda state: {"state_dict": state, "meta": {"epoch": 3}, "optimizer": {"param_groups": [{"lr": 1}]}},
        ),
        ("w.ckpt", lambda state: {"state_dict": state, "epoch": 1, "pytorch-lightning_version": "2.6"}),
        ("w.ckpt", lambda state: {"state_dict": state, "hyper_parameters": Namespace(rate=0.1), "when": timedelta(1)}),
        ("w.pth", lambda state: {"network_weights": state, "init_args": {}}),
        ("w.pt", lambda state: {"model": {f"module.{name}": value for name, value in state.items()}}),
        ("w.ckpt", lambda state: {"state_dict": {f"net.{name}": value for name, value in state.items()}}),
    ],
    ids=[
        "safetensors",
        "state dict",
        "mmengine",
        "Lightning",
        "objects",
        "nnU-Net",
        "wrapped",
        "LightningModule with a network",
    ],
)
def test_weights_are_loaded_by_name_from_files_of_every_layout(tmp_path, file, wrap):
    source, target = network(), network()
    found = load_initial_weights(target, write(tmp_path / file, wrap(source.state_dict())))
    assert len(found.loaded) == 4 and not found.missing + found.extra + found.other_shape
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


def test_a_new_head_keeps_its_values_and_is_listed(tmp_path):
    state = network().state_dict() | {"extra": torch.ones(1)}
    del state["0.bias"]
    target = network(outputs=5)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    found = load_initial_weights(target, write(tmp_path / "w.pt", state))
    assert (found.loaded, found.missing, found.extra) == (("0.weight",), ("0.bias",), ("extra",))
    assert found.other_shape == ("2.weight", "2.bias")
    for name in ("0.bias", "2.weight", "2.bias"):
        assert torch.equal(target.state_dict()[name], before[name])
    assert found.summary() == (
        "1 of 4 tensors start from these weights; missing: 0.bias; extra: extra; of a different shape: 2.weight, 2.bias"
    )


def test_of_several_modules_in_a_file_the_one_that_fits_is_loaded(tmp_path):
    state = {f"student.{name}": value for name, value in network().state_dict().items()}
    state |= {f"head.{name}": value for name, value in network(outputs=5).state_dict().items()}
    found = load_initial_weights(target := network(), write(tmp_path / "w.pt", state))
    assert len(found.loaded) == 4 and torch.equal(target[0].weight, state["student.0.weight"])
    assert set(found.extra) == {name for name in state if name.startswith("head.")}
    state |= {name.replace("student", "teacher"): value for name, value in state.items() if "student" in name}
    with pytest.raises(InvalidInputError, match=r"none of its 12 tensors fits .* such as student\.0\.weight"):
        load_initial_weights(network(), write(tmp_path / "w.pt", state))


def test_files_without_weights_for_the_model_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "torn.safetensors").write_bytes(b"123456789012")
    (tmp_path / "text.pt").write_text("hello")
    for path, message in {
        tmp_path / "nowhere.pt": "there is no file .*nowhere.pt",
        tmp_path / "nowhere.safetensors": "there is no file .*nowhere.safetensors",
        tmp_path / "folder": "neither an artifact .* nor a run",
        tmp_path / "torn.safetensors": "cannot be read as a safetensors file",
        tmp_path / "text.pt": "cannot be read as a checkpoint that torch saved",
        write(tmp_path / "other.pt", {"encoder.weight": torch.ones(1)}): "none of its 1 tensors fits this model",
        write(tmp_path / "list.pt", [torch.ones(1)]): "has no state dict",
        write(tmp_path / "network.pt", network()): r"has no state dict, .*; save .* torch\.save\(model\.state_dict\(\)",
        write(tmp_path / "objects.ckpt", {"state_dict": {}, "made": timedelta(1)}): "has no state dict",
    }.items():
        with pytest.raises(InvalidInputError, match=message):
            load_initial_weights(network(), path)


def test_a_run_starts_from_a_folder_of_hugging_face(tmp_path):
    source, target = network(), network()
    write(tmp_path / "model.safetensors", source.state_dict())
    assert len(load_initial_weights(target, tmp_path).loaded) == 4 and torch.equal(target[0].weight, source[0].weight)


def test_a_run_starts_from_another_run_or_an_artifact_and_logs_it(tmp_path):
    train(tmp_path / "first", steps=10)
    start = weights(tmp_path / "first", 10)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    save_file(start, artifact / "weights.safetensors")
    first_weights = {}

    def watched(name):
        class Watched(line.Regression):
            def loss(self, model, batch):
                first_weights.setdefault(name, {key: value.clone() for key, value in model.state_dict().items()})
                return super().loss(model, batch)

        return Watched

    for init in (tmp_path / "first", artifact):
        line.run(replace(line.recipe(watched(init.name), steps=2), init=init), tmp_path / f"from-{init.name}")
        assert all(torch.equal(first_weights[init.name][name], value) for name, value in start.items())
        events = (tmp_path / f"from-{init.name}" / "events.jsonl").read_text()
        assert "4 of 4 tensors start from these weights" in events
    # A resumed run continues from its own checkpoint.
    line.run(replace(line.recipe(watched("again"), steps=4), init=artifact), tmp_path / "from-artifact")
    own_weights = weights(tmp_path / "from-artifact", 2)
    assert all(torch.equal(first_weights["again"][name], value) for name, value in own_weights.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes(InputSpec):
    classes: tuple[str, ...]


@pytest.mark.parametrize("start", ["", "checkpoints/weights.safetensors"], ids=["run", "file"])
def test_no_class_starts_from_the_weights_of_another_class_in_common(tmp_path, start):
    def events_of_run(name, classes, init=None):
        line.run(replace(line.recipe(steps=2), input=Classes(classes=classes), init=init), tmp_path / name)
        return (tmp_path / name / "events.jsonl").read_text()

    events_of_run("first", ("pedestrian", "cyclist", "car"))
    init = tmp_path / "first"
    if start:
        init = tmp_path / "artifact" / "weights.safetensors"
        init.parent.mkdir()
        save_file(weights(tmp_path / "first", 2), init)
        shutil.copy(tmp_path / "first" / "recipe.yaml", init.parent)
    message = r"trained on the classes pedestrian, cyclist, car in this order.*in the order pedestrian truck car$"
    with pytest.raises(InvalidInputError, match=message):
        events_of_run("other", ("car", "pedestrian", "truck"), init)
    assert "weights of other classes: truck in place of cyclist" in events_of_run(
        "new", ("pedestrian", "truck", "car"), init
    )
    same = events_of_run("same", ("pedestrian", "cyclist", "car"), init)
    assert "it was trained" not in same and "of other classes" not in same
    # A head with a different number of classes takes nothing from the trained one, whatever the names.
    message = (
        "it was trained on the classes pedestrian, cyclist, car, and this run has {}: the number of classes differs"
    )
    assert message.format("car, pedestrian") in events_of_run("fewer", ("car", "pedestrian"), init)
    more = events_of_run("more", ("pedestrian", "cyclist", "car", "tram"), init)
    assert message.format("pedestrian, cyclist, car, tram") in more
    assert "from scratch; --data.classes pedestrian cyclist car keeps them" in more


class Rows(NamedTuple):
    """A model config with one row per class in a layer, and an additional row for the background."""

    def class_axes(self, classes: Sequence[str]) -> ClassAxes:
        return {"2.weight": Axis(0, [*classes, 0]), "2.bias": Axis(0, [*classes, 0])}

    def build(self, input: InputSpec) -> nn.Module:
        return network(outputs=4)


@pytest.mark.parametrize(
    ("classes", "changes"),
    [
        (("tram", "car", "pedestrian", "cyclist"), "keeps car, pedestrian, cyclist; learns tram from scratch"),
        (("car", "pedestrian"), "keeps car, pedestrian; drops cyclist"),
        (("car", "tram", "pedestrian"), "keeps car, pedestrian; learns tram from scratch; drops cyclist"),
    ],
    ids=["more", "fewer", "others"],
)
def test_classes_are_matched_by_name_if_the_model_states_its_class_axes(tmp_path, classes, changes):
    line.run(replace(line.recipe(steps=1), input=Classes(classes=("pedestrian", "cyclist", "car"))), tmp_path / "run")
    old, new = network(outputs=4).state_dict(), network(outputs=len(classes) + 1)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    init = tmp_path / "artifact" / "weights.safetensors"
    init.parent.mkdir()
    save_file(old, init)
    shutil.copy(tmp_path / "run" / "recipe.yaml", init.parent)
    input = Classes(classes=classes)
    found = load_initial_weights(new, init, shared_classes(init, Rows(), input))
    assert found.by_class == ("2.weight", "2.bias") and not found.missing + found.other_shape
    assert new_classes(init, input, by_name=True).endswith(f"this run {changes}")
    for name in found.by_class:
        for row, kind in enumerate([*classes, 0]):
            known = ["pedestrian", "cyclist", "car", 0]
            expected = old[name][known.index(kind)] if kind in known else before[name][row]
            assert torch.equal(new.state_dict()[name][row], expected)
