"""Each application from recipe to prediction: train the tiny recipe, resume, evaluate, export, predict, serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import load_file

from apps.medical import samples
from apps.medical.adapters.nifti import nifti
from apps.medical.datasets import synthetic
from shared import cli
from shared.app import find
from shared.deploy.registry import Registry
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.medical.chests import annotated_chests, chest
from tests.shared.line_app import install

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[1]
FINDINGS_KEYS = {"medical": "findings", "driving": "boxes", "finance": "events"}
APPS = tuple(FINDINGS_KEYS)
# With a short context the forecaster trains and is exported faster.
RECIPES = [
    ("medical", "tiny", ()),
    ("driving", "tiny", ()),
    ("driving", "fcos3d_tiny", ()),
    ("finance", "tiny", ("--input.context", "8")),
]


@pytest.mark.parametrize(("app", "recipe", "settings"), RECIPES)
def test_from_recipe_to_prediction(app, recipe, settings, tmp_path, capsys, monkeypatch):
    # A small chest instead of whole phantoms, both to calibrate the exported detector and as the sample.
    monkeypatch.setattr(synthetic, "phantoms", annotated_chests)
    monkeypatch.setattr(samples, "_phantom_nifti", lambda: nifti(chest()))
    run, models = tmp_path / "run", tmp_path / "models"
    assert cli.main(["train", app, "--recipe", recipe, "--out", str(run), *settings]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] > 0 and np.isfinite(result["scores"]["loss"])
    assert cli.main(["export", str(run), "--registry", str(models)]) == 0
    name = next(models.iterdir()).name
    artifact = Registry(models).newest(name)
    assert artifact.manifest.data["synthetic"] is True and artifact.manifest.scores
    assert "inputs of the application's samples" in artifact.manifest.programs["onnx"].inputs
    generator = np.random.default_rng(0)
    feeds = {
        spec.name: generator.normal(size=[3 if n == -1 else n for n in spec.shape]).astype(np.float32)
        for spec in artifact.manifest.inputs
    }
    outputs = ort.InferenceSession(artifact.network).run(None, feeds)
    assert [len(output) for output in outputs] == [3] * len(artifact.manifest.outputs)
    sample = next(sample for sample in find(app).samples() if sample.synthetic)
    files = [str(path) for path in sample.files(tmp_path)]
    out = tmp_path / "out"
    assert cli.main(["predict", app, *files, "--out", str(out), "--artifact", str(artifact.path)]) == 0
    assert isinstance(json.loads((out / "result.json").read_text())[FINDINGS_KEYS[app]], list)
    settings = Settings(store=tmp_path / "store", registry=models, device="cpu", warm=False, workers=0)
    with TestClient(create_app(settings, {app: find(app)})) as client:
        choice = {"model": name} if app == "driving" else {}
        case = client.post(f"/api/{app}/predict", data={"sample": sample.name, **choice}).json()
        assert case["artifact"] == {"name": name, "version": 1}
        answered, written = dict(case["result"]), json.loads((out / "result.json").read_text())
        # The server has loaded the application's other models too, and lists the program of each.
        assert written["program_reasons"] == {name: "it was requested"}
        for key in ("versions", "programs", "program_reasons"):
            assert answered.pop(key).items() >= written.pop(key).items()
        assert answered == written
        assert client.get(f"/v2/models/{name}/ready").json() == {"name": name, "ready": True}
    capsys.readouterr()
    assert cli.main(["evaluate", app, "--run", str(run)]) == 0
    assert "loss" in capsys.readouterr().out


def last_weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(max((run / "checkpoints").glob("step-*")) / "model.safetensors")


@pytest.mark.parametrize("app", APPS)
def test_an_interrupted_run_ends_with_the_same_weights(app, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train = ["train", app, "--recipe", "tiny", "--device", "cpu"]
    assert cli.main([*train, "--out", str(whole)]) == 0
    assert cli.main([*train, "--out", str(parts), "--limits.steps", "3"]) == 0
    assert cli.main([*train, "--out", str(parts)]) == 0
    expected, resumed = last_weights(whole), last_weights(parts)
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, resumed[name], err_msg=name)


def test_torchrun_trains_on_two_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--no-python", str(Path(sys.executable).with_name("trivium"))]
    command += ["train", "line", "--recipe", "tiny", "--out", str(tmp_path / "run"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{install(tmp_path / 'site')}"}
    completed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    begin = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[0])
    assert begin["world"] == 2
    assert completed.stdout.count("ended by") == 1


def test_shared_loads_no_domain_library(tmp_path):
    code = (
        "import sys, pkgutil, importlib, shared\n"
        "for module in pkgutil.walk_packages(shared.__path__, 'shared.'):\n"
        "    if not module.name.endswith(('.__main__', '.env')):  # importing these runs the command or Alembic\n"
        "        importlib.import_module(module.name)\n"
        "domain = {'lightning', 'pytorch_lightning', 'monai', 'mmdet3d', 'pytorch_forecasting'}\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in domain))\n"
    )
    completed = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == ""
