"""An archive with hostile responses: the gateway keeps running in little memory, and keeps the report for later."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pynetdicom import AE, evt

from apps.medical.adapters.dicom_spool import Spool
from apps.medical.outputs import dicom_send, dicomweb_send
from apps.medical.outputs.dicom_send import Archive, ArchiveUnavailable, ReportRefused, StorageClient
from apps.medical.outputs.dicomweb_send import read_web_archive
from apps.medical.outputs.report_sender import ReportSender
from shared.backoff import Backoff
from tests.apps.medical.pacs import SR, UNCLOSED_SOCKETS, report, wait_for

pytestmark = UNCLOSED_SOCKETS
Connection = socket.socket


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.dcm"
    path.write_bytes(report())
    return path


@contextmanager
def peer(answer: Callable[[Connection], object]) -> Iterator[int]:
    """Serves connections: reads what arrives at once, answers, reads the rest and closes. Yields the port."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(1 << 16)
                    answer(connection)
                    # Closing with unread bytes would reset the connection and lose the answer.
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(1)
                    while connection.recv(1 << 16):
                        pass
                except OSError:
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def ok(content: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)


def sent(answer: bytes, file: Path) -> ReportRefused | None:
    with peer(lambda connection: connection.sendall(answer)) as port:
        ((_, refusal),) = read_web_archive(f"http://127.0.0.1:{port}/dicom-web").send([file])
    return refusal


@pytest.mark.parametrize("reason", [b"Infinity", b"NaN", b"1e999", b"9" * 4000, b"-42752", b'"x"'])
def test_an_invalid_failure_reason_is_a_refusal_with_the_http_status(file, reason):
    answer = ok(b'{"00081198": {"Value": [{"00081197": {"Value": [%s]}}]}}' % reason)
    assert str(sent(answer, file)).endswith("refuses it (status 200)")


def test_a_deeply_nested_response_counts_as_not_json(file):
    assert sent(ok(b"[" * 100_000), file) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ok(b"[" + b"{}," * 700_000 + b"{}]"), "responds with more than 1 MiB"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", "cannot be reached"),
        (b"HTTP/1.1 \x1b[31m" + b"A" * 60_000 + b"\r\n\r\n", "cannot be reached"),
    ],
)
def test_an_unreadable_response_gives_a_short_message(file, answer, words):
    with pytest.raises(ArchiveUnavailable, match=words) as away:
        sent(answer, file)
    assert len(str(away.value)) < 300 and str(away.value).isprintable()


def test_a_slow_response_times_out(file, monkeypatch):
    monkeypatch.setattr(dicomweb_send, "_TOTAL_TIMEOUT_S", 0.3)
    broken_off = threading.Event()

    def drip(connection: Connection) -> None:
        try:
            while True:
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                time.sleep(0.01)
        except OSError:
            broken_off.set()

    with peer(drip) as port, pytest.raises(ArchiveUnavailable, match="cannot be reached"):
        list(read_web_archive(f"http://127.0.0.1:{port}").send([file]))
    assert broken_off.wait(10)


def too_large(connection: Connection) -> None:
    connection.sendall(b"\x02\0" + struct.pack(">I", 0xFFFFFFFF))
    for _ in range(64):
        connection.sendall(bytes(1 << 20))
    raise AssertionError("all of it was read")


def half(connection: Connection) -> None:
    connection.sendall(b"\x02\0\0\0\0\x40abc")
    connection.recv(1)


@pytest.mark.parametrize("answer", [too_large, half, lambda connection: connection.sendall(b"HTTP/1.1 400 Bad\r\n")])
def test_a_peer_that_does_not_speak_dicom_is_left_at_once(file, answer, monkeypatch):
    monkeypatch.setattr(dicom_send, "_RESPONSE_TIMEOUT_S", 1)
    began = time.monotonic()
    with (
        peer(answer) as port,
        pytest.raises(ArchiveUnavailable, match="does not respond as a DICOM server; check its address"),
    ):
        list(StorageClient("TRIVIUM", Archive("PACS", "127.0.0.1", port)).send([file]))
    assert time.monotonic() - began < 10


def test_an_endless_response_to_a_report_ends_the_association(file, monkeypatch):
    monkeypatch.setattr(dicom_send, "_RESPONSE_TIMEOUT_S", 2)
    errors = []

    def endless(event: evt.Event) -> int:
        connection = event.assoc.dul.socket.socket
        try:
            connection.sendall(b"\x04\0" + struct.pack(">I", 0xFFFFFFF0))
            for _ in range(64):
                connection.sendall(bytes(1 << 20))
        except OSError as error:
            errors.append(error)
        return 0

    entity = AE("PACS")
    entity.add_supported_context(SR)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, endless)])
    try:
        with pytest.raises(ArchiveUnavailable, match="does not answer"):
            list(StorageClient("TRIVIUM", Archive("PACS", "127.0.0.1", server.server_address[1])).send([file]))
        wait_for(lambda: errors)
    finally:
        server.shutdown()


def test_unexpected_errors_of_an_archive_are_retried_after_a_pause(tmp_path, caplog):
    """Without a pause the sender would try five times a second without end."""

    class Broken:
        tries = 0

        def check(self) -> None:
            pass

        def send(self, reports):
            self.tries += 1
            raise RecursionError

    spool = Spool(tmp_path, 1 << 30, 1.0)
    spool.reports = lambda: [Path("one.dcm")]
    archive, stop = Broken(), threading.Event()
    caplog.set_level(logging.ERROR, "trivium.gateway")
    thread = threading.Thread(target=ReportSender(spool, archive, stop, Backoff(60, 300)).run, daemon=True)
    thread.start()
    wait_for(lambda: archive.tries)
    assert not stop.wait(0.6)
    stop.set()
    thread.join(10)
    assert archive.tries == 1 and "reports cannot be sent: RecursionError" in caplog.text
