"""``trivium evaluate --program NAME`` scores an artifact with one of its programs, and prints which one it used."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.medical.datasets import synthetic
from shared import cli
from shared.app import find
from shared.deploy.opening import open_predictor
from shared.deploy.registry import shipped
from tests.apps.medical.chests import annotated_chests

DATA = {
    "medical": ["--limit", "1"],
    "driving": ["--data.validation-scenes", "1"],
    "finance": ["--data.series", "1", "--data.rows", "1000", "--limit", "1"],
}
SCORES = {"medical": "CPM", "driving": "AP R40", "finance": "NAB standard"}


@pytest.mark.parametrize(
    ("app", "program", "model"),
    [
        ("medical", "torch", "lung_nodules"),
        ("medical", "openvino-int8", "lung_nodules"),
        ("driving", "torch", "pointpillars"),
        ("driving", "openvino-int8", "pointpillars"),
        ("driving", "torch", "lidar_rcnn"),
        # bf16 for the smallest network: a CPU without bf16 computes a chest with it in minutes.
        ("finance", "torch-bf16", "tft-anomaly"),
        ("finance", "openvino", "tft-anomaly"),
    ],
)
def test_the_score_is_printed_with_the_name_of_the_program(app, program, model, capsys, monkeypatch):
    monkeypatch.setattr(synthetic, "phantoms", annotated_chests)
    monkeypatch.setattr("apps.medical.predictor.served_with", lambda artifact, *registries: [])
    artifact = next(artifact for artifact in shipped(find(app)) if artifact.manifest.name == model)
    words = ["evaluate", app, "--artifact", str(artifact.path), "--device", "cpu", "--program", program]
    assert cli.main([*words, "--data", "synthetic", *DATA[app]]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert SCORES[app] in printed
    assert f"{model} version {artifact.manifest.version} was computed with {program}: it was requested" in printed
    if model == "lidar_rcnn":  # the second stage is opened together with its detector
        detector = next(artifact for artifact in shipped(find(app)) if artifact.manifest.name == "pointpillars")
        assert f"pointpillars version {detector.manifest.version} was computed with torch: it was requested" in printed


def test_a_run_is_computed_with_torch_by_default(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert (
        cli.main(["train", "finance", "--recipe", "tiny", "--limits.steps", "1", "--out", run, "--device", "cpu"]) == 0
    )
    capsys.readouterr()
    data = ["--data", "synthetic", *DATA["finance"]]
    for program, reason in (
        ([], "a run uses torch unless a program is named"),
        (["--program", "torch"], "it was requested"),
    ):
        assert cli.main(["evaluate", "finance", "--run", run, "--device", "cpu", *data, *program]) == 0
        assert f"tft-anomaly was computed with torch: {reason}." in " ".join(capsys.readouterr().out.split())


def test_a_program_needs_a_data_set(capsys):
    assert cli.main(["evaluate", "finance", "--program", "onnx"]) == 2
    assert "--program needs --data NAME" in capsys.readouterr().err


def test_a_detector_is_opened_with_the_second_stage_trained_on_its_marks(monkeypatch):
    app = find("medical")
    detector = next(artifact for artifact in shipped(app) if artifact.manifest.name == "lung_nodules")
    monkeypatch.chdir(detector.path.parent)
    opened = open_predictor(app, artifact=Path(detector.path.name), device="cpu", lazy=True)
    assert {manifest.name for manifest in opened.manifests} == {"lung_nodules", "lung_nodule_candidates"}
