"""A DICOM storage SCU (PS3.4 B): reports to an archive, by C-STORE."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import InvalidInputError

_CONNECT_S, _ANSWER_S = 15, 60
_LONGEST_ANSWERS = 16 << 20
"""Bytes that an archive may answer over one association; a report's answer is some hundred."""
_UNCOMPRESSED = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
_LONGEST_TITLE = 16
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_REPORT = "1.2.840.10008.5.1.4.1.1.88.34"


class ArchiveAway(Exception):
    """The archive cannot be reached, or takes nothing from us now: what was to be sent may be sent later."""


class ReportRefused(Exception):
    """The archive does not take this report; the words say its status."""


class ClassNotTaken(ReportRefused):
    """The archive takes no segmentations, or none that are sent like this: what it takes is the report."""


@dataclass(frozen=True, slots=True)
class Archive:
    """Where reports are sent to: an AE title at an address. ``str`` gives it as it was written."""

    title: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


def read_archive(text: str) -> Archive:
    """``TITLE@HOST:PORT``. Raises ``InvalidInputError``."""
    title, _, address = text.partition("@")
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (is_title(title) and host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InvalidInputError(f"{text} is no archive; write it as TITLE@HOST:PORT, as in PACS@pacs.hospital:104")
    return Archive(title, host, int(port))


@dataclass(frozen=True, slots=True)
class StorageUser:
    """Sends to the archive as the AE ``title``; ``str`` gives the archive."""

    title: str
    archive: Archive
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return str(self.archive)

    def send(self, reports: Sequence[Path]) -> Iterator[tuple[Path, ReportRefused | None]]:
        """Sends files over one association; yields each when the archive has it, or refuses it.

        Raises ``ArchiveAway`` where it cannot be reached or ends the association; ``OSError`` where a file cannot be
        read.
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
        """Asks whether the archive takes reports. Raises ``ArchiveAway`` where it does not."""
        _associate(set(), self.title, self.archive, self.tls).release()


def is_title(text: str) -> bool:
    """Whether it can be an AE title: 1 to 16 characters, no backslash (PS3.5 6.2)."""
    return 0 < len(text.strip()) <= len(text) <= _LONGEST_TITLE and text.isascii() and "\\" not in text


def _associate(kinds: set[str], title: str, archive: Archive, tls: ssl.SSLContext | None) -> Any:
    """An association for these SOP classes. Raises ``ArchiveAway``."""
    from pynetdicom import AE, evt

    from apps.medical.adapters.dicom_connection import BoundedSocket

    entity = AE(ae_title=title)
    for kind in sorted({_REPORT, *kinds}):  # so that one that takes reports alone is told from one that is away
        entity.add_requested_context(kind, _UNCOMPRESSED)
    entity.connection_timeout, entity.acse_timeout = _CONNECT_S, _ANSWER_S
    entity.dimse_timeout = entity.network_timeout = _ANSWER_S
    connected: list[object] = []

    def bound(event: Any) -> None:  # pynetdicom itself waits without end for the rest of what has begun
        connected.append(event)
        connection = event.assoc.dul.socket
        connection.__class__, connection.most_bytes = BoundedSocket, _LONGEST_ANSWERS
        connection.socket.settimeout(_ANSWER_S)

    tls_args: Any = None if tls is None else (tls, archive.host)
    try:
        association = entity.associate(
            archive.host,
            archive.port,
            ae_title=archive.title,
            tls_args=tls_args,
            evt_handlers=[(evt.EVT_CONN_OPEN, bound)],
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ArchiveAway(f"{archive} cannot be reached") from error
    if not association.is_established:
        raise ArchiveAway(_why(association, archive) if connected else f"{archive} cannot be reached")
    return association


def _store(association: Any, dataset: Any, number: int, archive: Archive) -> ReportRefused | None:
    try:
        status = association.send_c_store(dataset, msg_id=number).get("Status")
    except ValueError as error:  # no context of this class, or it cannot be encoded in the one that there is
        if dataset.SOPClassUID == SEGMENTATION:
            return ClassNotTaken(f"{archive} takes no segmentations")
        raise ArchiveAway(f"{archive} takes no objects of this class (SOP class {dataset.SOPClassUID})") from error
    except RuntimeError as error:
        raise ArchiveAway(f"{archive} has ended the association") from error
    if status is None:
        raise ArchiveAway(f"{archive} does not answer")
    if status >> 8 == 0xA7 or status == 0x0124:
        raise ArchiveAway(f"{archive} takes nothing now (status 0x{status:04X})")
    if status == 0x0000 or status >> 12 == 0xB:
        return None
    return ReportRefused(f"{archive} refuses it (status 0x{status:04X})")


def _why(association: Any, archive: Archive) -> str:
    if association.is_rejected:
        answer = association.acceptor.primitive
        words = "too many associations" if answer.result_source == 3 else "does it know our AE title, and is its right?"
        return f"{archive} rejects the association ({words})"
    if association.acceptor.primitive is None:
        return f"{archive} does not answer as DICOM does; is that its address and port?"
    return f"{archive} accepts no association for reports (Comprehensive 3D SR Storage)"


def read_report(path: Path) -> Any:
    """The dataset in a file that is to be sent. Raises ``InvalidInputError`` where it is none with identifiers."""
    from pydicom import config, dcmread
    from pydicom.errors import InvalidDicomError

    config.settings.reading_validation_mode = config.IGNORE  # its warnings cite values, which may name the patient
    try:
        dataset = dcmread(path)
    except (InvalidDicomError, EOFError) as error:
        raise InvalidInputError("it is no DICOM file") from error
    if not all(dataset.get(keyword) for keyword in ("SOPClassUID", "SOPInstanceUID")):
        raise InvalidInputError("it has no unique identifiers")
    return dataset
