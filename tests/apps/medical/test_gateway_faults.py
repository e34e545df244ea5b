"""Failures of the server or the archive: nothing is lost, and later series are not blocked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pynetdicom import AE, evt

from apps.medical.adapters.gateway import DicomGateway
from shared.cli import main
from shared.errors import InvalidInputError
from shared.job_client import JobClient
from tests.apps.medical.pacs import (
    PATIENT,
    SR,
    UNCLOSED_SOCKETS,
    Archive,
    StubServer,
    gateway,
    images,
    report,
    send,
    wait_for,
    waiting,
)
from tests.servers import free_port

pytestmark = UNCLOSED_SOCKETS
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture
def around(stub, archive):
    """A server and an archive."""
    return stub, archive


UNREACHABLE = "cannot be reached (connection refused; is the server running?)"


def fail(status: int, problem: str = "it cannot be read"):
    return {"state": "failed", "problem": problem, "status": status}


def test_the_log_warns_at_the_start_if_server_and_archive_are_unavailable(tmp_path, log):
    server, archive = free_port(), free_port()
    with gateway(tmp_path, f"http://127.0.0.1:{server}", archive):
        wait_for(lambda: f"the server at http://127.0.0.1:{server} does not answer" in log.text)
        wait_for(lambda: f"PACS@127.0.0.1:{archive} {UNREACHABLE}; reports will wait" in log.text)


def test_the_log_warns_at_the_start_about_a_wrong_server_and_says_that_the_archive_accepts_reports(
    tmp_path, around, log
):
    stub, archive = around
    stub.gone = {"/api/medical/jobs?limit=1"}
    with gateway(tmp_path, stub.address, archive.port):
        wait_for(lambda: f"the server at {stub.address} has no application medical" in log.text)
        wait_for(lambda: f"PACS@127.0.0.1:{archive.port} accepts reports" in log.text)


def test_the_log_warns_at_the_start_if_the_archive_does_not_accept_reports(tmp_path, around, log):
    entity = AE(ae_title="PACS")
    entity.add_supported_context("1.2.840.10008.1.1")
    server = entity.start_server(("127.0.0.1", 0), block=False)
    port = server.server_address[1]
    with gateway(tmp_path, around[0].address, port):
        wait_for(lambda: f"PACS@127.0.0.1:{port} does not accept reports" in log.text)
    entity.shutdown()


def test_a_series_waits_for_the_server_and_its_report_for_the_archive_over_restarts(tmp_path, log):
    server, archive = free_port(), free_port()
    with gateway(tmp_path, f"http://127.0.0.1:{server}", archive) as port:
        assert send(port, images()) == [0] * 4
        wait_for(lambda: log.text.count("does not answer") >= 2)
    stub = StubServer(server, report())
    with gateway(tmp_path, stub.address, archive, quiet_seconds=0.05):
        wait_for(lambda: log.text.count(f"{UNREACHABLE}; next try") >= 2)
        assert re.search(r"the reports of series [0-9a-f]{12} wait: PACS@.* \(1 waiting in total\)", log.text)
        assert [name.partition("/")[0] for name in waiting(tmp_path)] == ["reports"]
    stub.close()
    pacs = Archive(archive)
    with gateway(tmp_path, stub.address, archive):
        wait_for(lambda: pacs.got)
        wait_for(lambda: not waiting(tmp_path))
    pacs.close()
    assert len(stub.bodies) == 1


def test_a_report_waits_at_most_a_minute_for_an_unavailable_archive(tmp_path, stub, log):
    with gateway(tmp_path, stub.address, free_port(), pauses=(200, 300)) as port:
        send(port, images())
        wait_for(lambda: f"{UNREACHABLE}; next try in 60 s" in log.text)


def test_once_the_archive_accepts_a_report_all_waiting_ones_are_sent(tmp_path, stub, log):
    """The first report is still in a long pause when the second finds the archive available again."""
    archive = free_port()
    with gateway(tmp_path, stub.address, archive, pauses=(50, 300)) as port:
        send(port, images())
        wait_for(lambda: f"{UNREACHABLE}; next try in 50 s" in log.text)
        pacs = Archive(archive)
        send(port, images("1.2.9"))
        wait_for(lambda: len(pacs.got) == 2)
        wait_for(lambda: not waiting(tmp_path))
    pacs.close()


def test_a_running_job_is_found_again_after_a_restart(tmp_path, around):
    stub, archive = around
    stub.answer = lambda number: {"state": "running"}
    with gateway(tmp_path, stub.address, archive.port) as port:
        send(port, images())
        wait_for(lambda: any(name.endswith("/job") for name in waiting(tmp_path)))
    stub.answer = lambda number: {"state": "done"}
    with gateway(tmp_path, stub.address, archive.port):
        wait_for(lambda: archive.got)
    assert len(stub.bodies) == 1 and stub.cancelled == []


def test_a_refusal_is_logged_without_names_and_the_series_deleted(tmp_path, around, log):
    stub, archive = around
    with gateway(tmp_path, stub.address, archive.port) as port:
        stub.answer = lambda number: fail(
            422, f"{stub.names(0)[0]} has no RescaleSlope (invalid literal 'Doe^Jane', PID4711, acc99); export it again"
        )
        send(port, images())
        wait_for(lambda: "refused (422)" in log.text)
        wait_for(lambda: not waiting(tmp_path))
        assert "has no RescaleSlope" in log.text and "export it again" in log.text
    hidden = (*PATIENT.values(), "Doe", "Jane", "acc99", stub.names(0)[0])
    assert not any(word in log.text for word in hidden) and archive.got == []


def test_a_series_that_fails_on_the_server_is_moved_aside_and_blocks_nothing(tmp_path, around, log):
    stub, archive = around
    stub.answer = lambda number: fail(500) if len(stub.names(number - 1)) == 3 else {"state": "done"}
    with gateway(tmp_path, stub.address, archive.port) as port:
        send(port, images("1.2.9", 3))
        send(port, images())
        wait_for(lambda: archive.got)
        wait_for(lambda: "moved to aside/ after 3 tries" in log.text)
        wait_for(lambda: not waiting(tmp_path))
    assert log.text.count("ERROR") == 1 and len(stub.bodies) == 4
    assert len(list((tmp_path / "aside").rglob("*.dcm"))) == 3


def test_an_overloaded_server_is_tried_again(tmp_path, around, log):
    stub, archive = around
    stub.status = 503
    with gateway(tmp_path, stub.address, archive.port) as port:
        send(port, images())
        for status, words in ((503, "answers 503"), (401, "TRIVIUM_KEY"), (404, "Trivium's")):
            stub.status = status
            wait_for(lambda words=words: log.text.count(words) > 1)
        stub.status = 202
        wait_for(lambda: archive.got)
    assert not list((tmp_path / "aside").iterdir())


def test_a_series_whose_case_was_deleted_on_the_server_is_analysed_again(tmp_path, around):
    stub, archive = around
    stub.answer = lambda number: (
        {"state": "done", "case": "/api/medical/cases/gone/away"} if number == 1 else {"state": "done"}
    )
    stub.gone = {"/api/medical/cases/gone/away"}
    with gateway(tmp_path, stub.address, archive.port) as port:
        send(port, images())
        wait_for(lambda: archive.got)
    assert len(stub.bodies) == 2


def test_a_cancelled_job_is_not_submitted_again(tmp_path, around, log):
    stub, archive = around
    stub.answer = lambda number: {"state": "cancelled"}
    with gateway(tmp_path, stub.address, archive.port) as port:
        send(port, images())
        wait_for(lambda: "cancelled" in log.text)
        wait_for(lambda: not waiting(tmp_path))
    assert len(stub.bodies) == 1


def test_a_report_that_the_archive_refuses_is_moved_aside(tmp_path, around, log):
    stub, archive = around
    archive.status = 0xA700  # out of resources, which is temporary
    with gateway(tmp_path, stub.address, archive.port) as port:
        send(port, images())
        wait_for(lambda: log.text.count("0xA700") > 2)
        archive.status = 0xC000
        wait_for(lambda: "moved to aside/ after 3 tries" in log.text)
        archive.status = 0
        send(port, images())
        wait_for(lambda: archive.got)
    assert len(list((tmp_path / "aside").glob("*.dcm"))) == 1


def as_segmentation(report: bytes) -> bytes:
    """The same object with the SOP class of a segmentation."""
    dataset = dcmread(BytesIO(report))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SEG
    stream = BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def test_the_log_distinguishes_reports_from_segmentations(tmp_path, around, log):
    stub, _ = around
    stub.segmentation = as_segmentation(stub.report)
    entity = AE(ae_title="PACS")
    for kind in (SR, SEG):
        entity.add_supported_context(kind)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)])
    with gateway(tmp_path, stub.address, server.server_address[1]) as port:
        send(port, images())
        wait_for(lambda: log.text.count("in the archive") == 2)
    entity.shutdown()
    assert "its report is in the archive" in log.text and "its segmentation is in the archive" in log.text


def test_an_archive_without_segmentations_gets_only_the_report(tmp_path, around, log):
    stub, archive = around
    stub.segmentation = as_segmentation(stub.report)
    with gateway(tmp_path, stub.address, archive.port) as port:
        send(port, images())
        wait_for(lambda: archive.got and "does not accept segmentations" in log.text)
        wait_for(lambda: not list((tmp_path / "reports").iterdir()))
    assert [dataset.SOPClassUID for dataset in archive.got] == [SR]
    assert not list((tmp_path / "aside").iterdir())


def test_two_gateways_do_not_share_a_spool(tmp_path, around):
    stub, archive = around
    second_gateway = DicomGateway(to=f"PACS@127.0.0.1:{archive.port}", host="127.0.0.1", port=free_port())
    with (
        gateway(tmp_path, stub.address, archive.port) as port,
        pytest.raises(InvalidInputError, match="the spool of another gateway"),
    ):
        second_gateway.run(JobClient(stub.address, "medical"), tmp_path, None)
    on_a_used_port = DicomGateway(to=f"PACS@127.0.0.1:{archive.port}", host="127.0.0.1", port=archive.port)
    with pytest.raises(InvalidInputError, match=f"cannot listen on port {archive.port} of "):
        on_a_used_port.run(JobClient(stub.address, "medical"), tmp_path, None)
    assert port != archive.port


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--to", "PACS"], "TITLE@HOST:PORT"),
        (["--to", "P@h:104", "--aet", "LONGER_THAN_A_TITLE"], "not a valid AE title"),
        (["--to", "P@h:104", "--server", "ftp://x"], "not a server address"),
        (["--to", "P@h:104", "--max-slice-thickness-mm", "0"], "--max-slice-thickness-mm is 0.0; it must be above 0"),
    ],
)
def test_invalid_options_are_refused_with_a_message(words, expected, capsys):
    assert main(["gateway", "medical", *words]) == 2
    assert expected in capsys.readouterr().err


def test_an_application_without_a_gateway_says_so(capsys):
    assert main(["gateway", "finance"]) == 2
    assert "finance has no gateway" in capsys.readouterr().err


def test_the_command_needs_no_torch_and_ends_cleanly(tmp_path, around):
    stub, archive = around
    port = free_port()
    words = ["gateway", "medical", "--server", stub.address, "--spool", str(tmp_path / "spool"), "--host", "127.0.0.1"]
    words += [
        "--port",
        str(port),
        "--to",
        f"PACS@127.0.0.1:{archive.port}",
        "--quiet-seconds",
        "0.2",
        "--from",
        "CT",
        "MR",
    ]
    program = (
        "import sys\nfrom shared.cli import main\n"
        f"code = main({words!r})\nassert 'torch' not in sys.modules\nsys.exit(code)"
    )
    environment = {**os.environ, "TRIVIUM_AUTHORIZATION": "Bearer secret"}
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, env=environment, cwd=root
    ) as process:
        assert process.stderr is not None
        stderr = process.stderr.readline().decode()
        assert f"listening on 127.0.0.1:{port} as TRIVIUM, for CT, MR" in stderr
        assert send(port, images(), title="CT") == [0] * 4
        wait_for(lambda: archive.got)
        process.send_signal(signal.SIGTERM)
        stderr += process.stderr.read().decode()
        assert process.wait(15) == 0
    assert "INFO stopped" in stderr and "secret" not in stderr
    assert stub.headers[0]["Authorization"] == "Bearer secret"
