"""A DICOM storage SCP for CT (PS3.4 B): an image is written to the spool before its C-STORE is acknowledged.

Senders may be faulty or hostile. Each connection has its own threads. The data read from a connection at a time, the
number of connections, and the number from one address are limited.
"""

from __future__ import annotations

import gc
import logging
import socket
import ssl
import threading
import time
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any

from apps.medical.adapters.dicom_spool import Spool, SpoolFull
from apps.medical.types import CT_IMAGES
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pynetdicom.events import Event
    from pynetdicom.transport import ThreadedAssociationServer

log = logging.getLogger("trivium.gateway")

_VERIFICATION = "1.2.840.10008.1.1"
_STANDARD, _STANDARD_STORAGE, _STORAGE_SERVICE = "1.2.840.10008.", "1.2.840.10008.5.1.4.1.1.", "1.2.840.10008.4.2"
TRANSFER_SYNTAXES = (
    *("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
    *(f"1.2.840.10008.1.2.4.{ending}" for ending in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
    "1.2.840.10008.1.2.5",
)
"""The transfer syntaxes that ``adapters/pixels`` reads: uncompressed, JPEG, JPEG-LS, JPEG 2000, HTJ2K, RLE."""

SUCCESS, OUT_OF_RESOURCES, OTHER_CLASS, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
DISCARDED = 0xB006
"""Status codes of C-STORE (PS3.4 B.2.3). 0xB006 is a warning, after which senders continue."""
MAX_OBJECT_BYTES = 1 << 30
MAX_UNREAD_BYTES = 1 << 31
"""The maximum size of incomplete objects over all connections; objects are in memory until they are complete."""
_MAX_HEADER_BYTES = 4 << 20
_IDLE_TIMEOUT_S, _NEGOTIATION_TIMEOUT_S, _COLLECT_INTERVAL_S, _LOG_INTERVAL_S = 60, 30, 30, 60
_STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID = 0x0020000D, 0x0020000E


def receive(
    address: tuple[str, int],
    title: str,
    spool: Spool,
    *,
    callers: Sequence[str] = (),
    associations: int = 20,
    max_slice_mm: float | None = None,
    tls: ssl.SSLContext | None = None,
) -> ThreadedAssociationServer:
    """Listens at ``address`` (host, port) under the AE title, in background threads. Call ``shutdown`` to stop.

    ``callers`` are the AE titles that may send; if it is empty, any may. Images with slices thicker than
    ``max_slice_mm`` are discarded. Raises ``InvalidInputError`` if the port cannot be opened.
    """
    from pynetdicom import AE, evt

    from apps.medical.adapters.dicom_connection import MAX_PDU_BYTES

    entity = AE(ae_title=title)
    for sop_class in CT_IMAGES:
        entity.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    entity.add_supported_context(_VERIFICATION)
    entity.require_called_aet = True
    entity.require_calling_aet = list(callers)
    entity.maximum_associations = associations
    entity.maximum_pdu_size = MAX_PDU_BYTES // 4
    entity.network_timeout = _IDLE_TIMEOUT_S
    entity.acse_timeout = entity.dimse_timeout = _NEGOTIATION_TIMEOUT_S
    rejection_log = _RejectionLog(title)
    handlers: list[Any] = [
        (evt.EVT_REQUESTED, _accept_storage),
        (evt.EVT_SOP_COMMON, _private_classes),
        (evt.EVT_C_STORE, _StoreHandler(spool, max_slice_mm).store),
        (evt.EVT_C_ECHO, lambda event: SUCCESS),
        (evt.EVT_REJECTED, rejection_log.rejected),
    ]
    server_class = _server_class(associations, rejection_log)
    try:
        server = entity.make_server(address, evt_handlers=handlers, ssl_context=tls, server_class=server_class)
    except OSError as error:
        raise InvalidInputError(f"cannot listen on port {address[1]} of {address[0]}: {error.strerror}") from error
    entity._servers.append(server)
    threading.Thread(target=server.serve_forever, name="receive", daemon=True).start()
    return server


def _accept_storage(event: Event) -> None:
    """Accepts all proposed storage classes, because senders of a whole study abort if one is not accepted."""
    from pynetdicom import build_context

    acceptor: Any = event.assoc.acceptor
    proposed: Any = event.assoc.requestor.primitive
    contexts = {
        str(context.abstract_syntax): build_context(context.abstract_syntax, context.transfer_syntax)
        for context in proposed.presentation_context_definition_list
        if _is_other_storage(str(context.abstract_syntax))
    }
    acceptor.supported_contexts = [*acceptor.supported_contexts, *contexts.values()]


def _private_classes(event: Event) -> dict[Any, Any]:
    """Declares the accepted private SOP classes as storage classes, so that pynetdicom handles their C-STORE."""
    from pynetdicom.pdu_primitives import SOPClassCommonExtendedNegotiation

    served = {}
    for context in event.assoc.acceptor.supported_contexts:
        if _is_other_storage(str(context.abstract_syntax)):
            served[context.abstract_syntax] = item = SOPClassCommonExtendedNegotiation()
            item.sop_class_uid, item.service_class_uid = context.abstract_syntax, _STORAGE_SERVICE
    return served


def _is_other_storage(uid: str) -> bool:
    """Whether ``uid`` is a storage class other than CT, or a private class of a manufacturer."""
    return uid not in CT_IMAGES and (uid.startswith(_STANDARD_STORAGE) or not uid.startswith(_STANDARD))


def read_header(content: BytesIO, syntax: str, last: int) -> Dataset:
    """The elements of a dataset up to the tag ``last``; at most the first 4 MiB of a deflated dataset."""
    from pydicom import config
    from pydicom.filereader import read_dataset
    from pydicom.uid import UID

    config.settings.reading_validation_mode = config.IGNORE  # warnings print values, which may name the patient
    uid = UID(syntax)
    content.seek(0)
    if uid.is_deflated:
        decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        content = BytesIO(decompressor.decompress(content.read(), _MAX_HEADER_BYTES))
    return read_dataset(content, uid.is_implicit_VR, uid.is_little_endian, stop_when=lambda tag, vr, length: tag > last)


class _StoreHandler:
    """Writes images to the spool. Refused objects are logged at most once a minute for each reason."""

    def __init__(self, spool: Spool, max_slice_mm: float | None) -> None:
        self._spool, self._max_slice_mm = spool, max_slice_mm
        self._last_logged: dict[tuple[int, str], float] = {}

    def store(self, event: Event) -> int:
        """Handles a C-STORE request. Returns its status code."""
        from pynetdicom.dsutils import encode_file_meta

        request: Any = event.request
        association: Any = event.assoc
        content: BytesIO = request.DataSet
        association.dul.socket.unread -= content.getbuffer().nbytes
        if request.AffectedSOPClassUID != event.context.abstract_syntax:
            return self._refuse(OTHER_CLASS, "its SOP class differs from its presentation context")
        if event.context.abstract_syntax not in CT_IMAGES:
            return self._refuse(DISCARDED, "it is not a CT image; the CT images of its study are accepted")
        try:
            header = read_header(content, event.context.transfer_syntax, _SERIES_INSTANCE_UID)
            study, series = (str(header[tag].value or "") for tag in (_STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID))
            is_scout = "LOCALIZER" in list(header.get("ImageType") or ())
            slice_mm = _number(header.get("SliceThickness"))
            image = str(request.AffectedSOPInstanceUID or "")
            if not (study and series and image):
                raise KeyError
            meta = bytes(128) + b"DICM" + encode_file_meta(event.file_meta)
        except Exception:
            return self._refuse(CANNOT_UNDERSTAND, "it is damaged, or lacks the UID of its study, series or image")
        if is_scout:
            # Each study has scouts, mostly in their own series, which the server would refuse as a CT each time.
            return self._refuse(DISCARDED, "it is a scout")
        if self._max_slice_mm is not None and slice_mm > self._max_slice_mm:
            return self._refuse(
                DISCARDED, f"its slices are thicker than {self._max_slice_mm:g} mm (--max-slice-thickness-mm)"
            )
        try:
            self._spool.store(study, series, image, [meta, content.getbuffer()], association)
        except SpoolFull as error:
            return self._refuse(OUT_OF_RESOURCES, str(error))
        except OSError as error:
            return self._refuse(OUT_OF_RESOURCES, f"it cannot be written ({error.strerror})")
        return SUCCESS

    def _refuse(self, status: int, reason: str) -> int:
        now = time.monotonic()
        if now > self._last_logged.get((status, reason), -_LOG_INTERVAL_S) + _LOG_INTERVAL_S:
            self._last_logged[status, reason] = now
            level, action = (logging.INFO, "discarded") if status == DISCARDED else (logging.WARNING, "refused")
            log.log(level, "an object was %s (0x%04X): %s", action, status, reason)
        return status


def _number(value: Any) -> float:
    """The value as a number; 0 if it is missing or not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


class _RejectionLog:
    """Logs rejected associations and TLS handshakes, once for each address and reason, up to 100 of them."""

    def __init__(self, title: str) -> None:
        self._title, self._logged = title, set[tuple[str, str]]()

    def rejected(self, event: Event) -> None:
        """Logs the reason of an A-ASSOCIATE-RJ."""
        answer: Any = event.assoc.acceptor.primitive
        reasons = {
            (1, 3): "its AE title is not among those of --from",
            (1, 7): f"it calls an AE title other than {self._title}",
            (3, 2): "there are too many simultaneous associations (--associations)",
        }
        reason = reasons.get((answer.result_source, answer.diagnostic), "it requests a service that is not offered")
        self._write(event.assoc, reason)

    def handshake_failed(self, association: Any, error: ssl.SSLError) -> None:
        """Logs why a TLS handshake failed, unless the sender closed the connection without a reason."""
        reasons = {
            "WRONG_VERSION_NUMBER": "it does not use TLS, which --tls-cert requires",
            "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it presents no certificate, which --tls-cert requires",
        }
        if isinstance(error, ssl.SSLCertVerificationError):
            self._write(association, f"its certificate is not trusted (--tls-ca): {error.verify_message.rstrip('.')}")
        elif not isinstance(error, ssl.SSLEOFError):
            reason = error.reason or "unknown reason"
            failure = "it refuses the gateway's certificate" if "_ALERT_" in reason else "the TLS handshake failed"
            self._write(association, reasons.get(reason, f"{failure} ({reason})"))

    def _write(self, association: Any, reason: str) -> None:
        address = str(association.remote.get("address"))
        if (address, reason) not in self._logged and len(self._logged) < 100:
            self._logged.add((address, reason))
            log.warning("an association from %s was refused: %s", address, reason)


def _server_class(associations: int, rejection_log: _RejectionLog) -> type[ThreadedAssociationServer]:
    """The server class for at most ``associations`` associations at a time, with limits on connections and memory."""
    from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

    from apps.medical.adapters.dicom_connection import BoundedSocket

    lock, connections = threading.Lock(), weakref.WeakSet[Any]()

    def limit_unread_bytes() -> None:
        for is_collected in (False, True):
            with lock:
                if sum(connection.unread for connection in connections) <= MAX_UNREAD_BYTES:
                    return
                largest = max(connections, key=lambda connection: int(connection.unread))
                if is_collected:
                    largest.unread = 0
            gc.collect()  # closed connections keep their data until they are collected
        with suppress(OSError, AttributeError):  # it may have been closed in the meantime
            largest.socket.shutdown(socket.SHUT_RDWR)

    class Connection(BoundedSocket):
        """If all connections together exceed the limit of unread bytes, the one with the most is closed."""

        max_bytes = MAX_OBJECT_BYTES

        def recv(self, nr_bytes: int) -> bytearray:
            limit_unread_bytes()
            try:
                return super().recv(nr_bytes)
            except ssl.SSLError as error:
                rejection_log.handshake_failed(self.assoc, error)
                raise

    class Handler(RequestHandler):
        def _create_association(self) -> Any:
            association = super()._create_association()
            association.dul.socket.__class__ = Connection  # pynetdicom cannot be told which class to create
            with lock:
                connections.add(association.dul.socket)
            return association

    class Server(ThreadedAssociationServer):
        """Allows twice as many connections as associations, and from one address half as many as associations.

        A connection within these limits but beyond the number of associations is rejected by an A-ASSOCIATE-RJ; beyond
        these limits it is closed at once.
        """

        daemon_threads = True
        request_queue_size = 64

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._open: list[tuple[str, weakref.ref[socket.socket]]] = []
            self._last_collected = time.monotonic()
            super().__init__(*args, **{**kwargs, "request_handler": Handler})

        def get_request(self) -> tuple[socket.socket, Any]:
            assert self.socket is not None
            connection, address = self.socket.accept()
            connection.settimeout(_IDLE_TIMEOUT_S)
            if self.ssl_context is not None:  # the handshake happens in the connection's own thread, at its first read
                connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, address

        def verify_request(self, request: Any, client_address: Any) -> bool:
            self._open = [(host, reference) for host, reference in self._open if _is_open(reference())]
            hosts = [host for host, _ in self._open]
            host = str(client_address[0])
            if len(hosts) >= 2 * associations or hosts.count(host) >= max(1, associations // 2):
                return False
            self._open.append((host, weakref.ref(request)))
            return True

        def service_actions(self) -> None:
            if time.monotonic() > self._last_collected + _COLLECT_INTERVAL_S:  # ended associations are reference cycles
                gc.collect()
                self._last_collected = time.monotonic()

        def shutdown(self) -> None:
            """Also aborts associations, and closes connections that have not requested one yet."""
            super().shutdown()
            for association in self.active_associations:
                if association.is_established:
                    association.abort()
                elif association.dul.socket is not None:
                    association.dul.socket.close()

        def handle_error(self, request: Any, client_address: Any) -> None:
            log.warning("a connection failed")

    return Server


def _is_open(connection: socket.socket | None) -> bool:
    return connection is not None and connection.fileno() != -1
