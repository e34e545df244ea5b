"""Whatever one sender does, the gateway keeps running and serves the others."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from io import BytesIO

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE

from apps.medical.adapters import dicom_receive, dicom_spool
from apps.medical.adapters.dicom_receive import receive
from apps.medical.adapters.dicom_spool import Spool
from tests.apps.medical.pacs import CT, UNCLOSED_SOCKETS, images, send, wait_for

pytestmark = UNCLOSED_SOCKETS
MR, DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.88.67"
SECONDARY_CAPTURE, PRIVATE, FIND = "1.2.840.10008.5.1.4.1.1.7", "1.3.12.2.1107.5.9.1", "1.2.840.10008.5.1.4.1.2.2.1"


class Receiver:
    """A storage SCP with a spool in a folder."""

    def __init__(self, folder, max_bytes: int = 10**9, **settings) -> None:
        self.folder = folder
        self.spool = Spool(folder, max_bytes, 0.2)
        self.server = receive(("127.0.0.1", 0), "TRIVIUM", self.spool, **settings)
        self.port = self.server.server_address[1]

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "series").rglob("*.dcm"))

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()


def associate(port: int, title: str = "SCANNER", called_title: str = "TRIVIUM", classes: tuple[str, ...] = (CT,)):
    entity = AE(ae_title=title)
    for sop_class in classes:
        entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
    return entity.associate("127.0.0.1", port, ae_title=called_title)


def send_bytes(port: int, content: bytes, **command: str) -> int:
    """Sends an encoded dataset; ``command`` may override its class or instance."""
    association = associate(port)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = command.get("kind", CT)
    request.AffectedSOPInstanceUID = command.get("instance", "1.2.3.99")
    request.DataSet = BytesIO(content)
    association._reactor_checkpoint.clear()  # otherwise its own loop takes the response
    wait_for(lambda: association._is_paused)
    association.dimse.send_msg(request, 1)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return int(answer.Status)


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


def test_an_echo_is_answered(tmp_path):
    with Receiver(tmp_path) as receiver:
        association = associate(receiver.port, classes=("1.2.840.10008.1.1",))
        assert association.send_c_echo().Status == 0
        association.release()


def test_damaged_datasets_and_those_without_uids_are_refused_one_by_one(tmp_path):
    study, series = element(0x20, 0xD, b"UI", b"1.2\0"), element(0x20, 0xE, b"UI", b"1.2.3\0")
    with Receiver(tmp_path) as receiver:
        answers = [
            send_bytes(receiver.port, b"\x08"),
            send_bytes(receiver.port, b"\xff" * 4000),
            send_bytes(receiver.port, study),
            send_bytes(receiver.port, series),
            send_bytes(receiver.port, study[:-2]),
            send_bytes(receiver.port, element(0x08, 0x5, b"SQ", b"") * 3),
        ]
        assert set(answers) == {dicom_receive.CANNOT_UNDERSTAND} and receiver.files() == []
        assert send_bytes(receiver.port, study + series, kind=MR) in (0x0122, dicom_receive.OTHER_CLASS)
        # Elements after the identifiers are checked by the reader, whose error is more specific.
        assert send_bytes(receiver.port, study + series + b"torn") == 0
        assert send(receiver.port, images()) == [0] * 4
        assert len(receiver.files()) == 5


def test_no_file_name_comes_from_a_sender(tmp_path):
    study, series = element(0x20, 0xD, b"UI", b"../../x\0"), element(0x20, 0xE, b"UI", b"/etc/passwd\0")
    with Receiver(tmp_path) as receiver:
        assert send_bytes(receiver.port, study + series, instance="1.2.3") == 0
        (file,) = receiver.files()
        (folder,) = (tmp_path / "series").iterdir()
    assert len(file) == 36 and len(folder.name) == 32 and (file[:-4] + folder.name).isalnum()


def test_associations_with_wrong_services_or_titles_are_refused(tmp_path, caplog):
    with Receiver(tmp_path, callers=["SCANNER"]) as receiver:
        assert not associate(receiver.port, classes=(FIND,)).is_established
        assert associate(receiver.port, called_title="OTHER").is_rejected
        assert "from 127.0.0.1 was refused: it calls an AE title other than TRIVIUM" in caplog.text
        assert associate(receiver.port, title="STRANGER").is_rejected
        assert "from 127.0.0.1 was refused: its AE title is not among those of --from" in caplog.text
        assert "STRANGER" not in caplog.text and "OTHER" not in caplog.text
        assert send(receiver.port, images()) == [0] * 4


@pytest.mark.parametrize("kind", [MR, DOSE_REPORT, SECONDARY_CAPTURE, PRIVATE])
def test_other_objects_of_a_study_are_discarded_and_the_ct_is_kept(tmp_path, caplog, kind):
    caplog.set_level(logging.INFO, "trivium.gateway")
    with Receiver(tmp_path) as receiver:
        association = associate(receiver.port, classes=(CT, kind))
        first, other_kind, *rest = images()
        other_kind.SOPClassUID = other_kind.file_meta.MediaStorageSOPClassUID = kind
        statuses = [association.send_c_store(image).Status for image in (first, other_kind, *rest)]
        association.release()
        assert statuses == [0, dicom_receive.DISCARDED, 0, 0] and len(receiver.files()) == 3
        assert "discarded (0xB006): it is not a CT" in caplog.text


def test_a_scout_is_discarded_with_its_own_log_message(tmp_path, caplog):
    caplog.set_level(logging.INFO, "trivium.gateway")
    with Receiver(tmp_path) as receiver:
        association = associate(receiver.port, classes=(CT, DOSE_REPORT))
        scout, dose, *rest = images()
        scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"]
        dose.SOPClassUID = dose.file_meta.MediaStorageSOPClassUID = DOSE_REPORT
        statuses = [association.send_c_store(image).Status for image in (scout, dose, *rest)]
        association.release()
        assert statuses == [dicom_receive.DISCARDED, dicom_receive.DISCARDED, 0, 0] and len(receiver.files()) == 2
        assert "discarded (0xB006): it is a scout" in caplog.text
        assert "discarded (0xB006): it is not a CT image" in caplog.text


def test_a_full_spool_refuses_images_until_there_is_room(tmp_path, caplog):
    first, *_ = datasets = images()
    size = len(first.PixelData) + 3000
    with Receiver(tmp_path, max_bytes=2 * size) as receiver:
        assert send(receiver.port, datasets) == [0, 0, 0xA700, 0xA700]
        assert send(receiver.port, datasets[:1]) == [0xA700]
        assert "no room" in caplog.text or "bytes" in caplog.text
        series = wait_for(lambda: receiver.spool.next_ready({}))
        receiver.spool.set_aside(receiver.spool.snapshot(series))
        # Series in aside/ are deleted when their room is needed.
        assert send(receiver.port, datasets) == [0, 0, 0xA700, 0xA700]
        assert not list((tmp_path / "aside").iterdir())


def test_a_connection_that_breaks_within_an_object_leaves_no_file(tmp_path):
    with Receiver(tmp_path) as receiver:
        association = associate(receiver.port)
        connection = association.dul.socket.socket
        connection.sendall(struct.pack(">BBLLBB", 4, 0, 60_000, 59_996, 1, 0) + bytes(30_000))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
        association.kill()
        assert send(receiver.port, images()) == [0] * 4
        wait_for(lambda: not receiver.server.active_associations)
        assert len(receiver.files()) == 4


def test_a_series_with_an_aborted_association_waits_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_spool, "_UNRELEASED_FACTOR", 100)  # times 0.3 s
    with Receiver(tmp_path) as receiver:
        association = associate(receiver.port)
        first, *others = images()
        assert association.send_c_store(first).Status == 0
        association.abort()
        wait_for(lambda: not receiver.server.active_associations)
        began = time.monotonic()
        while time.monotonic() < began + 0.6:
            assert receiver.spool.next_ready({}) is None
            time.sleep(0.05)
        assert send(receiver.port, others) == [0] * 3
        series = wait_for(lambda: receiver.spool.next_ready({}))
        assert time.monotonic() < began + 25 and len(receiver.spool.snapshot(series).files) == 4


def test_a_series_with_an_image_that_found_no_room_waits_longer(tmp_path):
    first, *others = images()
    size = len(first.PixelData) + 3000
    with Receiver(tmp_path, max_bytes=2 * size) as receiver:
        first.PixelData = bytes(2 * size)
        assert send(receiver.port, [first, *others]) == [0xA700, 0, 0, 0xA700]
        wait_for(lambda: not receiver.server.active_associations)
        began = time.monotonic()
        while time.monotonic() < began + 0.6:
            assert receiver.spool.next_ready({}) is None
            time.sleep(0.05)
        assert wait_for(lambda: receiver.spool.next_ready({}))


def test_a_too_large_object_or_pdu_ends_its_association(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_receive, "MAX_OBJECT_BYTES", 1 << 16)
    with Receiver(tmp_path) as receiver:
        (image,) = images(count=1)
        assert send(receiver.port, [image] * 9) == [0] * 9  # objects in the spool no longer count
        image.PixelData = bytes(1 << 17)
        assert send(receiver.port, [image]) == [-1]
        association = associate(receiver.port)
        association.dul.socket.socket.sendall(struct.pack(">BBL", 4, 0, 0xFFFFFFFF))
        wait_for(lambda: not receiver.server.active_associations)
        association.kill()


def begin_object(association, size: int) -> None:
    """Sends the first ``size`` bytes of an image, without its end."""
    (context,) = association.accepted_contexts
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID, request.DataSet = CT, "1.2.3.99", BytesIO(b"x")
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    command = next(iter(message.encode_msg(context.context_id, 1 << 14))).presentation_data_value_list[0][1]
    for part in (command, *[bytes(1 + (1 << 14))] * (size >> 14)):
        item = struct.pack(">IB", len(part) + 1, context.context_id) + part
        association.dul.socket.socket.sendall(struct.pack(">BBI", 4, 0, len(item)) + item)


def test_if_incomplete_objects_exceed_memory_the_largest_connection_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_receive, "MAX_UNREAD_BYTES", 1 << 20)
    with Receiver(tmp_path) as receiver:
        larger, growing = associate(receiver.port), associate(receiver.port)
        begin_object(growing, 1 << 18)
        begin_object(larger, 1 << 19)
        assert send(receiver.port, images()) == [0] * 4
        begin_object(growing, 1 << 18)
        begin_object(growing, 1 << 18)
        assert send(receiver.port, images()) == [0] * 4, "who sends little is served"
        wait_for(lambda: len(receiver.server.active_associations) == 1)
        for association in (growing, larger):
            association.dul.socket.socket.close()
        wait_for(lambda: not receiver.server.active_associations)


def test_five_hundred_connections_from_one_address_do_not_keep_others_out(tmp_path):
    with Receiver(tmp_path, associations=4) as receiver:
        connections = []
        before = threading.active_count()
        for _ in range(500):
            connection = socket.create_connection(("127.0.0.1", receiver.port), timeout=5)
            connections.append(connection)
        wait_for(lambda: len(receiver.server.active_associations) == 2)
        assert threading.active_count() < before + 20
        assert send_from("127.0.0.2", receiver.port) == [0] * 4
        for connection in connections:
            connection.close()
        wait_for(lambda: send(receiver.port, images()) == [0] * 4)


def send_from(address: str, port: int) -> list[int]:
    entity = AE(ae_title="OTHER")
    entity.add_requested_context(CT, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title="TRIVIUM", bind_address=(address, 0))
    statuses = [association.send_c_store(image).Status for image in images()]
    association.release()
    return statuses


def test_a_spool_keeps_its_series_over_a_restart(tmp_path):
    with Receiver(tmp_path) as receiver:
        send(receiver.port, images())
        (tmp_path / "arriving" / "x").write_bytes(b"torn")
    restarted = Spool(tmp_path, 10**9, 0.02)
    assert restarted.next_ready({}) is None  # its sender may have been interrupted
    assert len(restarted.snapshot(wait_for(lambda: restarted.next_ready({}))).files) == 4
    assert not list((tmp_path / "arriving").iterdir())


@pytest.mark.parametrize("syntax", dicom_receive.TRANSFER_SYNTAXES)
def test_every_transfer_syntax_of_the_reader_is_accepted(receiver_of_module, syntax):
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(CT, syntax)
    association = entity.associate("127.0.0.1", receiver_of_module.port, ae_title="TRIVIUM")
    assert [str(context.transfer_syntax[0]) for context in association.accepted_contexts] == [syntax]
    association.release()


@pytest.fixture(scope="module")
def receiver_of_module(tmp_path_factory):
    with Receiver(tmp_path_factory.mktemp("spool")) as found:
        yield found
