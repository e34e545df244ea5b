"""Reports by STOW-RS: the requests, and how each response of an archive is handled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from apps.medical.adapters.gateway import DicomGateway
from apps.medical.outputs.dicom_send import SEGMENTATION, ArchiveUnavailable, ClassNotSupported, ReportRefused
from apps.medical.outputs.dicomweb_send import read_web_archive
from shared.errors import InvalidInputError
from tests.apps.medical.pacs import (
    UNCLOSED_SOCKETS,
    StubServer,
    WebPacs,
    gateway,
    images,
    report,
    send,
    wait_for,
)
from tests.servers import free_port

pytestmark = UNCLOSED_SOCKETS


@pytest.fixture
def pacs() -> Iterator[WebPacs]:
    found = WebPacs()
    yield found
    found.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "report.dcm").write_bytes(report())
    return tmp_path / "report.dcm"


def failure(reason: int) -> bytes:
    """The response of an archive that did not store the instance."""
    item = {"00081197": {"vr": "US", "Value": [reason]}}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()


def sent(pacs: WebPacs, file: Path) -> ReportRefused | None:
    ((path, refusal),) = read_web_archive(pacs.url).send([file])
    assert path == file
    return refusal


def test_a_gateway_stores_the_report_with_the_archives_authorization(tmp_path, pacs, monkeypatch):
    monkeypatch.setenv("TRIVIUM_ARCHIVE_AUTHORIZATION", "Bearer secret\n")
    stub = StubServer(report=report())
    with gateway(tmp_path, stub.address, pacs.url) as port:
        assert send(port, images()) == [0] * 4
        wait_for(lambda: len(pacs.asked) == 2)
    stub.close()
    assert [(method, path) for method, path, *_ in pacs.asked] == [
        ("GET", "/dicom-web/studies?limit=1"),
        ("POST", "/dicom-web/studies"),
    ]
    assert {headers["Authorization"] for _, _, headers, _ in pacs.asked} == {"Bearer secret"}
    (stored,) = pacs.stored()
    assert stored == report() and dcmread(BytesIO(stored)).Modality == "SR"


@pytest.mark.parametrize(
    ("status", "answer"),
    [(200, b""), (200, b"{}"), (202, b"<xml/>"), (202, b"[{}]"), (409, failure(0x0111)), (200, failure(0x0111))],
)
def test_a_stored_or_already_present_report_counts_as_sent(pacs, file, status, answer):
    pacs.status, pacs.answer = status, answer
    assert sent(pacs, file) is None


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (409, b"", "status 409"),
        (400, b"no", "status 400"),
        (409, failure(0xC000), "0xC000"),
        (200, failure(0xC000), "0xC000"),
        (202, b'[{"00081198": {"Value": [{}]}}]', "status 202"),
        (409, failure(0x0122), "0x0122"),
    ],
)
def test_a_refusal_states_its_reason(pacs, file, status, answer, words):
    pacs.status, pacs.answer = status, answer
    refusal = sent(pacs, file)
    assert type(refusal) is ReportRefused and words in str(refusal)


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (503, b"", "responds with status 503"),
        (302, b"", "responds with status 302"),
        (401, b"", "401; set TRIVIUM_ARCHIVE_AUTHORIZATION to its credentials"),
        (404, b"", "404; is that the address of its DICOMweb"),
        (409, failure(0xA700), "does not accept data now"),
    ],
)
def test_temporary_failures_are_raised_as_unavailable(pacs, file, status, answer, words):
    pacs.status, pacs.answer = status, answer
    with pytest.raises(ArchiveUnavailable, match=words):
        sent(pacs, file)


def test_an_archive_without_segmentations_still_gets_the_report(pacs, file, tmp_path):
    dataset = dcmread(file)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SEGMENTATION
    dataset.save_as(tmp_path / "seg.dcm")
    pacs.status, pacs.answer = 409, failure(0x0122)
    assert isinstance(sent(pacs, tmp_path / "seg.dcm"), ClassNotSupported)


def test_a_file_that_is_not_dicom_is_refused_and_the_next_is_sent(pacs, file, tmp_path):
    (tmp_path / "torn.dcm").write_bytes(b"torn")
    torn, good = read_web_archive(pacs.url).send([tmp_path / "torn.dcm", file])
    assert isinstance(torn[1], ReportRefused) and good[1] is None


def test_the_check_fails_if_the_archive_is_unavailable_or_requires_a_login(pacs):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ArchiveUnavailable, match=f"{url} cannot be reached"):
        read_web_archive(url).check()
    read_web_archive(pacs.url).check()
    pacs.status = 403
    with pytest.raises(ArchiveUnavailable, match="responds with status 403; set TRIVIUM_ARCHIVE_AUTHORIZATION"):
        read_web_archive(pacs.url).check()


@pytest.mark.parametrize("to", ["https://", "http://a:b@c/d", "https://archive:port/x", "https://archive/x?y=1"])
def test_an_invalid_address_is_refused(to):
    with pytest.raises(InvalidInputError, match="is not a DICOMweb address; write it as https://"):
        DicomGateway(to=to)
