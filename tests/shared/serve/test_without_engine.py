"""Artifacts outlive what trained them: serving needs nothing of the engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SERVE = """
import json, sys
from pathlib import Path
from fastapi.testclient import TestClient
from shared.app import installed
from shared.serve.app import create_app
from shared.serve.settings import Settings

folder = Path(sys.argv[1])
with TestClient(create_app(Settings(store=folder / "store", warm=False, device="cpu"))) as client:
    ready = [client.get(f"/v2/models/{name}/ready").status_code for app in installed().values() for name in app.models]
    sample = next(sample for sample in installed()["finance"].samples() if sample.synthetic)
    files = [("files", (file.name, file.read_bytes())) for file in sample.files(folder)]
    answer = client.post("/api/finance/predict", files=files)
engine = sorted(name for name in sys.modules if name.startswith("shared.engine"))
print(json.dumps({"ready": ready, "status": answer.status_code, "engine": engine}))
"""


def test_a_server_predicts_without_the_engine(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SERVE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 200 and found["engine"] == []
    assert found["ready"].count(200) >= 4
