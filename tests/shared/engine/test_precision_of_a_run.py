"""A run keeps the number format in which it started, on whatever machine it resumes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch

from shared import precision
from tests.shared.engine import line
from tests.shared.engine.line import weights


def begun_in(events: str) -> list[str]:
    """The line about the device that each start of a run logged."""
    return [event["notes"][0] for row in events.splitlines() if (event := json.loads(row))["event"] == "begin"]


@pytest.mark.parametrize("gains", [True, False], ids=["from bf16 to fp32", "from fp32 to bf16"])
def test_a_run_moved_to_another_machine_keeps_its_number_format(tmp_path, monkeypatch, gains):
    monkeypatch.setattr(precision, "cpu_gains_from_bf16", lambda: gains)
    recipe = replace(line.recipe(), precision="auto")
    line.run(recipe, tmp_path / "whole")
    line.run(replace(recipe, limits=replace(recipe.limits, steps=15)), tmp_path / "moved")
    monkeypatch.setattr(precision, "cpu_gains_from_bf16", lambda: not gains)
    line.run(recipe, tmp_path / "moved")
    whole, moved = (weights(tmp_path / name, 30) for name in ("whole", "moved"))
    assert all(torch.equal(whole[name], moved[name]) for name in whole)
    first, second = ("bf16", "fp32") if gains else ("fp32", "bf16")
    device_lines = begun_in((tmp_path / "moved" / "events.jsonl").read_text())
    assert device_lines[1].endswith(f"{first}, in which the run began (a new run would use {second} here)")
    line.run(recipe, tmp_path / "new")
    new = weights(tmp_path / "new", 30)
    assert not all(torch.equal(whole[name], new[name]) for name in whole)


def test_a_run_of_an_earlier_version_resumes_with_the_choice_of_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "cpu_gains_from_bf16", lambda: False)
    recipe = replace(line.recipe(), precision="auto")
    line.run(replace(recipe, limits=replace(recipe.limits, steps=15)), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step-00000015"
    state = json.loads((folder / "state.json").read_text())
    assert state["progress"].pop("precision") == "fp32"
    (folder / "state.json").write_text(json.dumps(state))
    digests = json.loads((folder / "digests.json").read_text())
    digests["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    (folder / "digests.json").write_text(json.dumps(digests))
    line.run(recipe, tmp_path / "run")
    first, second = begun_in((tmp_path / "run" / "events.jsonl").read_text())
    assert first == second and "the run began" not in second
