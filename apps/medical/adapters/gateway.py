"""The gateway of the medical application, as its command line sets it up: from a PACS to a server, and back."""

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
from apps.medical.adapters.series_answering import Answering
from apps.medical.outputs.dicom_send import StorageUser, is_title, read_archive
from apps.medical.outputs.dicomweb_send import AUTHORIZATION, read_web_archive
from apps.medical.outputs.report_sending import Destination, Sending
from shared.atomic_files import file_lock
from shared.backoff import Backoff
from shared.errors import InvalidInputError
from shared.job_client import JobClient

log = logging.getLogger("trivium.gateway")
_PATIENCE_S = 5.0
_ARCHIVE_PAUSE_S = 60.0
"""An archive that was away has the reports so soon after it is back; to ask it costs an association."""


@dataclass(frozen=True, kw_only=True)
class DicomGateway:
    """Receive CT series by C-STORE, have the server answer them, and send the reports by C-STORE or STOW-RS.

    Reports name the patient as the images do (patient=yes): an archive files one without a patient as another's. What
    lies in the spool are images of patients; a series is deleted as soon as it is answered. For research, not for
    diagnosis.

    Example: trivium gateway medical --server http://127.0.0.1:8000 --to PACS@pacs.hospital:104
    """

    to: Annotated[str, arg(metavar="AET@HOST:PORT|URL")]
    """The archive that gets the reports: by C-STORE, or by STOW-RS at the address of its DICOMweb."""
    aet: Annotated[str, arg(metavar="AET")] = "TRIVIUM"
    """The gateway's own AE title, which senders must call."""
    host: Annotated[str, arg(metavar="ADDRESS")] = "0.0.0.0"
    """The address to listen on; every one of this machine by default."""
    port: Annotated[int, arg(metavar="PORT")] = 11112
    """The port to listen on."""
    from_: Annotated[tuple[str, ...], arg(name="from", metavar="AET [AET ...]")] = ()
    """The AE titles that may send; any by default."""
    quiet_seconds: Annotated[float, arg(metavar="S")] = 30.0
    """A series is whole when its associations are released and nothing of it came for so long; ten times as long where
    one stays open or was broken off."""
    most_slice_thickness_mm: Annotated[float | None, arg(metavar="MM")] = None
    """Images of thicker slices (0018,0050) are discarded, so that a study's thick reconstructions bring no reports of
    their own; by default all are taken."""
    one_per_study: bool = False
    """Of the series of a study that have come by the time it is quiet, the thinnest axial CT alone is answered, of
    equally thin ones that with a lung kernel, then a sharp one; the others are deleted once it is."""
    kernel: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ()
    """With --one-per-study, series with one of these kernels (0018,1210) before thinner ones."""
    spool_bytes: Annotated[int, arg(metavar="N")] = 20_000_000_000
    """The most bytes that wait; beyond them senders are told that there is no room (0xA700)."""
    associations: Annotated[int, arg(metavar="N")] = 20
    """The most associations at a time, half of them from one address."""
    tls_cert: Annotated[Path | None, arg(metavar="FILE")] = None
    """The gateway's certificate (PEM): with it, its key and the authority, both directions are TLS alone."""
    tls_key: Annotated[Path | None, arg(metavar="FILE")] = None
    """Its private key (PEM, without a password)."""
    tls_ca: Annotated[Path | None, arg(metavar="FILE")] = None
    """The authority (PEM) that has signed the certificates of senders and archive; names of hosts are compared for
    a DICOMweb alone."""

    def __post_init__(self) -> None:
        self._archive(None)
        for title in (self.aet, *self.from_):
            if not is_title(title):
                raise InvalidInputError(f"{title!r} is no AE title: 1 to 16 characters")
        if not 0 <= self.port < 1 << 16:
            raise InvalidInputError(f"--port is {self.port}; it must be at most 65535")
        if len({self.tls_cert is None, self.tls_key is None, self.tls_ca is None}) > 1:
            raise InvalidInputError("give all of --tls-cert, --tls-key and --tls-ca, or none")
        if self.kernel and not self.one_per_study:
            raise InvalidInputError("--kernel says which series of a study is answered; give --one-per-study with it")
        positive = {
            "quiet-seconds": self.quiet_seconds,
            "associations": self.associations,
            "most-slice-thickness-mm": self.most_slice_thickness_mm,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise InvalidInputError(f"--{name} is {value}; it must be above 0")

    def run(self, jobs: JobClient, folder: Path, stop: threading.Event, pauses: tuple[float, float] = (5, 300)) -> None:
        """Runs until ``stop`` is set. Raises ``InvalidInputError`` where folder or port cannot be had."""
        _hide_values()
        listening, calling = self._tls()
        archive = self._archive(calling)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with file_lock(folder / "lock", wait=False):
                spool = Spool(folder, self.spool_bytes, self.quiet_seconds, whole_studies=self.one_per_study)
                kernels = self.kernel if self.one_per_study else None
                answering = Answering(spool, jobs, stop, Backoff(*pauses), kernels)
                sending = Sending(spool, archive, stop, Backoff(pauses[0], min(pauses[1], _ARCHIVE_PAUSE_S)))
                server = receive(
                    (self.host, self.port),
                    self.aet,
                    spool,
                    callers=self.from_,
                    associations=self.associations,
                    most_slice_mm=self.most_slice_thickness_mm,
                    tls=listening,
                )
                log.info(
                    "listening on %s:%d as %s, for %s; answers come from %s, reports go to %s",
                    *(*server.server_address[:2], self.aet, ", ".join(self.from_) or "any AE title"),
                    *(jobs.server, archive),
                )
                threads = [threading.Thread(target=loop.run, daemon=True) for loop in (answering, sending)]
                for thread in threads:
                    thread.start()
                stop.wait()
                jobs.stop.set()
                threads.append(threading.Thread(target=server.shutdown, daemon=True))
                threads[-1].start()
                for thread in threads:
                    thread.join(_PATIENCE_S)
        except BlockingIOError as error:
            raise InvalidInputError(f"{folder} is another gateway's spool; name another with --spool") from error
        except OSError as error:
            raise InvalidInputError(f"{folder} cannot be used as a spool: {error.strerror}") from error
        log.info("ended")

    def _archive(self, tls: ssl.SSLContext | None) -> Destination:
        """Where reports go. Raises ``InvalidInputError``."""
        if self.to.lower().startswith(("http://", "https://")):
            if tls is not None:
                tls.check_hostname = True  # as on the web; of DICOM's certificates many name an AE title
            return read_web_archive(self.to, os.environ.get(AUTHORIZATION, "").strip() or None, tls)
        return StorageUser(self.aet, read_archive(self.to), tls)

    def _tls(self) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
        """What secures connections from senders, and to the archive: each side shows a certificate (PS3.15 B.12)."""
        if self.tls_cert is None:
            return None, None
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made[1].check_hostname = False
        for context in made:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key, password=lambda: "")
                context.load_verify_locations(self.tls_ca)
            except (OSError, ValueError) as error:
                raise InvalidInputError(
                    f"the certificate, its key or the authority cannot be used: {error}; all three are PEM files"
                ) from error
        return made


def _hide_values() -> None:
    """Has the libraries log nothing: what they say cites values, which may name a patient."""
    from pynetdicom import _config

    _config.LOG_HANDLER_LEVEL = "none"
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
