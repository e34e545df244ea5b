"""A server that serves HTTP and gRPC over TLS itself."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import httpx2 as httpx
import numpy as np
import pytest

from shared import cli
from shared.errors import InvalidInputError
from shared.job_client import JobClient, ServerUnavailable, connection_problem
from shared.secure.tls import read_certificate
from shared.serve.oip.grpc_messages import PACKAGE, message
from tests.servers import make_certificate

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
_PROGRAM = """
import sys
from pathlib import Path
from shared.serve import server
from shared.serve.settings import Settings
home = Path(sys.argv[1])
server._CERTIFICATE_CHECK_TICKS = 2
server.run(Settings(store=home / "store", port=0, grpc_port=0, warm=False, device="cpu",
             tls_cert=home / "tls.crt", tls_key=home / "tls.key"))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for this machine, and its key."""
    found = tmp_path_factory.mktemp("tls")
    make_pair(found)
    return found


def make_pair(folder: Path) -> None:
    """Writes a new certificate and its key into a folder, each atomically."""
    make_certificate(folder / "new.crt", folder / "new.key", "trivium", "-addext", "subjectAltName=IP:127.0.0.1")
    (folder / "new.key").rename(folder / "tls.key")
    (folder / "new.crt").rename(folder / "tls.crt")


@pytest.fixture(scope="module")
def ports(home: Path) -> Iterator[dict[str, int]]:
    """The ports of a separate server, by protocol."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(home)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        output, found = "", {}
        while "https" not in found:
            line = process.stdout.readline()
            assert line, output
            output += line
            if "gRPC listens on port" in line:
                found["grpc"] = int(line.rsplit(" ", 1)[1])
            if "open https://127.0.0.1:" in line:
                found["https"] = int(line.rsplit(":", 1)[1])
        yield found
        process.terminate()
        process.stdout.read()


def test_large_and_refused_bodies_over_one_tls_connection(home: Path, ports: dict[str, int]) -> None:
    trusted = ssl.create_default_context(cafile=str(home / "tls.crt"))
    with httpx.Client(base_url=f"https://127.0.0.1:{ports['https']}", verify=trusted, timeout=120) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        response = client.post("/api/finance/none", content=bytes(3_000_000))
        assert response.status_code == 404
        tensors = client.get("/v2/models/tft-anomaly").json()["inputs"]
        inputs = []
        for tensor in tensors:
            shape = [64 if size == -1 else size for size in tensor["shape"]]
            rows = np.zeros(int(np.prod(shape)), np.float32).tolist()
            inputs.append({"name": tensor["name"], "shape": shape, "datatype": tensor["datatype"], "data": rows})
        inference = client.post("/v2/models/tft-anomaly/infer", json={"inputs": inputs})
        assert inference.status_code == 200, inference.text[:500]
        assert len(inference.request.content) > 100_000
        assert inference.json()["outputs"][0]["shape"][0] == 64


def test_clients_without_trust_or_without_tls_get_no_answer(ports: dict[str, int]) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://127.0.0.1:{ports['https']}/v2/health/live")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{ports['https']}/v2/health/live")


def test_grpc_uses_tls(home: Path, ports: dict[str, int]) -> None:
    trusted = grpc.ssl_channel_credentials((home / "tls.crt").read_bytes())
    for channel, live in (
        (grpc.secure_channel(f"127.0.0.1:{ports['grpc']}", trusted), True),
        (grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}"), False),
    ):
        with channel:
            call = channel.unary_unary(
                f"/{PACKAGE}.GRPCInferenceService/ServerLive",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=message("ServerLiveResponse").FromString,
            )
            if live:
                assert call(message("ServerLiveRequest")(), timeout=60).live
            else:
                with pytest.raises(grpc.RpcError):
                    call(message("ServerLiveRequest")(), timeout=60)


def test_an_invalid_certificate_or_key_is_refused_with_a_sentence(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIVIUM_STORE", str(tmp_path / "store"))
    (tmp_path / "no.pem").write_text("no certificate")
    locked = tmp_path / "locked.key"
    encrypt = ["openssl", "pkey", "-in", str(home / "tls.key"), "-aes256", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(encrypt, check=True, capture_output=True)
    chain, key = home / "tls.crt", home / "tls.key"
    for cert, private_key, words in (
        (chain, None, "both"),
        (None, key, "both"),
        (chain, tmp_path / "none", "cannot be read"),
        (chain, chain, "not a certificate and its private key"),
        (key, chain, r"\(\[SSL\]"),
        (tmp_path / "no.pem", key, "not a certificate and its private key"),
        (chain, locked, "openssl pkey"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            read_certificate(cert, private_key)
    assert cli.main(["serve", "--tls-cert", str(chain), "--port", "0"]) == 2
    assert "--tls-key" in capsys.readouterr().err


def test_the_commands_trust_the_authority_in_the_environment(
    home: Path, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["versions", "tft-anomaly", "--server", f"https://127.0.0.1:{ports['https']}"]
    assert cli.main(arguments) == 2 and "SSL_CERT_FILE" in capsys.readouterr().err
    with pytest.raises(ServerUnavailable, match="SSL_CERT_FILE"):
        JobClient(arguments[-1], "finance").check()
    monkeypatch.setenv("SSL_CERT_FILE", str(home / "tls.crt"))
    assert cli.main(arguments) == 0
    JobClient(arguments[-1], "finance").check()
    for wrong, words in (("https://localhost", "mismatch"), ("localhost", "write it as http://")):
        assert cli.main([*arguments[:-1], f"{wrong}:{ports['https']}"]) == 2
        stderr = capsys.readouterr().err
        assert words in stderr and "SSL_CERT_FILE" not in stderr


def test_a_certificate_that_only_python_3_13_refuses_gets_a_remedy(tmp_path: Path) -> None:
    authority, authority_key, chain, key = (tmp_path / name for name in ("ca.crt", "ca.key", "tls.crt", "tls.key"))
    make_certificate(authority, authority_key, "an authority without a key usage")
    make_certificate(chain, key, "localhost", "-CA", str(authority), "-CAkey", str(authority_key))
    client, server = ssl.create_default_context(cafile=authority), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default since Python 3.13
    server.load_cert_chain(chain, key)
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(received, sent), server.wrap_bio(sent, received, server_side=True)
    with pytest.raises(ssl.SSLCertVerificationError) as refused:
        for end in ends * 2:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    problem = connection_problem(refused.value)
    assert "key usage" in problem and "RFC 5280" in problem and "SSL_CERT_FILE" not in problem


def test_a_renewed_certificate_is_used_for_new_connections(home: Path, ports: dict[str, int]) -> None:
    def served_certificates() -> set[str]:
        """What a client sees on the two ports."""
        return {ssl.get_server_certificate(("127.0.0.1", port), timeout=60) for port in ports.values()}

    before = (home / "tls.crt").read_text()
    assert served_certificates() == {before}
    (home / "tls.key").write_text("half of a renewal")
    time.sleep(1)
    assert served_certificates() == {before}
    make_pair(home)
    after = (home / "tls.crt").read_text()
    until = time.monotonic() + 60
    while served_certificates() != {after}:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert after != before
