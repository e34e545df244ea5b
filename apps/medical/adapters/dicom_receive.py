"""A DICOM storage SCP for CT (PS3.4 B): what is sent to it by C-STORE lies in the spool before it is acknowledged.

Whoever sends is taken for what it may be: broken, or hostile. Each connection has threads of its own; what is read of
it at a time, how many there are, and how many from one address, is bounded.
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
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pynetdicom.events import Event
    from pynetdicom.transport import ThreadedAssociationServer

log = logging.getLogger("trivium.gateway")

CT_IMAGES = tuple(f"1.2.840.10008.5.1.4.1.1.2{ending}" for ending in ("", ".1", ".2"))
"""CT Image Storage, Enhanced CT Image Storage, Legacy Converted Enhanced CT Image Storage."""
_VERIFICATION = "1.2.840.10008.1.1"
_STANDARD, _STANDARD_STORAGE, _STORAGE_SERVICE = "1.2.840.10008.", "1.2.840.10008.5.1.4.1.1.", "1.2.840.10008.4.2"
TRANSFER_SYNTAXES = (
    *("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
    *(f"1.2.840.10008.1.2.4.{ending}" for ending in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
    "1.2.840.10008.1.2.5",
)
"""Those that ``adapters/pixels`` reads: uncompressed, JPEG, JPEG-LS, JPEG 2000, RLE."""

SUCCESS, OUT_OF_RESOURCES, OTHER_CLASS, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
DISCARDED = 0xB006
"""Of C-STORE (PS3.4 B.2.3); 0xB006 is a warning, which no sender stops at."""
LARGEST_OBJECT = 1 << 30
MAX_UNREAD = 1 << 31
"""Of objects that all senders together have begun to send; they are in memory until they are whole."""
_HEADER_BYTES = 4 << 20
_IDLE_S, _NEGOTIATION_S, _COLLECT_S, _TELL_AGAIN_S = 60, 30, 30, 60
_STUDY, _SERIES = 0x0020000D, 0x0020000E


def receive(
    address: tuple[str, int],
    title: str,
    spool: Spool,
    *,
    callers: Sequence[str] = (),
    associations: int = 20,
    most_slice_mm: float | None = None,
    tls: ssl.SSLContext | None = None,
) -> ThreadedAssociationServer:
    """Starts to listen under the AE title, on threads of its own; ``shutdown`` of what is returned ends it.

    ``callers`` are the AE titles that may send; any where none is named. Images of slices thicker than
    ``most_slice_mm`` are discarded. Raises ``InvalidInputError`` where the address
    cannot be listened at.
    """
    from pynetdicom import AE, evt

    from apps.medical.adapters.dicom_connection import LARGEST_PDU

    entity = AE(ae_title=title)
    for image in CT_IMAGES:
        entity.add_supported_context(image, list(TRANSFER_SYNTAXES))
    entity.add_supported_context(_VERIFICATION)
    entity.require_called_aet = True
    entity.require_calling_aet = list(callers)
    entity.maximum_associations = associations
    entity.maximum_pdu_size = LARGEST_PDU // 4
    entity.network_timeout, entity.acse_timeout, entity.dimse_timeout = _IDLE_S, _NEGOTIATION_S, _NEGOTIATION_S
    refused = _Refused(title)
    handlers: list[Any] = [
        (evt.EVT_REQUESTED, _accept_storage),
        (evt.EVT_SOP_COMMON, _private_classes),
        (evt.EVT_C_STORE, _Storing(spool, most_slice_mm).store),
        (evt.EVT_C_ECHO, lambda event: SUCCESS),
        (evt.EVT_REJECTED, refused.tell),
    ]
    try:
        server = entity.make_server(
            address, evt_handlers=handlers, ssl_context=tls, server_class=_server_class(associations)
        )
    except OSError as error:
        raise InvalidInputError(f"port {address[1]} of {address[0]} cannot be listened at: {error.strerror}") from error
    entity._servers.append(server)
    threading.Thread(target=server.serve_forever, name="receive", daemon=True).start()
    return server


def _accept_storage(event: Event) -> None:
    """Accepts every storage class that is proposed: senders of a whole study break it off at one that is not."""
    from pynetdicom import build_context

    acceptor: Any = event.assoc.acceptor
    proposed: Any = event.assoc.requestor.primitive
    others = {
        str(context.abstract_syntax): build_context(context.abstract_syntax, context.transfer_syntax)
        for context in proposed.presentation_context_definition_list
        if _is_other_storage(str(context.abstract_syntax))
    }
    acceptor.supported_contexts = [*acceptor.supported_contexts, *others.values()]


def _private_classes(event: Event) -> dict[Any, Any]:
    """Has objects of manufacturers' own classes served as those of the storage service."""
    from pynetdicom.pdu_primitives import SOPClassCommonExtendedNegotiation

    served = {}
    for context in event.assoc.acceptor.supported_contexts:
        if _is_other_storage(str(context.abstract_syntax)):
            served[context.abstract_syntax] = item = SOPClassCommonExtendedNegotiation()
            item.sop_class_uid, item.service_class_uid = context.abstract_syntax, _STORAGE_SERVICE
    return served


