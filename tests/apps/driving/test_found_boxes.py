"""The training boxes of a second stage: they depend on the detector and its settings, and some must be on objects."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from apps.driving.app import app
from apps.driving.datasets.found_boxes import fit_to_detector
from apps.driving.datasets.synthetic import Synthetic
from apps.driving.types import BoxInput
from shared.deploy.artifact import describe_file
from shared.deploy.registry import shipped
from shared.errors import InvalidInputError


def changed_detector(folder: Path, bias: float, least_score: str) -> Path:
    """The shipped detector with another score bias, and another minimum score in its recipe."""
    folder.mkdir()
    source = shipped(app)[0]
    weights = source.weights()
    weights["bbox_head.conv_cls.bias"] += bias
    save_file(weights, folder / "weights.safetensors")
    text = (source.path / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("least_score: 0.05", f"least_score: {least_score}"))
    manifest = json.loads((source.path / "manifest.json").read_text()) | {"inputs": [], "outputs": [], "programs": {}}
    manifest["files"] = {file: describe_file(folder / file) for file in ("weights.safetensors", "recipe.yaml")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_other_detector_settings_rebuild_the_boxes_and_some_must_be_on_objects(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = Synthetic(scenes=3, validation_scenes=1)
    found = []
    for name, least in (("low", "0.05"), ("high", "0.4")):
        input = fit_to_detector(BoxInput(detector=changed_detector(tmp_path / name, 0.0, least)))
        found.append(data.train(input))
    assert found[0].input.weights == found[1].input.weights
    assert len(found[0]) > len(found[1]) > 0 and found[1].scores.min() >= 0.4 > found[0].scores.min()
    mute = changed_detector(tmp_path / "mute", -30.0, "0.05")
    with pytest.raises(
        InvalidInputError, match=rf"the detector {mute} finds no box on an object .* \(0 boxes elsewhere\)"
    ):
        data.train(fit_to_detector(BoxInput(detector=mute)))


def test_a_custom_range_is_refused_because_it_would_be_ignored():
    for own in ({"range_m": (0.0, -20.0, -3.0, 40.0, 20.0, 1.0)}, {"intensity": False, "own_vehicle_m": (9.0, 9.0)}):
        name = list(own)[-1]
        option = f"--input.{name.replace('_', '-')}"
        with pytest.raises(InvalidInputError, match=rf"input\.{name} does not apply to a second stage.*omit {option}"):
            fit_to_detector(BoxInput(**own))
    once = fit_to_detector(BoxInput())
    assert fit_to_detector(once) == once, "a resumed run"
    another = dataclasses.replace(once, own_vehicle_m=(2.5, 1.1), weights="1" * 64)
    assert fit_to_detector(another) == once, "a recipe that was made for another detector"
