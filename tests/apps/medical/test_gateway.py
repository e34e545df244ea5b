"""A CT that a PACS sends to the gateway is analysed by the server, and its report reaches the PACS."""

from __future__ import annotations

import re
import stat

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from pynetdicom import AE

from tests.apps.medical.pacs import (
    CT,
    PATIENT,
    UNCLOSED_SOCKETS,
    gateway,
    images,
    send,
    wait_for,
    waiting,
)

pytestmark = UNCLOSED_SOCKETS


def test_the_report_of_a_series_reaches_the_archive(tmp_path, stub, archive, log):
    spool = tmp_path / "spool"
    with gateway(spool, stub.address, archive.port) as port:
        assert send(port, images()) == [0, 0, 0, 0]
        spooled = [path for path in spool.rglob("*") if path.name != "lock"]
        wait_for(lambda: archive.got)
        wait_for(lambda: not waiting(spool))
    (received,) = archive.got
    assert (received.PatientName, received.PatientID, received.StudyInstanceUID) == (
        "Doe^Jane^Quincy",
        "PID4711",
        "1.2",
    )
    (body,) = stub.bodies
    assert b'name="patient"\r\n\r\nyes\r\n' in body and len(set(stub.names(0))) == 4
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in spooled if path.exists())
    text = "\n".join([log.text, *map(str, spooled), *stub.names(0)])
    assert "is in the archive" in text
    assert not any(part in text for part in (*PATIENT.values(), "Doe", "Jane", "1.2.3"))


def test_a_series_may_come_in_one_association_for_each_image(tmp_path, stub, archive):
    with gateway(tmp_path, stub.address, archive.port) as port:
        assert [send(port, [image]) for image in images()] == [[0]] * 4
        wait_for(lambda: archive.got)
    assert [len(stub.names(n)) for n in range(len(stub.bodies))] == [4]


def test_a_series_that_is_sent_again_is_analysed_again(tmp_path, stub, archive):
    with gateway(tmp_path, stub.address, archive.port) as port:
        for number in (1, 2):
            send(port, images())
            wait_for(lambda number=number: len(archive.got) == number)
    first, second = archive.got
    assert first.SOPInstanceUID == second.SOPInstanceUID


def test_two_series_of_one_study_are_two_jobs(tmp_path, stub, archive):
    with gateway(tmp_path, stub.address, archive.port) as port:
        send(port, [*images("1.2.3"), *images("1.2.4", 3)])
        wait_for(lambda: len(archive.got) == 2)
    assert sorted(len(stub.names(n)) for n in (0, 1)) == [3, 4]


def test_a_reconstruction_with_thick_slices_is_discarded_on_request(tmp_path, stub, archive, log):
    with gateway(tmp_path, stub.address, archive.port, max_slice_thickness_mm=2.0) as port:
        thin, thick, unsaid = (images(f"1.2.{n}", 3, SliceThickness=mm) for n, mm in ((3, "1.5"), (4, "3.0"), (5, "")))
        assert send(port, [*thin, *thick, *unsaid]) == [0] * 3 + [0xB006] * 3 + [0] * 3
        wait_for(lambda: len(archive.got) == 2)
        wait_for(lambda: not waiting(tmp_path))
    assert len(stub.bodies) == 2
    assert "its slices are thicker than 2 mm (--max-slice-thickness-mm)" in log.text


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_compressed_images_are_forwarded_unchanged(tmp_path, stub, archive, syntax):
    (image,) = images(count=1)
    if syntax == RLELossless:
        image.compress(syntax)
    else:
        image.file_meta.TransferSyntaxUID = syntax
        image["PixelData"].VR = "OW"
        if syntax == ExplicitVRBigEndian:
            image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
        image.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    with gateway(tmp_path, stub.address, archive.port) as port:
        assert send(port, [image]) == [0]
        wait_for(lambda: archive.got)
    assert syntax.encode() in stub.bodies[0]


def test_the_log_says_if_no_finding_reaches_the_operating_score(tmp_path, stub, archive, log):
    stub.report = None
    with gateway(tmp_path, stub.address, archive.port) as port:
        send(port, images())
        wait_for(lambda: "no report: no finding reaches the operating score (0.500)" in log.text)
        wait_for(lambda: not waiting(tmp_path))
    assert archive.got == []


def test_the_log_has_the_address_of_the_case_on_the_form(tmp_path, stub, archive, log):
    with gateway(tmp_path, stub.address, archive.port) as port:
        send(port, images())
        wait_for(lambda: f"analysed, {stub.address}/medical?case=1; its report will be sent" in log.text)


def test_images_that_arrive_during_the_analysis_are_included(tmp_path, stub, archive):
    stub.answer = lambda number: {"state": "running" if number == 1 else "done"}
    first, *others = images()
    with gateway(tmp_path, stub.address, archive.port) as port:
        send(port, [first])
        wait_for(lambda: stub.bodies)
        send(port, others)
        wait_for(lambda: archive.got)
    assert [len(stub.names(n)) for n in (0, 1)] == [1, 4] and stub.cancelled == ["/api/medical/jobs/1"]


def test_a_series_without_a_released_association_is_submitted_as_incomplete(tmp_path, stub, archive, log):
    with gateway(tmp_path, stub.address, archive.port, quiet_seconds=0.1) as port:
        entity = AE(ae_title="SCANNER")
        entity.add_requested_context(CT, ExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", port, ae_title="TRIVIUM")
        assert association.send_c_store(images()[0]).Status == 0
        association.abort()
        wait_for(lambda: archive.got)
        assert send(port, images("1.2.4")) == [0] * 4
        wait_for(lambda: len(archive.got) == 2)
    incomplete_fields = [re.search(rb'name="incomplete"\r\n\r\n(\w+)', body)[1] for body in stub.bodies]
    assert incomplete_fields == [b"yes", b"no"]
    assert log.text.count("images may be missing, as its sender did not finish; send it again") == 1
