"""Nothing that may name a patient is kept: no file name, no text of a DICOM header, and no text of an error."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from apps.medical.adapters.nifti import nifti
from apps.medical.app import app
from apps.medical.predictor import NodulePredictor
from apps.medical.service import MedicalCodec
from shared.deploy.predictor import Request
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.medical.chests import chest, pack, series

NAMED = {
    "PatientName": "MUELLER^HANS",
    "PatientID": "PID-4711",
    "AccessionNumber": "ACC-0815",
    "PatientBirthDate": "19500101",
    "StudyDate": "20260102",
    "StudyDescription": "Thorax MUELLER",
    "SeriesDescription": "Lunge MUELLER",
    "ReferringPhysicianName": "SCHMIDT^EVA",
    "InstitutionName": "Klinikum am See",
}
SECRETS = ("mueller", "pid-4711", "acc-0815", "19500101", "20260102", "schmidt", "klinikum")


@pytest.fixture
def hospital(untrained: NodulePredictor, tmp_path: Path) -> Iterator[TestClient]:
    served = replace(app, predictor=lambda artifacts, device: untrained)
    settings = Settings(hosts="testserver", store=tmp_path / "store", warm=False, device="cpu")
    with TestClient(create_app(settings, {"medical": served}), raise_server_exceptions=False) as client:
        yield client


def hand_in(client: TestClient, *files: tuple[str, bytes]) -> dict[str, object]:
    response = client.post("/api/medical/predict", files=[("files", file) for file in files])
    assert response.status_code == 200, response.text
    return response.json()


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text.lower()]


def store_content(folder: Path) -> str:
    """The whole content of the store: the database with its journal, and the names and contents of all files."""
    return "".join(f"{path}\n{path.read_bytes().decode('latin-1')}\n" for path in folder.rglob("*") if path.is_file())


def test_a_zip_and_a_header_that_name_a_patient_leave_no_trace(hospital, tmp_path, caplog):
    slices = {f"MUELLER_HANS/{name}": content for name, content in series(chest(), **NAMED).items()}
    archive = pack(tmp_path, slices, "MUELLER_HANS_19500101.zip").read_bytes()
    with caplog.at_level(logging.DEBUG):
        case = hand_in(hospital, ("MUELLER_HANS_19500101.zip", archive))
        hand_in(hospital, *((f"MUELLER.{n}", content) for n, content in enumerate(slices.values())))
        hand_in(hospital, ("MUELLER.nii.gz", nifti(chest())))
    assert case["result"]["findings"] and case["inputs"][0]["name"] == "zip file"
    listed = hospital.get("/api/medical/cases").json()["cases"]
    assert [entry["inputs"] for entry in listed] == [["nii.gz file"], ["20 files"], ["zip file"]]
    first = case["result"]["findings"][0]
    assert first["image"]["instance_number"] == case["result"]["volume"]["instance_numbers"][first["slice"] - 1]
    assert len(case["inputs"][0]["sha256"]) == 64 and case["inputs"][0]["bytes"] == len(archive)
    pages = "".join(hospital.get(path).text for path in ("/", "/medical", "/metrics", "/healthz", "/api/medical/cases"))
    everything = store_content(tmp_path / "store")
    assert case["inputs_sha256"] in everything, "the digests are kept"
    assert not leaks(everything) and not leaks(pages) and not leaks(caplog.text)
    for label in ("(zip file", "(nii.gz file", "20 DICOM images (20 files"):
        assert label in pages


def test_the_same_content_under_another_name_is_the_same_input(hospital):
    first, second = (hand_in(hospital, (name, nifti(chest()))) for name in ("MUELLER.nii.gz", "b.nii.gz"))
    assert first["inputs"] == second["inputs"] and first["inputs_sha256"] == second["inputs_sha256"]


def test_a_refusal_names_the_file_only_to_its_sender(hospital, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        response = hospital.post("/api/medical/predict", files=[("files", ("MUELLER.nii.gz", b"nothing"))])
    assert response.status_code == 422 and "MUELLER.nii.gz" in response.json()["detail"]
    assert not leaks(caplog.text) and not leaks(store_content(tmp_path / "store"))


WITHOUT_PLACE = {
    f"MUELLER^HANS/I{k}": content for k, content in enumerate(series(chest(), ImagePositionPatient=None).values())
}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (WITHOUT_PLACE, "a file of the archive has no usable ImagePositionPatient"),
        ({"SCHMIDT.xyz": b"nothing"}, "it holds a file of the archive"),
    ],
)
def test_a_refused_job_keeps_no_names_of_files_in_an_archive(hospital, tmp_path, members, message):
    archive = pack(tmp_path, members, "MUELLER.zip").read_bytes()
    job = hospital.post("/api/medical/jobs", files=[("files", ("MUELLER.zip", archive))]).json()
    with hospital.stream("GET", job["events"]) as stream:
        assert '"state":"failed"' in "".join(stream.iter_text())
    problem = hospital.get(job["url"]).json()["problem"]
    assert message in problem and not leaks(problem)
    with closing(sqlite3.connect(tmp_path / "store" / "trivium.sqlite")) as database:
        assert not leaks("".join(database.iterdump()))


def test_an_unexpected_error_is_logged_with_its_location_and_without_its_message(hospital, caplog, monkeypatch):
    def fail(request: Request) -> None:
        raise LookupError(f"nobody foresaw {request.files[0]}")

    monkeypatch.setattr(MedicalCodec, "decode", lambda self, request: fail(request))
    response = hospital.post("/api/medical/predict", files=[("files", ("MUELLER.nii.gz", b"nothing"))])
    assert response.status_code == 500 and not leaks(response.text)
    assert "LookupError" in caplog.text and "in fail" in caplog.text and not leaks(caplog.text)