def _is_other_storage(uid: str) -> bool:
    """Whether it is a storage class other than CT, or a manufacturer's own."""
    return uid not in CT_IMAGES and (uid.startswith(_STANDARD_STORAGE) or not uid.startswith(_STANDARD))


def read_header(content: BytesIO, syntax: str, last: int) -> Dataset:
    """The elements of a dataset up to the one with the tag ``last``, and of one that is deflated no more than 4 MiB."""
    from pydicom import config
    from pydicom.filereader import read_dataset
    from pydicom.uid import UID

    config.settings.reading_validation_mode = config.IGNORE  # its warnings cite values, which may name the patient
    uid = UID(syntax)
    content.seek(0)
    if uid.is_deflated:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        content = BytesIO(unpacker.decompress(content.read(), _HEADER_BYTES))
    return read_dataset(content, uid.is_implicit_VR, uid.is_little_endian, stop_when=lambda tag, vr, length: tag > last)


class _Storing:
    """Keeps images in the spool. Of those that are refused for one reason the log tells once a minute."""

    def __init__(self, spool: Spool, most_slice_mm: float | None) -> None:
        self._spool, self._most_slice_mm = spool, most_slice_mm
        self._told: dict[tuple[int, str], float] = {}

    def store(self, event: Event) -> int:
        """Keeps an image; the status that its sender is told."""
        from pynetdicom.dsutils import encode_file_meta

        request: Any = event.request
        association: Any = event.assoc
        content: BytesIO = request.DataSet
        association.dul.socket.unread -= content.getbuffer().nbytes
        if request.AffectedSOPClassUID != event.context.abstract_syntax:
            return self._refuse(OTHER_CLASS, "its class is not that of its presentation context")
        if event.context.abstract_syntax not in CT_IMAGES:
            return self._refuse(DISCARDED, "it is no CT image; those of its study are taken")
        try:
            header = read_header(content, event.context.transfer_syntax, _SERIES)
            study, series = (str(header[tag].value or "") for tag in (_STUDY, _SERIES))
            is_scout = "LOCALIZER" in list(header.get("ImageType") or ())
            slice_mm = _number(header.get("SliceThickness"))
            image = str(request.AffectedSOPInstanceUID or "")
            if not (study and series and image):
                raise KeyError
            meta = bytes(128) + b"DICM" + encode_file_meta(event.file_meta)
        except Exception:
            return self._refuse(CANNOT_UNDERSTAND, "it is torn, or lacks the identifiers of study, series or image")
        if is_scout:
            # Every study has one, mostly as a series of its own, which as a CT would be refused each time.
            return self._refuse(DISCARDED, "it is a scout")
        if self._most_slice_mm is not None and slice_mm > self._most_slice_mm:
            return self._refuse(
                DISCARDED, f"its slices are thicker than {self._most_slice_mm:g} mm (--most-slice-thickness-mm)"
            )
        try:
            self._spool.store(study, series, image, [meta, content.getbuffer()], association)
        except SpoolFull as error:
            return self._refuse(OUT_OF_RESOURCES, str(error))
        except OSError as error:
            return self._refuse(OUT_OF_RESOURCES, f"it cannot be written ({error.strerror})")
        return SUCCESS

    def _refuse(self, status: int, why: str) -> int:
        now = time.monotonic()
        if now > self._told.get((status, why), -_TELL_AGAIN_S) + _TELL_AGAIN_S:
            self._told[status, why] = now
            level, what = (logging.INFO, "discarded") if status == DISCARDED else (logging.WARNING, "refused")
            log.log(level, "an object was %s (0x%04X): %s", what, status, why)
        return status


