"""The examples in docs/integrators.md and docs/operating.md run unchanged against a server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from apps.finance.datasets.synth.markets import market
from apps.finance.outputs.series_csv import write_csv
from shared.serve.app import create_app
from shared.serve.settings import Settings
from shared.store.keys import Keys
from tests.conftest import serving

PAGES = [Path(__file__).parents[1] / "docs" / name for name in ("integrators.md", "operating.md")]
SERVER = "http://127.0.0.1:8000"
TIMEOUT_S = 150


def examples(containing: str = SERVER.removeprefix("http://")) -> list[tuple[str, str]]:
    """Language and text of the code blocks that contain this text, by default those that send requests to a server."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in blocks if containing in text]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the file that the examples upload: a synthetic market."""
    write_csv(tmp_path / "prices.csv", market(np.random.default_rng(3), length=1000).series)
    return tmp_path


def run(language: str, text: str, server: str, folder: Path) -> str:
    """Runs an example against the server; returns what it prints, and fails if the example fails."""
    if language == "bash" and shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    script = text.replace(SERVER.removeprefix("http://"), server.removeprefix("http://"))
    command = ["bash", "-euo", "pipefail", "-c", script] if language == "bash" else [sys.executable, "-c", script]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    completed = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert completed.returncode == 0, f"{text}\n{completed.stdout}\n{completed.stderr}"
    return completed.stdout


def test_there_are_examples_in_bash_and_python() -> None:
    assert [language for language, _ in examples()] == ["bash", "python", "bash", "bash", "python", "bash"]


def test_a_request_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    application = create_app(Settings(store=tmp_path / "store", warm=False, device="cpu", require_key=True))
    with serving(application) as server:
        monkeypatch.setenv("TRIVIUM_KEY", Keys(application.state.store.engine).add("anna", "user"))
        assert "synthetic" in run(*examples()[5], server, tmp_path)


def test_a_prediction_with_curl_and_from_python(server: str, folder: Path) -> None:
    with_curl, from_python = examples()[:2]
    assert "synthetic" in run(*with_curl, server, folder)
    assert "events" in json.loads((folder / "answer.json").read_text())["result"]
    assert re.match(r"\d+ events", run(*from_python, server, folder))
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "scores.csv").read_text().startswith("timestamp,value,anomaly_score,label\n")


def test_a_review_with_curl(server: str, folder: Path) -> None:
    run(*examples()[0], server, folder)
    case = json.loads((folder / "answer.json").read_text())["case"]
    language, text = examples()[2]
    assert json.loads(run(language, text.replace("/ID/", f"/{case}/"), server, folder))["verdicts"] == {"1": "accepted"}


def test_the_events_of_a_job_are_read_until_it_is_done(server: str, folder: Path) -> None:
    printed = run(*examples()[3], server, folder)
    assert re.findall(r"^event: (\w+)", printed, re.MULTILINE)[-1] == "done", printed


def test_inference_with_tritonclient(server: str, folder: Path) -> None:
    assert run(*examples()[4], server, folder).strip() == "(4, 8, 7)"


def test_an_int8_program_is_exported_for_the_openvino_backend_of_triton(folder: Path) -> None:
    (example,) = examples("write_openvino_model")
    assert run(*example, SERVER, folder).strip() == "triton/pointpillars"
    (version,) = (folder / "triton" / "pointpillars").glob("[0-9]*")
    assert {file.name for file in version.iterdir()} == {"model.xml", "model.bin"}
