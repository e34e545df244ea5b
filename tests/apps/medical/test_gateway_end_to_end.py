"""A CT through a real server, and through a real PACS where one is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from apps.medical.predictor import NodulePredictor
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.medical.chests import body_with_lungs, dicom_slice
from tests.apps.medical.pacs import (
    PATIENT,
    UNCLOSED_SOCKETS,
    Archive,
    StubServer,
    gateway,
    images,
    report,
    send,
    wait_for,
)
from tests.conftest import serving
from tests.servers import free_port

pytestmark = UNCLOSED_SOCKETS
ORTHANC = shutil.which("Orthanc")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture
def real_server(tmp_path: Path, untrained: NodulePredictor, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose network has random weights, so that it finds something in any scan that is not empty."""
    monkeypatch.setattr(NodulePredictor, "load", lambda artifacts, device: untrained)
    monkeypatch.setattr(untrained, "operating_score", 0.0)
    with serving(create_app(Settings(store=tmp_path / "store", warm=False, device="cpu", workers=0))) as address:
        yield address


def test_a_real_server_analyses_a_series_and_keeps_the_case_for_the_form(tmp_path, real_server, caplog):
    caplog.set_level("INFO", "trivium.gateway")
    body = body_with_lungs()
    solid = replace(body, voxels_zyx=np.where(body.voxels_zyx == -850, 40, body.voxels_zyx))
    archive = Archive()
    with gateway(tmp_path / "spool", real_server, archive.port) as port:
        for series, volume, count in (("1.2.3", body, 30), ("1.2.4", solid, 30), ("1.2.5", body, 2)):
            slices = [dicom_slice(volume, k, SeriesInstanceUID=series, **PATIENT) for k in range(count)]
            assert set(send(port, [dcmread(BytesIO(content)) for content in slices])) == {0}
        wait_for(lambda: archive.got, 100)
        wait_for(lambda: "no lungs were found" in caplog.text and "refused (422)" in caplog.text, 60)
    archive.close()
    (received,) = archive.got
    assert (
        received.PatientID == PATIENT["PatientID"] and received.StudyInstanceUID == "1.2" and received.Modality == "SR"
    )
    read = received.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert read.SeriesInstanceUID == "1.2.3" and len(read.ReferencedSOPSequence) == 30
    assert "holds 2 CT image(s); a volume needs a series of at least 3" in caplog.text
    assert len(ask(f"{real_server}/api/medical/cases")["cases"]) == 2


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[tuple[str, int, int]]:
    """Orthanc: its address, its DICOM port, and the port of the gateway that it is configured for."""
    if ORTHANC is None:
        pytest.skip("Orthanc is not installed")
    web, dicom, known = free_port(), free_port(), free_port()
    settings = {
        "StorageDirectory": str(tmp_path / "db"),
        "IndexDirectory": str(tmp_path / "db"),
        "Plugins": [str(DICOMWEB)] if DICOMWEB.exists() else [],
        "HttpPort": web,
        "DicomPort": dicom,
        "DicomAet": "PACS",
        "AuthenticationEnabled": False,
        "DicomModalities": {"trivium": ["TRIVIUM", "127.0.0.1", known]},
        "DicomAlwaysAllowStore": True,
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    command = [ORTHANC, str(tmp_path / "orthanc.json")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: ask(f"http://127.0.0.1:{web}/system"))
            yield f"http://127.0.0.1:{web}", dicom, known
        finally:
            process.terminate()


def ask(address: str, data: bytes | None = None) -> Any:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data)) as response:
            return json.load(response)
    except urllib.error.URLError:
        return None


def test_orthanc_sends_a_ct_and_files_the_report_in_its_study(tmp_path, orthanc):
    address, dicom, known = orthanc
    stub = StubServer(report=report())
    for image in images():
        image.save_as(content := BytesIO(), enforce_file_format=True)
        stored = ask(f"{address}/instances", content.getvalue())
    study = f"{address}/studies/{stored['ParentStudy']}"
    with gateway(tmp_path / "spool", stub.address, dicom, port=known):
        assert ask(f"{address}/modalities/trivium/echo", b"{}") == {}
        sent = ask(f"{address}/modalities/trivium/store", json.dumps(stored["ParentSeries"]).encode())
        assert (sent["InstancesCount"], sent["FailedInstancesCount"]) == (4, 0)
        series = wait_for(lambda: found if len(found := ask(study)["Series"]) == 2 else None)
    stub.close()
    kinds = sorted(ask(f"{address}/series/{series_id}")["MainDicomTags"]["Modality"] for series_id in series)
    assert kinds == ["CT", "SR"] and len(ask(f"{address}/patients")) == 1


@pytest.mark.skipif(not DICOMWEB.exists(), reason="orthanc-dicomweb is not installed")
def test_orthanc_files_a_report_sent_by_dicomweb(tmp_path, orthanc, caplog):
    caplog.set_level("INFO", "trivium.gateway")
    address, _, known = orthanc
    stub = StubServer(report=report())
    datasets = images()
    for image in datasets:
        image.save_as(content := BytesIO(), enforce_file_format=True)
        stored = ask(f"{address}/instances", content.getvalue())
    study = f"{address}/studies/{stored['ParentStudy']}"
    with gateway(tmp_path / "spool", stub.address, f"{address}/dicom-web/", port=known) as port:
        wait_for(lambda: f"{address}/dicom-web accepts reports" in caplog.text)
        for _ in range(2):
            assert send(port, datasets) == [0] * 4
            wait_for(lambda: caplog.text.count("its report is in the archive") == len(stub.bodies) > 0)
        series = wait_for(lambda: found if len(found := ask(study)["Series"]) == 2 else None)
    stub.close()
    kinds = sorted(ask(f"{address}/series/{series_id}")["MainDicomTags"]["Modality"] for series_id in series)
    assert kinds == ["CT", "SR"] and len(ask(f"{address}/patients")) == 1
