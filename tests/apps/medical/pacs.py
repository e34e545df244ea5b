"""Test doubles around a gateway: a PACS that sends images and stores reports, and a stub of the server."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.parser import BytesParser
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt

from apps.medical.adapters.dicom import read_series
from apps.medical.adapters.gateway import DicomGateway
from apps.medical.outputs.report import report_source, structured_report
from apps.medical.types import Nodule
from shared.job_client import JobClient
from tests.apps.medical.chests import chest, dicom_slice, found
from tests.servers import free_port

# pynetdicom leaves sockets of connections that were refused or cut off to the garbage collector.
UNCLOSED_SOCKETS = [
    pytest.mark.usefixtures("collected_at_the_end"),
    pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning"),
]
CT, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.34"
PATIENT = {"PatientName": "Doe^Jane^Quincy", "PatientID": "PID4711", "AccessionNumber": "ACC99"}
QUIET_S = 0.3


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Polls the condition until its value is true, and returns the value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "timed out waiting for the condition"
        time.sleep(0.02)
    return value


def images(series: str = "1.2.3", count: int = 4, **tags: object) -> list[Dataset]:
    """The first ``count`` images of a chest, which name a patient."""
    volume = chest()
    contents = [dicom_slice(volume, k, SeriesInstanceUID=series, **{**PATIENT, **tags}) for k in range(count)]
    return [dcmread(BytesIO(content)) for content in contents]


@cache
def report(series: str = "1.2.3") -> bytes:
    """The report of one nodule in a series."""
    volume = chest()
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for k in range(len(volume.voxels_zyx)):
            files.append(Path(folder) / f"{k}.dcm")
            files[-1].write_bytes(dicom_slice(volume, k, SeriesInstanceUID=series, **PATIENT))
        read = read_series(files, patient=True)
    nodule = Nodule(
        centre_lps_mm=(-60.0, 0.0, -350.0), mean_diameter_mm=12.0, score=0.9, box_lps_mm=(-66, -6, -356, -54, 6, -344)
    )
    source = report_source(read, found(nodule), {"lung_nodules": 6})
    assert source is not None
    return structured_report(source)


def send(port: int, datasets: Sequence[Dataset], title: str = "SCANNER", called_title: str = "TRIVIUM") -> list[int]:
    """Sends images over one association. Returns their statuses; none if the association is refused."""
    entity = AE(ae_title=title)
    for syntax in {dataset.file_meta.TransferSyntaxUID for dataset in datasets}:
        entity.add_requested_context(CT, syntax)
    association = entity.associate("127.0.0.1", port, ae_title=called_title)
    if not association.is_established:
        return []
    statuses = [association.send_c_store(dataset).get("Status", -1) for dataset in datasets]
    association.release()
    return statuses


class Archive:
    """A PACS that stores what it receives; ``status`` is its response to the next object."""

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.got: list[Dataset] = []
        self.status = 0x0000
        entity = AE(ae_title="PACS")
        entity.add_supported_context(SR)
        self._server = entity.start_server(
            ("127.0.0.1", port), block=False, ssl_context=tls, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        self.port = int(self._server.server_address[1])

    def _store(self, event: evt.Event) -> int:
        if self.status == 0:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.got.append(dataset)
        return self.status

    def close(self) -> None:
        self._server.ae.shutdown()


class QuietHandler(BaseHTTPRequestHandler):
    """A handler that logs nothing."""

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class WebPacs:
    """A DICOMweb service that records requests; ``status`` and ``answer`` are its response to a STOW-RS request."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.status, self.answer = 200, b"{}"
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        pacs = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                pacs.asked.append(("POST", self.path, dict(self.headers.items()), body))
                self.answer(pacs.status, pacs.answer)

            def do_GET(self) -> None:
                pacs.asked.append(("GET", self.path, dict(self.headers.items()), b""))
                self.answer(pacs.status if pacs.status >= 400 else 200, b"[]")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._server.server_address[1]}/dicom-web"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stored(self) -> list[bytes]:
        """The instances in all requests."""
        found = []
        for method, _, headers, body in self.asked:
            if method == "POST":
                message = BytesParser().parsebytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
                assert message.get_param("type") == "application/dicom"
                found += [part.get_payload(decode=True) for part in message.get_payload()]
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class StubServer:
    """A stub of the server's job interface: ``answer`` maps a job's number to its state, problem and status.

    ``status`` is the response to a submitted job. ``bodies`` are the submitted forms.
    """

    def __init__(self, port: int = 0, report: bytes | None = None) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.cancelled: list[str] = []
        self.status = 202
        self.report = report
        self.segmentation: bytes | None = None
        self.gone: set[str] = set()
        self.answer: Callable[[int], dict[str, Any]] = lambda number: {"state": "done"}
        stub = self

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                stub.headers.append(dict(self.headers.items()))
                if stub.status == 202:
                    stub.bodies.append(body)
                self._say(stub.status, {"url": f"/api/medical/jobs/{len(stub.bodies)}", "detail": "no"})

            def do_DELETE(self) -> None:
                stub.cancelled.append(self.path)
                self._say(200, {})

            def do_GET(self) -> None:
                *_, kind, number = self.path.split("/")
                if self.path in stub.gone:
                    self._say(404, {"detail": "no"})
                elif kind == "jobs":
                    case = f"/api/medical/cases/{number}"
                    self._say(200, {"case": case, "problem": None, "status": None, **stub.answer(int(number))})
                elif kind == "cases":
                    files = {"result.json": "/nowhere"}
                    if stub.report is not None:
                        files["findings.sr.dcm"] = f"/report/{number}"
                    if stub.segmentation is not None:
                        files["findings.seg.dcm"] = f"/segmentation/{number}"
                    self._say(200, {"case": number, "files": files, "result": {"lungs": {}, "operating_score": 0.5}})
                else:
                    self.answer(200, (stub.segmentation if kind == "segmentation" else stub.report) or b"")

            def _say(self, status: int, content: dict[str, Any]) -> None:
                self.answer(status, json.dumps(content).encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def names(self, body: int) -> list[str]:
        """The file names in a form."""
        return re.findall(r'filename="([^"]*)"', self.bodies[body].decode("latin-1"))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def gateway(folder: Path, server: str, archive: int | str, **settings: Any) -> Iterator[int]:
    """Runs a gateway in a thread; ``archive`` is a port or a DICOMweb URL. Yields the gateway's port."""
    port = settings.pop("port", None) or free_port()
    pauses = settings.pop("pauses", (0.05, 0.2))
    dicom_gateway = DicomGateway(
        to=archive if isinstance(archive, str) else f"PACS@127.0.0.1:{archive}",
        **{"host": "127.0.0.1", "port": port, "quiet_seconds": QUIET_S, **settings},
    )
    stop = threading.Event()
    faults: list[BaseException] = []

    def run() -> None:
        try:
            dicom_gateway.run(JobClient(server, "medical"), folder, stop, pauses)
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=run, name="gateway", daemon=True)
    thread.start()
    try:
        wait_for(lambda: faults or _listens(port))
        assert not faults, faults
        yield port
    finally:
        stop.set()
        thread.join(15)
        assert not thread.is_alive() and not faults, faults


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def waiting(spool: Path) -> list[str]:
    """The files of series and reports in a spool."""
    return [  # os.walk tolerates files that are deleted meanwhile
        Path(home, name).relative_to(spool).as_posix()
        for place in ("series", "reports")
        for home, folders, files in os.walk(spool / place)
        for name in (*folders, *files)
    ]
