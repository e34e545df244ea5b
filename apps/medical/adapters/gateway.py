"""The DICOM gateway and its command-line options: it forwards CT series from a PACS to a server, and reports back."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from apps.medical.adapters.dicom_receive import receive
from apps.medical.adapters.dicom_spool import Spool
from apps.medical.adapters.series_submitter import SeriesSubmitter
from apps.medical.outputs.dicom_send import StorageClient, is_title, read_archive
from apps.medical.outputs.dicomweb_send import AUTHORIZATION, read_web_archive
from apps.medical.outputs.report_sender import Destination, ReportSender
from shared.atomic_files import file_lock
from shared.backoff import Backoff
from shared.errors import InvalidInputError
from shared.job_client import JobClient

log = logging.getLogger("trivium.gateway")
_SHUTDOWN_TIMEOUT_S = 5.0
_MAX_ARCHIVE_PAUSE_S = 60.0
"""The maximum pause before an unavailable archive is tried again; each try costs an association."""


@dataclass(frozen=True, kw_only=True)
class DicomGateway:
    """Receive CT series by C-STORE, have the server analyse them, and send the reports by C-STORE or STOW-RS.

    Reports name the patient as the images do (patient=yes), because an archive would file a report without a patient
    under the wrong patient. The spool contains images of patients; a series is deleted as soon as it is analysed. For
    research, not for diagnosis.

    Example: trivium gateway medical --server http://127.0.0.1:8000 --to PACS@pacs.hospital:104
    """

    to: Annotated[str, arg(metavar="AET@HOST:PORT|URL")]
    """The archive that receives the reports: by C-STORE, or by STOW-RS if this is the URL of a DICOMweb service."""
    aet: Annotated[str, arg(metavar="AET")] = "TRIVIUM"
    """The gateway's AE title, which senders must call."""
    host: Annotated[str, arg(metavar="ADDRESS")] = "0.0.0.0"
    """The address to listen on; by default all addresses of this machine."""
    port: Annotated[int, arg(metavar="PORT")] = 11112
    """The port to listen on."""
    from_: Annotated[tuple[str, ...], arg(name="from", metavar="AET [AET ...]")] = ()
    """The AE titles that may send; any by default."""
    quiet_seconds: Annotated[float, arg(metavar="S")] = 30.0
    """A series counts as complete when its associations are released and no image has arrived for this long; 10 times
    as long if an association stays open or was aborted."""
    max_slice_thickness_mm: Annotated[float | None, arg(metavar="MM")] = None
    """Discard images with thicker slices (0018,0050), so that thick reconstructions of a study get no reports; by
    default all are accepted."""
    one_per_study: bool = False
    """Analyse only one series of each study, once no more of its series arrive: the thinnest axial CT; of equally thin
    ones, one with a lung kernel, else a sharp kernel. The others are deleted once it is analysed."""
    kernel: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ()
    """With --one-per-study, prefer series with one of these kernels (0018,1210), even over thinner ones."""
    spool_bytes: Annotated[int, arg(metavar="N")] = 20_000_000_000
    """The maximum size of the spool; when it is full, senders get the status Out of Resources (0xA700)."""
    associations: Annotated[int, arg(metavar="N")] = 20
    """The maximum number of simultaneous associations; half as many from one address."""
    tls_cert: Annotated[Path | None, arg(metavar="FILE")] = None
    """The gateway's certificate (PEM). It requires --tls-key and --tls-ca; then both directions use TLS only."""
    tls_key: Annotated[Path | None, arg(metavar="FILE")] = None
    """The certificate's private key (PEM, without a password)."""
    tls_ca: Annotated[Path | None, arg(metavar="FILE")] = None
    """The authority (PEM) that signed the certificates of the senders and the archive. Host names are verified only for
    a DICOMweb archive."""

    def __post_init__(self) -> None:
        self._archive(None)
        for title in (self.aet, *self.from_):
            if not is_title(title):
                raise InvalidInputError(f"{title!r} is not a valid AE title; it has 1 to 16 ASCII characters")
        if not 0 <= self.port < 1 << 16:
            raise InvalidInputError(f"--port is {self.port}; it must be from 0 to 65535")
        if len({self.tls_cert is None, self.tls_key is None, self.tls_ca is None}) > 1:
            raise InvalidInputError("give all of --tls-cert, --tls-key and --tls-ca, or none")
        if self.kernel and not self.one_per_study:
            raise InvalidInputError("--kernel selects one series of a study, so it needs --one-per-study")
        positive = {
            "quiet-seconds": self.quiet_seconds,
            "associations": self.associations,
            "max-slice-thickness-mm": self.max_slice_thickness_mm,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise InvalidInputError(f"--{name} is {value}; it must be above 0")

    def run(self, jobs: JobClient, folder: Path, stop: threading.Event, pauses: tuple[float, float] = (5, 300)) -> None:
        """Runs until ``stop`` is set. ``pauses`` are the first and the longest pause between retries, in seconds.

        Raises ``InvalidInputError`` if the spool ``folder`` or the port cannot be used.
        """
        _silence_dicom_logs()
        server_tls, client_tls = self._tls()
        archive = self._archive(client_tls)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with file_lock(folder / "lock", wait=False):
                spool = Spool(folder, self.spool_bytes, self.quiet_seconds, whole_studies=self.one_per_study)
                kernels = self.kernel if self.one_per_study else None
                submitter = SeriesSubmitter(spool, jobs, stop, Backoff(*pauses), kernels)
                sender = ReportSender(spool, archive, stop, Backoff(pauses[0], min(pauses[1], _MAX_ARCHIVE_PAUSE_S)))
                server = receive(
                    (self.host, self.port),
                    self.aet,
                    spool,
                    callers=self.from_,
                    associations=self.associations,
                    max_slice_mm=self.max_slice_thickness_mm,
                    tls=server_tls,
                )
                log.info(
                    "listening on %s:%d as %s, for %s; analysis by %s, reports go to %s",
                    *(*server.server_address[:2], self.aet, ", ".join(self.from_) or "any AE title"),
                    *(jobs.server, archive),
                )
                threads = [threading.Thread(target=loop.run, daemon=True) for loop in (submitter, sender)]
                for thread in threads:
                    thread.start()
                stop.wait()
                jobs.stop.set()
                threads.append(threading.Thread(target=server.shutdown, daemon=True))
                threads[-1].start()
                for thread in threads:
                    thread.join(_SHUTDOWN_TIMEOUT_S)
        except BlockingIOError as error:
            raise InvalidInputError(f"{folder} is the spool of another gateway; give another with --spool") from error
        except OSError as error:
            raise InvalidInputError(f"{folder} cannot be used as a spool: {error.strerror}") from error
        log.info("stopped")

    def _archive(self, tls: ssl.SSLContext | None) -> Destination:
        """The archive named by ``to``. Raises ``InvalidInputError``."""
        if self.to.lower().startswith(("http://", "https://")):
            if tls is not None:
                tls.check_hostname = True  # not for DICOM, where many certificates name an AE title instead
            return read_web_archive(self.to, os.environ.get(AUTHORIZATION, "").strip() or None, tls)
        return StorageClient(self.aet, read_archive(self.to), tls)

    def _tls(self) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
        """The TLS contexts for senders and for the archive; both sides authenticate by certificate (PS3.15 B.12)."""
        if self.tls_cert is None:
            return None, None
        contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        contexts[1].check_hostname = False
        for context in contexts:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key, password=lambda: "")
                context.load_verify_locations(self.tls_ca)
            except (OSError, ValueError) as error:
                raise InvalidInputError(
                    f"--tls-cert, --tls-key or --tls-ca cannot be used: {error}; all three must be PEM files"
                ) from error
        return contexts


def _silence_dicom_logs() -> None:
    """Disables the libraries' logging, because their messages contain values that may name a patient."""
    from pynetdicom import _config

    _config.LOG_HANDLER_LEVEL = "none"
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
