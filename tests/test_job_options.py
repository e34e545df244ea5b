"""Submitting a job refuses invalid options with the same answer as a prediction."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from shared.app import installed
from shared.serve.app import create_app
from shared.serve.settings import Settings

INVALID_OPTIONS = (
    ("medical", {"colour": "red"}, "unknown option colour"),
    ("medical", {"score": "high"}, "expected a number from 0 to 1"),
    ("medical", {"most": "1000"}, "expected a number from 1 to 100"),
    ("driving", {"colour": "red"}, "unknown option colour"),
    ("driving", {"score": "nan"}, "a number from 0 to 1"),
    ("driving", {"model": "smoke"}, "unknown model 'smoke'"),
    ("finance", {"colour": "red"}, "unknown option colour"),
    ("finance", {"threshold": "2"}, "at most 1"),
    ("finance", {"events_per_day": "1", "threshold": "0.3"}, "give one of them"),
    ("finance", {"sample": "none such"}, "no sample 'none such'"),
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(store=tmp_path_factory.mktemp("store"), device="cpu", workers=0, warm=False, hosts="testserver")
    with TestClient(create_app(settings, installed())) as test_client:
        yield test_client


@pytest.mark.parametrize(("app", "fields", "words"), INVALID_OPTIONS)
def test_a_job_with_an_invalid_option_is_refused_at_once(
    client: TestClient, app: str, fields: dict[str, str], words: str
):
    upload = {} if "sample" in fields else {"files": [("files", ("a.bin", b"1"))]}
    response = client.post(f"/api/{app}/jobs", data=fields, **upload)
    assert response.status_code == 422 and words in response.json()["detail"]
    assert client.get(f"/api/{app}/jobs").json()["jobs"] == []
    if "sample" not in fields:
        assert response.json() == client.post(f"/api/{app}/predict", data=fields, **upload).json()


def test_jobs_and_predictions_refuse_a_model_that_is_not_loaded(client: TestClient):
    fields = {"model": "mmdet3d_lidar", "sample": "synthetic"}
    response = client.post("/api/driving/jobs", data=fields)
    assert response.json() == {"detail": "the model mmdet3d_lidar is not loaded; loaded: pointpillars, fcos3d"}
    assert response.status_code == 422 and client.get("/api/driving/jobs").json()["jobs"] == []
    assert response.json() == client.post("/api/driving/predict", data=fields).json()


def test_options_are_read_without_torch() -> None:
    code = "import sys; from shared.app import installed; [app.read_options({}) for app in installed().values()]; "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True, cwd=Path.cwd())