def _number(value: Any) -> float:
    """A number of a header; 0 where there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


class _Refused:
    """Says once of each address and reason that it was refused, and why, for the first hundred."""

    def __init__(self, title: str) -> None:
        self._title, self._told = title, set[tuple[str, str]]()

    def tell(self, event: Event) -> None:
        address = str(event.assoc.remote.get("address"))
        answer: Any = event.assoc.acceptor.primitive
        reasons = {
            (1, 3): "its own AE title is not among those of --from",
            (1, 7): f"it calls another AE title than {self._title}",
            (3, 2): "there are too many associations at a time (--associations)",
        }
        why = reasons.get((answer.result_source, answer.diagnostic), "it asks for what is not offered")
        if (address, why) not in self._told and len(self._told) < 100:
            self._told.add((address, why))
            log.warning("an association from %s was refused: %s", address, why)


def _server_class(associations: int) -> type[ThreadedAssociationServer]:
    from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

    from apps.medical.adapters.dicom_connection import BoundedSocket

    lock, connections = threading.Lock(), weakref.WeakSet[Any]()

    def make_room() -> None:
        for collected in (False, True):
            with lock:
                if sum(one.unread for one in connections) <= MAX_UNREAD:
                    return
                largest = max(connections, key=lambda one: int(one.unread))
                if collected:
                    largest.unread = 0
            gc.collect()  # connections that are closed hold what they read until then
        with suppress(OSError, AttributeError):  # it was closed meanwhile
            largest.socket.shutdown(socket.SHUT_RDWR)

    class Connection(BoundedSocket):
        """Of all that have begun to send more than they may together, it is the one that has sent most that goes."""

        most_bytes = LARGEST_OBJECT

        def recv(self, nr_bytes: int) -> bytearray:
            make_room()
            return super().recv(nr_bytes)

    class Handler(RequestHandler):
        def _create_association(self) -> Any:
            made = super()._create_association()
            made.dul.socket.__class__ = Connection  # it is made by name in there
            with lock:
                connections.add(made.dul.socket)
            return made

    class Server(ThreadedAssociationServer):
        """Has at most twice as many connections as associations, and half as many from one address.

        Above the number of associations one is refused as the standard has it; above these it is closed at once.
        """

        daemon_threads = True
        request_queue_size = 64

        def __init__(self, *given: Any, **named: Any) -> None:
            self._open: list[tuple[str, weakref.ref[socket.socket]]] = []
            self._collected = time.monotonic()
            super().__init__(*given, **{**named, "request_handler": Handler})

        def get_request(self) -> tuple[socket.socket, Any]:
            assert self.socket is not None
            connection, address = self.socket.accept()
            connection.settimeout(_IDLE_S)
            if self.ssl_context is not None:  # the handshake is its own thread's, at the first that it reads
                connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, address

        def verify_request(self, request: Any, client_address: Any) -> bool:
            self._open = [(host, held) for host, held in self._open if _is_open(held())]
            hosts = [host for host, _ in self._open]
            host = str(client_address[0])
            if len(hosts) >= 2 * associations or hosts.count(host) >= max(1, associations // 2):
                return False
            self._open.append((host, weakref.ref(request)))
            return True

        def service_actions(self) -> None:
            if time.monotonic() > self._collected + _COLLECT_S:  # ended associations are circles
                gc.collect()
                self._collected = time.monotonic()

        def shutdown(self) -> None:
            """Ends associations too; a connection that has asked for none yet is closed, as it cannot be aborted."""
            super().shutdown()
            for association in self.active_associations:
                if association.is_established:
                    association.abort()
                elif association.dul.socket is not None:
                    association.dul.socket.close()

        def handle_error(self, request: Any, client_address: Any) -> None:
            log.warning("a connection could not be served")

    return Server


def _is_open(connection: socket.socket | None) -> bool:
    return connection is not None and connection.fileno() != -1
