"""The server process."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient

from shared.app import App
from shared.errors import InvalidInputError
from shared.serve.app import create_app
from shared.serve.log_lines import JsonLines
from shared.serve.server import listen, run
from shared.serve.settings import Settings, read_settings
from tests.servers import is_up
from tests.shared.serve.echo import until

_PROGRAM = """
import sys
from pathlib import Path
from shared.serve.server import run
from shared.serve.settings import Settings
run(Settings(store=Path(sys.argv[1]), port=0, warm=False), demo=True)
"""


def test_the_demonstration_prints_its_addresses_and_ends_quietly_when_interrupted(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        output = ""
        while "Ctrl+C" not in output:
            line = process.stdout.readline()
            assert line, f"it ended: {process.stderr.read()}"
            output += line
        found = re.search(r"http://127\.0\.0\.1:\d+/docs", output)
        assert found, output
        with urllib.request.urlopen(found[0], timeout=30) as page:
            assert page.status == 200
        with pytest.raises(urllib.error.HTTPError, match="421"):
            urllib.request.urlopen(urllib.request.Request(found[0], headers={"Host": "evil.example"}), timeout=30)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in process.stderr.read()


_COLLECTOR = """
import gc, os, sys
from pathlib import Path
from shared.serve import server
from shared.serve.settings import Settings

def announce(address, apps):
    print(gc.get_freeze_count(), gc.get_threshold()[0], flush=True)
    os._exit(0)

server.announce = announce
server.run(Settings(store=Path(sys.argv[1]), port=0, warm=False), demo=True)
"""


def test_the_garbage_collector_does_not_scan_waiting_requests_repeatedly(tmp_path: Path) -> None:
    output = subprocess.run(
        [sys.executable, "-c", _COLLECTOR, str(tmp_path)], stdout=subprocess.PIPE, check=True
    ).stdout
    frozen, threshold = map(int, output.split())
    assert frozen > 10_000 and threshold >= 256 * 150, "256 requests that wait hold fewer objects than that"


_HELD = """
import sys, threading, time
from pathlib import Path
from shared.serve import app as building, server
from shared.serve.settings import Settings
from tests.shared.serve.echo import Echo, make_app

class Held(Echo):
    def predict(self, batch, options=None):
        print("held", flush=True)
        time.sleep(60)

def load(artifacts, device):
    if sys.argv[2] == "load":
        predictor.predict([])
    return predictor

