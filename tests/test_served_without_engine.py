"""The server predicts with all shipped weights without importing any training code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_PROGRAM = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from apps.medical import samples
from apps.medical.adapters.nifti import nifti
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.medical.chests import chest

samples._phantom_nifti = lambda: nifti(chest())  # in place of a whole phantom, whose prediction takes a minute
settings = Settings(store=Path(sys.argv[1]), warm=False, device="cpu", deadline_s=400, workers=0)
with TestClient(create_app(settings)) as client:
    for app in ("medical", "driving", "finance"):
        sample = next(s for s in client.get(f"/api/{app}/samples").json()["samples"] if s["synthetic"])
        case = client.post(f"/api/{app}/predict", data={"sample": sample["name"]})
        assert case.status_code == 200, case.text
        assert client.get(case.json()["picture"]).content.startswith(b"\\x89PNG")
    models = client.get("/v2").json()["models"]
    assert all(client.get(f"/v2/models/{name}/ready").status_code == 200 for name in models)
training = ("shared.engine", "shared.comms", *(f"apps.{app}.task" for app in ("medical", "driving", "finance")))
print(models, sorted(name for name in sys.modules if name.startswith(training)))
"""


@pytest.mark.usefixtures("networks_of_shipped")
def test_the_server_predicts_without_training_code(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(tmp_path / "store")]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=450)
    assert completed.returncode == 0, completed.stderr
    models, training_modules = completed.stdout.strip().splitlines()[-1].rsplit(" [", 1)
    assert all(name in models for name in ("lung_nodules", "pointpillars", "fcos3d", "tft-anomaly"))
    assert training_modules == "]"
