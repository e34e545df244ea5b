"""DICOM over TLS: senders and archive present certificates of one authority, and all others are rejected."""

from __future__ import annotations

import shutil
import socket
import ssl
from pathlib import Path

import pytest
from pynetdicom import AE

from apps.medical.adapters.gateway import DicomGateway
from apps.medical.outputs.dicom_send import ArchiveUnavailable, StorageClient, read_archive
from shared.errors import InvalidInputError
from tests.apps.medical.pacs import (
    CT,
    UNCLOSED_SOCKETS,
    Archive,
    StubServer,
    WebPacs,
    gateway,
    images,
    report,
    wait_for,
)
from tests.servers import make_certificate

pytestmark = [
    *UNCLOSED_SOCKETS,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``ca``, ``own`` and ``elsewhere``, which it signed, and ``strange``, which it did not."""
    folder = tmp_path_factory.mktemp("keys")
    signed = ["-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key"), "-addext"]
    for name, options in (
        ("ca", []),
        ("own", [*signed, "subjectAltName=IP:127.0.0.1"]),
        ("elsewhere", [*signed, "subjectAltName=DNS:elsewhere"]),
        ("strange", []),
    ):
        make_certificate(folder / f"{name}.pem", folder / f"{name}.key", name, *options)
    return folder


def context(keys: Path, name: str, kind: int) -> ssl.SSLContext:
    tls_context = ssl.SSLContext(kind)
    tls_context.check_hostname = False
    tls_context.load_cert_chain(keys / f"{name}.pem", keys / f"{name}.key")
    tls_context.load_verify_locations(keys / "ca.pem")
    tls_context.verify_mode = ssl.CERT_REQUIRED
    return tls_context


def settings(keys: Path) -> dict[str, Path]:
    return {"tls_cert": keys / "own.pem", "tls_key": keys / "own.key", "tls_ca": keys / "ca.pem"}


def test_both_directions_are_secured(tmp_path, keys, caplog):
    stub = StubServer(report=report())
    archive = Archive(tls=context(keys, "own", ssl.PROTOCOL_TLS_SERVER))
    with gateway(tmp_path, stub.address, archive.port, **settings(keys)) as port:
        silent = socket.create_connection(("127.0.0.1", port))  # starts no handshake, and must not block others
        entity = AE(ae_title="SCANNER")
        entity.add_requested_context(CT, images(count=1)[0].file_meta.TransferSyntaxUID)
        for name, accepted in (("strange", False), ("own", True)):
            secured = context(keys, name, ssl.PROTOCOL_TLS_CLIENT), "127.0.0.1"
            association = entity.associate("127.0.0.1", port, ae_title="TRIVIUM", tls_args=secured)
            assert association.is_established is accepted
        assert [association.send_c_store(image).Status for image in images()] == [0] * 4
        association.release()
        assert not entity.associate("127.0.0.1", port, ae_title="TRIVIUM").is_established
        distrusting = ssl.create_default_context(), "127.0.0.1"
        assert not entity.associate("127.0.0.1", port, ae_title="TRIVIUM", tls_args=distrusting).is_established
        wait_for(lambda: archive.got)
        silent.close()
        for reason in (
            "its certificate is not trusted (--tls-ca): self-signed certificate",
            "it does not use TLS, which --tls-cert requires",
            "it refuses the gateway's certificate (TLSV1_ALERT_UNKNOWN_CA)",
        ):
            wait_for(lambda reason=reason: f"an association from 127.0.0.1 was refused: {reason}" in caplog.text)
    archive.close()
    stub.close()


def test_the_log_says_why_an_archive_cannot_be_reached(keys):
    def problem(archive: Archive, tls: ssl.SSLContext | None) -> str:
        with pytest.raises(ArchiveUnavailable) as failure:
            StorageClient("TRIVIUM", read_archive(f"PACS@127.0.0.1:{archive.port}"), tls).check()
        return str(failure.value)

    own, strange = (context(keys, name, ssl.PROTOCOL_TLS_CLIENT) for name in ("own", "strange"))
    plain, secured, untrusted = (
        Archive(tls=name and context(keys, name, ssl.PROTOCOL_TLS_SERVER)) for name in (None, "own", "strange")
    )
    assert "it does not accept TLS; check its port" in problem(plain, own)
    assert "whether it requires TLS (--tls-cert)" in problem(secured, None)
    assert "whether it accepts this gateway's certificate" in problem(secured, strange)
    assert "its certificate is not trusted (--tls-ca): self-signed certificate" in problem(untrusted, own)
    for archive in (plain, secured, untrusted):
        archive.close()
    assert "(connection refused" in problem(plain, own)


@pytest.mark.parametrize(("name", "is_accepted"), [("own", True), ("elsewhere", False), ("strange", False)])
def test_a_dicomweb_archive_needs_a_certificate_with_its_host_name(tmp_path, keys, caplog, name, is_accepted):
    stub, archive = StubServer(report=report()), WebPacs(context(keys, name, ssl.PROTOCOL_TLS_SERVER))
    caplog.set_level("INFO", "trivium.gateway")
    with gateway(tmp_path, stub.address, archive.url, **settings(keys)):
        message = "accepts reports" if is_accepted else "cannot be reached"
        wait_for(lambda: f"{archive.url} {message}" in caplog.text)
    archive.close()
    stub.close()
    assert bool(archive.asked) is is_accepted


def test_a_dicomweb_address_without_tls_is_refused_with_tls_options(tmp_path, keys):
    with pytest.raises(InvalidInputError, match="write http://pacs/dicom-web as https://"):
        DicomGateway(to="http://pacs/dicom-web", **settings(keys)).run(None, tmp_path, None)


def test_incomplete_tls_options_and_wrong_files_are_refused(tmp_path, keys):
    with pytest.raises(InvalidInputError, match="all of --tls-cert"):
        DicomGateway(to="PACS@pacs:104", tls_cert=keys / "own.pem")
    mismatched = {**settings(keys), "tls_key": keys / "strange.key"}
    with pytest.raises(InvalidInputError, match="cannot be used"):
        DicomGateway(to="PACS@pacs:104", **mismatched).run(None, tmp_path, None)
