"""A DICOM storage SCU (PS3.4 B) that sends reports to an archive by C-STORE."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import InvalidInputError
from shared.job_client import connection_problem

_CONNECT_TIMEOUT_S, _RESPONSE_TIMEOUT_S = 15, 60
_MAX_RESPONSE_BYTES = 16 << 20
"""The maximum bytes that an archive may send over one association; the response to a report has a few hundred."""
_UNCOMPRESSED = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
_MAX_TITLE_LENGTH = 16
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_REPORT = "1.2.840.10008.5.1.4.1.1.88.34"


class ArchiveUnavailable(Exception):
    """The archive cannot be reached or does not accept data now. Sending may succeed later."""


class ReportRefused(Exception):
    """The archive refuses this report; the message has its status."""


class ClassNotSupported(ReportRefused):
    """The archive does not store segmentations, or not by this protocol. It may still accept the report."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive, by its AE title and address. ``str`` gives it as on the command line."""

    title: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


def read_archive(text: str) -> Archive:
    """Parses ``TITLE@HOST:PORT``. Raises ``InvalidInputError``."""
    title, _, address = text.partition("@")
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (is_title(title) and host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InvalidInputError(f"{text} is not an archive; write TITLE@HOST:PORT, for example PACS@pacs.hospital:104")
    return Archive(title, host, int(port))


@dataclass(frozen=True, slots=True)
class StorageClient:
    """Sends reports to the archive under the AE ``title``. ``str`` gives the archive."""

    title: str
    archive: Archive
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return str(self.archive)

    def send(self, reports: Sequence[Path]) -> Iterator[tuple[Path, ReportRefused | None]]:
        """Sends the files over one association. Yields each when it is stored (with None) or refused (with the error).

        Raises ``ArchiveUnavailable`` if the archive cannot be reached or ends the association, and ``OSError`` if a
        file cannot be read.
        """
        datasets = {}
        for path in reports:
            try:
                datasets[path] = read_report(path)
            except InvalidInputError as error:
                yield path, ReportRefused(str(error))
        if not datasets:
            return
        association = _associate(
            {str(dataset.SOPClassUID) for dataset in datasets.values()}, self.title, self.archive, self.tls
        )
        try:
            for number, (path, dataset) in enumerate(datasets.items(), start=1):
                yield path, _store(association, dataset, number, self.archive)
        finally:
            if association.is_established:
                association.release()

    def check(self) -> None:
        """Checks that the archive accepts reports. Raises ``ArchiveUnavailable`` if it does not."""
        _associate(set(), self.title, self.archive, self.tls).release()


def is_title(text: str) -> bool:
    """Whether ``text`` is a valid AE title: 1 to 16 ASCII characters, not all blank, no backslash (PS3.5 6.2)."""
    return 0 < len(text.strip()) <= len(text) <= _MAX_TITLE_LENGTH and text.isascii() and "\\" not in text


def _associate(sop_classes: set[str], title: str, archive: Archive, tls: ssl.SSLContext | None) -> Any:
    """Opens an association for these SOP classes and for reports. Raises ``ArchiveUnavailable``."""
    from pynetdicom import AE, evt

    from apps.medical.adapters.dicom_connection import BoundedSocket

    entity = AE(ae_title=title)
    # Reports are always requested, so that an archive which accepts only those accepts the association.
    for sop_class in sorted({_REPORT, *sop_classes}):
        entity.add_requested_context(sop_class, _UNCOMPRESSED)
    entity.connection_timeout, entity.acse_timeout = _CONNECT_TIMEOUT_S, _RESPONSE_TIMEOUT_S
    entity.dimse_timeout = entity.network_timeout = _RESPONSE_TIMEOUT_S
    connected: list[object] = []

    def limit_connection(event: Any) -> None:  # pynetdicom has no timeout for the rest of a message that has begun
        connected.append(event)
        connection = event.assoc.dul.socket
        connection.__class__, connection.max_bytes = BoundedSocket, _MAX_RESPONSE_BYTES
        connection.socket.settimeout(_RESPONSE_TIMEOUT_S)

    tls_args: Any = None if tls is None else (tls, archive.host)
    try:
        association = entity.associate(
            archive.host,
            archive.port,
            ae_title=archive.title,
            tls_args=tls_args,
            evt_handlers=[(evt.EVT_CONN_OPEN, limit_connection)],
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ArchiveUnavailable(f"{archive} cannot be reached ({connection_problem(error)})") from error
    if not connected:
        raise ArchiveUnavailable(f"{archive} cannot be reached ({_connection_problem(archive, tls)})")
    if not association.is_established:
        raise ArchiveUnavailable(_failure_reason(association, archive, tls))
    return association


def _connection_problem(archive: Archive, tls: ssl.SSLContext | None) -> str:
    """Why connecting to the archive fails: it is tried once more, because pynetdicom does not return the reason."""
    try:
        connection = socket.create_connection((archive.host, archive.port), _CONNECT_TIMEOUT_S)
    except OSError as error:
        return connection_problem(error)
    with connection:
        try:
            if tls is not None:
                tls.wrap_socket(connection, server_hostname=archive.host).close()
        except ssl.SSLCertVerificationError as error:
            return f"its certificate is not trusted (--tls-ca): {error.verify_message.rstrip('.')}"
        except OSError:
            return "it does not accept TLS; check its port, and whether it accepts this gateway's certificate"
    return "it did not accept the connection"


def _store(association: Any, dataset: Any, number: int, archive: Archive) -> ReportRefused | None:
    try:
        status = association.send_c_store(dataset, msg_id=number).get("Status")
    except ValueError as error:  # there is no accepted context for this class, or the dataset cannot be encoded in it
        if dataset.SOPClassUID == SEGMENTATION:
            return ClassNotSupported(f"{archive} does not accept segmentations")
        raise ArchiveUnavailable(f"{archive} does not accept objects of SOP class {dataset.SOPClassUID}") from error
    except RuntimeError as error:
        raise ArchiveUnavailable(f"{archive} ended the association") from error
    if status is None:
        raise ArchiveUnavailable(f"{archive} does not answer")
    if status >> 8 == 0xA7 or status == 0x0124:
        raise ArchiveUnavailable(f"{archive} does not accept data now (status 0x{status:04X})")
    if status == 0x0000 or status >> 12 == 0xB:
        return None
    return ReportRefused(f"{archive} refuses it (status 0x{status:04X})")


def _failure_reason(association: Any, archive: Archive, tls: ssl.SSLContext | None) -> str:
    if association.is_rejected:
        answer = association.acceptor.primitive
        hint = (
            "too many associations"
            if answer.result_source == 3
            else "check that it knows our AE title, and that its own is right"
        )
        return f"{archive} rejects the association ({hint})"
    if association.acceptor.primitive is None:
        hint = (
            "whether it requires TLS (--tls-cert)" if tls is None else "whether it accepts this gateway's certificate"
        )
        return f"{archive} does not respond as a DICOM server; check its address and port, and {hint}"
    return f"{archive} does not accept reports (Comprehensive 3D SR Storage)"


def read_report(path: Path) -> Any:
    """The dataset in a file to send. Raises ``InvalidInputError`` if it is not DICOM or has no unique identifiers."""
    from pydicom import config, dcmread
    from pydicom.errors import InvalidDicomError

    config.settings.reading_validation_mode = config.IGNORE  # warnings print values, which may name the patient
    try:
        dataset = dcmread(path)
    except (InvalidDicomError, EOFError) as error:
        raise InvalidInputError("it is not a DICOM file") from error
    if not all(dataset.get(keyword) for keyword in ("SOPClassUID", "SOPInstanceUID")):
        raise InvalidInputError("it has no unique identifiers")
    return dataset
