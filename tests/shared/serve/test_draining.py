"""A server that is stopped first answers the requests that it has accepted."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from shared.serve.server import listen
from tests.shared.serve.echo import until

NUMBER = 13
_PROGRAM = """
import sys, time
from pathlib import Path
from shared.serve import app as building, server
from shared.serve.settings import Settings
from tests.shared.serve.echo import Echo, make_app

class Slow(Echo):
    def predict(self, batch, options=None):
        print("computing", flush=True)
        while not (root / "go").exists():
            time.sleep(0.01)
        return super().predict(batch, options)

root, predictor = Path(sys.argv[1]), Slow()
predictor.gate.set()
app = make_app(root / "echo", predictor)
building.installed = lambda: {"echo": app}
server._SHUTDOWN_GRACE_S = 1
server.run(Settings(store=root / "store", port=int(sys.argv[2]), warm=False, device="cpu", max_batch=1,
                    drain_s=float(sys.argv[3])))
"""


class Process:
    """A server in a separate process, whose predictor computes once the file ``go`` exists."""

    def __init__(self, folder: Path, drain_s: float) -> None:
        with listen("127.0.0.1", 0) as free:
            port = free.getsockname()[1]
        self.address, self._go = f"http://127.0.0.1:{port}", folder / "go"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(folder), str(port), str(drain_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        until(lambda: self.get("/v2/health/live") == 200, 60)

    def get(self, path: str) -> int:
        try:
            return httpx.get(self.address + path, timeout=60).status_code
        except httpx.TransportError:
            return 0

    def predict(self) -> httpx.Response:
        return httpx.post(f"{self.address}/api/echo/predict", data={"sample": "three"}, timeout=60)

    def pending(self) -> float:
        text = httpx.get(f"{self.address}/metrics", timeout=60).text
        lines = [
            line for line in text.splitlines() if line.startswith('nv_inference_pending_request_count{model="echo"')
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def compute(self) -> None:
        self._go.touch()

    def end(self) -> str:
        assert self.process.wait(timeout=30) == 0
        return self.process.communicate()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_accepted_requests_are_answered_and_new_ones_refused(tmp_path: Path, number: signal.Signals) -> None:
    server = Process(tmp_path, drain_s=60)
    with ThreadPoolExecutor(NUMBER) as pool:
        try:
            accepted = [pool.submit(server.predict) for _ in range(NUMBER)]
            until(lambda: server.pending() == NUMBER - 1, 60)
            assert server.get("/v2/health/ready") == 200
            server.process.send_signal(number)
            until(lambda: server.get("/v2/health/ready") == 503)
            refused = server.predict()
            assert refused.status_code == 503 and "being shut down" in refused.json()["detail"]
            assert refused.headers["Retry-After"] == "5"
            assert httpx.post(f"{server.address}/v2/models/echo/infer", json={}).json() == {
                "error": "the server is being shut down; try again in a few seconds"
            }
            assert server.get("/v2/health/live") == 200 and not any(future.done() for future in accepted)
        finally:
            server.compute()
        assert [future.result().status_code for future in accepted] == [200] * NUMBER
    assert "Traceback" not in server.end()


@pytest.mark.parametrize("second", [None, signal.SIGTERM, signal.SIGINT])
def test_a_drain_ends_at_its_timeout_or_with_a_second_signal(tmp_path: Path, second: signal.Signals | None) -> None:
    server = Process(tmp_path, drain_s=0.2 if second is None else 60)
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(server.predict)
        assert server.process.stdout is not None
        while (line := server.process.stdout.readline()) != "computing\n":
            assert line, "it ended"
        server.process.send_signal(second or signal.SIGTERM)
        if second is not None:
            until(lambda: server.get("/v2/health/ready") == 503)
            server.process.send_signal(second)
        assert accepted.result().status_code == 503
    assert "Traceback" not in server.end()