predictor, root = Held(), Path(sys.argv[1])
app = make_app(root / "echo", predictor)
object.__setattr__(app, "predictor", load)
building.installed = lambda: {"echo": app}
server._SHUTDOWN_GRACE_S = 1
server.run(Settings(store=root / "store", port=int(sys.argv[3]), warm=sys.argv[2] == "load", device="cpu", drain_s=0))
"""


@pytest.mark.parametrize("busy_call", ["load", "predict"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_stops_soon_while_a_predictor_is_busy(tmp_path: Path, busy_call: str, number: signal.Signals) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", _HELD, str(tmp_path), busy_call, str(port)]
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
        ) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        assert process.stdout is not None and process.stderr is not None
        response = None
        if busy_call == "predict":
            url = f"http://127.0.0.1:{port}"
            until(lambda: is_up(f"{url}/v2/health/live"), 60)
            response = pool.submit(httpx.post, f"{url}/api/echo/predict", data={"sample": "three"}, timeout=60)
        while (line := process.stdout.readline()) != "held\n":
            assert line, f"it ended: {process.stderr.read()}"
        process.send_signal(number)
        began = time.monotonic()
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - began < 15
        assert "Traceback" not in process.stderr.read()
        assert response is None or response.result().status_code == 503


def test_log_messages_have_timestamps(tmp_path: Path) -> None:
    program = _PROGRAM.replace(", demo=True", "")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stderr is not None
        began, line = datetime.now(UTC), server.stderr.readline()
        server.terminate()
        server.communicate(timeout=60)
    moment, level, words = line.split(maxsplit=2)
    assert abs(datetime.fromisoformat(moment) - began) < timedelta(minutes=2)
    assert level == "INFO:" and words.startswith("Started server process")


def test_every_line_of_the_log_is_json_if_set(tmp_path: Path) -> None:
    program = _PROGRAM.replace("warm=False), demo=True", "warm=False, log_json=True)")
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        while not lines or "open http" not in lines[-1]["message"]:
            lines.append(json.loads(process.stderr.readline()))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        lines += map(json.loads, process.stderr)
    assert all(line["level"] == "INFO" and line["message"] for line in lines)
    assert abs(datetime.fromisoformat(lines[0]["time"]) - datetime.now(UTC)) < timedelta(minutes=1)


def test_an_error_is_one_line_with_its_traceback() -> None:
    try:
        raise ArithmeticError("of a worker")
    except ArithmeticError:
        record = logging.LogRecord("trivium", logging.ERROR, "", 0, "error %s", ("ab12",), sys.exc_info())
    line = JsonLines(worker=7).format(record)
    entry = json.loads(line)
    assert (entry["level"], entry["worker"], entry["message"]) == ("ERROR", 7, "error ab12") and "\n" not in line
    assert entry["error"].startswith("Traceback") and entry["error"].endswith("ArithmeticError: of a worker")


def test_a_local_proxy_states_the_address_of_its_client(tmp_path: Path) -> None:
    program = _PROGRAM.replace(", demo=True", "")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        while not (found := re.search(r"open (http://\S+)", line := server.stderr.readline())):
            assert line, "it ended"
        # The proxy adds the rightmost address; any client can forge those to the left of it.
        claimed = {"X-Forwarded-For": "127.0.0.1, 192.0.2.7"}
        assert httpx.get(f"{found[1]}/v2", headers=claimed).status_code == 200
        assert json.loads(server.stdout.readline())["client"] == "192.0.2.7"
        assert httpx.get(f"{found[1]}/admin", headers=claimed).status_code == 403
        assert httpx.get(f"{found[1]}/admin").status_code == 200
        server.terminate()
        server.communicate(timeout=60)


def test_an_unavailable_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot listen on 192\.0\.2\.1:8000"):
        run(Settings(host="192.0.2.1", store=tmp_path))
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(InvalidInputError, match="choose another port with --port"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_small_answers_are_sent_at_once() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY only if the protocol is named"


def test_the_server_answers_without_loading_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fastapi.testclient import TestClient\n"
        "from shared.serve.app import create_app\n"
        "from shared.serve.settings import Settings\n"
        "with TestClient(create_app(Settings(store=Path(sys.argv[1]), warm=False))) as client:\n"
        "    assert client.get('/').status_code == client.get('/openapi.json').status_code == 200\n"
        "heavy = {'torch', 'onnxruntime', 'monai', 'mmdet3d', 'lightning', 'pandas', 'scipy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)


def test_settings_come_from_the_environment_and_errors_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_PORT", "9000")
    monkeypatch.setenv("TRIVIUM_DEADLINE_S", "7")
    assert read_settings(port=None).port == 9000 and read_settings(port=80).port == 80
    assert read_settings().deadline_s == 7
    monkeypatch.setenv("TRIVIUM_DEVICE", "abacus")
    with pytest.raises(InvalidInputError, match="TRIVIUM_DEVICE: Input should be 'auto', 'cpu' or 'cuda'"):
        read_settings()


def test_a_second_server_on_a_store_is_refused_and_leaves_the_uploads_of_the_first(
    serve: Callable[..., TestClient], settings: Settings, echo_app: App
) -> None:
    serve()
    upload = settings.store / "incoming" / "echo-1"
    upload.mkdir(parents=True)
    with pytest.raises(InvalidInputError, match="TRIVIUM_STORE"):
        create_app(settings, {"echo": echo_app})
    assert upload.is_dir()
