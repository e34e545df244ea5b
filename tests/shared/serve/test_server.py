"""The server as a process of its own."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from shared.app import App
from shared.refusal import Refusal
from shared.serve.server import create_app, listen, run
from shared.serve.settings import Settings, read_settings

_PROGRAM = """
import sys
from pathlib import Path
from shared.serve.server import run
from shared.serve.settings import Settings
run(Settings(store=Path(sys.argv[1]), port=0, warm=False), demo=True)
"""


def test_the_demonstration_says_what_to_open_and_ends_quietly_when_interrupted(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        shown = ""
        while "Ctrl+C" not in shown:
            line = process.stdout.readline()
            assert line, f"it ended: {process.stderr.read()}"
            shown += line
        found = re.search(r"http://127\.0\.0\.1:\d+/docs", shown)
        assert found, shown
        with urllib.request.urlopen(found[0], timeout=30) as page:
            assert page.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in process.stderr.read()


def test_an_address_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"192\.0\.2\.1:8000 cannot be listened on"):
        run(Settings(host="192.0.2.1", store=tmp_path))
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(Refusal, match="choose another with --port"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_small_answers_are_sent_at_once() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY only where the protocol is named"


def test_the_server_answers_without_loading_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fastapi.testclient import TestClient\n"
        "from shared.serve.server import create_app\n"
        "from shared.serve.settings import Settings\n"
        "with TestClient(create_app(Settings(store=Path(sys.argv[1]), warm=False))) as client:\n"
        "    assert client.get('/').status_code == client.get('/openapi.json').status_code == 200\n"
        "heavy = {'torch', 'onnxruntime', 'monai', 'mmdet3d', 'lightning', 'pandas', 'scipy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)


def test_settings_come_from_the_environment_and_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_PORT", "9000")
    monkeypatch.setenv("TRIVIUM_DEADLINE_S", "7")
    assert read_settings(port=None).port == 9000 and read_settings(port=80).port == 80
    assert read_settings().deadline_s == 7
    monkeypatch.setenv("TRIVIUM_DEVICE", "abacus")
    with pytest.raises(Refusal, match="TRIVIUM_DEVICE: Input should be 'auto', 'cpu' or 'cuda'"):
        read_settings()


def test_a_second_server_on_a_store_is_refused_and_leaves_the_uploads_of_the_first(
    serve: Callable[..., TestClient], settings: Settings, echo_app: App
) -> None:
    serve()
    upload = settings.store / "incoming" / "echo-1"
    upload.mkdir(parents=True)
    with pytest.raises(Refusal, match="TRIVIUM_STORE"):
        create_app(settings, {"echo": echo_app})
    assert upload.is_dir()
