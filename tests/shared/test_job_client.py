"""The job client: answers that are not Trivium's, and the key in the environment."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from shared import cli, job_client
from shared.errors import InvalidInputError
from shared.job_client import JobClient, JobFailed, JobGone, ServerUnavailable, credentials

KEY = "trv_8qP4GWBRQVgbmtsJC5uRfyoRomeg3oRqzclNvtcsI-U"
PROXY, TRIVIUM = b"<html>nginx</html>", b'{"detail": "no"}'


@contextmanager
def answering(status: int, content: bytes, headers: dict[str, str] | None = None) -> Iterator[str]:
    """The address of a server that gives this answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [400, 404, 413, 422, 500, 504])
def test_an_error_of_a_proxy_is_not_a_failure_of_the_case(tmp_path: Path, status: int) -> None:
    (tmp_path / "a.dcm").write_bytes(b"1")
    with answering(status, PROXY) as address:
        for request in (
            lambda client: client.submit([tmp_path / "a.dcm"], {}),
            lambda client: client.job("/api/echo/jobs/1"),
        ):
            with pytest.raises(ServerUnavailable, match=f"{status}.*Trivium"):
                request(JobClient(address, "echo"))


def test_an_error_of_the_server_is_a_failure_of_the_case(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"1")
    with answering(413, TRIVIUM) as address, pytest.raises(JobFailed, match="no") as failed:
        JobClient(address, "echo").submit([tmp_path / "a.dcm"], {})
    assert failed.value.is_refusal
    with answering(404, TRIVIUM) as address, pytest.raises(JobGone):
        JobClient(address, "echo").job("/api/echo/jobs/1")


def test_a_redirect_shows_the_address_to_use() -> None:
    with (
        answering(301, PROXY, {"Location": "https://hospital.example/trivium/"}) as address,
        pytest.raises(ServerUnavailable, match=r"--server .*https://hospital\.example/trivium/"),
    ):
        JobClient(address, "echo").check()


@pytest.mark.parametrize(("key", "words"), [(None, "set TRIVIUM_KEY"), (KEY, "was revoked")])
def test_a_missing_key_and_a_revoked_key_get_different_hints(key: str | None, words: str) -> None:
    with answering(401, TRIVIUM) as address, pytest.raises(ServerUnavailable, match=words):
        JobClient(address, "echo", {} if key is None else {"Authorization": f"Bearer {key}"}).check()


def test_a_server_that_answers_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_client, "_MAX_REQUEST_S", 0.3)
    left = threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection:
            try:
                for _ in range(2000):
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    left.wait(0.01)
            except OSError:
                left.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        with pytest.raises(ServerUnavailable, match="does not answer"):
            JobClient(f"http://127.0.0.1:{listening.getsockname()[1]}", "echo").check()
        thread.join(30)
    assert left.is_set()


def test_the_command_versions_refuses_an_address_that_is_not_trivium_s(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(404, PROXY) as address:
        assert cli.main(["versions", "--server", address]) == 2
    assert "404" in (errors := capsys.readouterr().err) and "--server" in errors


@pytest.mark.parametrize("written", [KEY, f"{KEY}\n", f" {KEY}\r\n"])
def test_whitespace_around_the_key_is_ignored(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("TRIVIUM_KEY", written)
    assert credentials() == {"Authorization": f"Bearer {KEY}"}
    monkeypatch.setenv("TRIVIUM_AUTHORIZATION", "Basic abc")
    assert credentials() == {"Authorization": "Basic abc", "X-Api-Key": KEY}


@pytest.mark.parametrize("written", [f"Bearer {KEY}", f'"{KEY}"', "/etc/trivium/key", f"{KEY}\n{KEY}", "trv_é", "trv_"])
def test_an_invalid_key_is_refused_before_any_request(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("TRIVIUM_KEY", written)
    with pytest.raises(InvalidInputError, match="trivium keys add"):
        credentials()
