"""A server is killed under load: everything that it acknowledged exists after a restart."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2 as httpx

from shared.serve.server import listen
from tests.shared.serve.echo import until

_PROGRAM = """
import sys
from pathlib import Path
from shared.serve import app as building, server
from shared.serve.settings import Settings
from tests.shared.serve.echo import Echo, make_app

root, predictor = Path(sys.argv[1]), Echo()
predictor.gate.set()
app = make_app(root / sys.argv[3], predictor)
building.installed = lambda: {"echo": app}
server.run(Settings(store=root / "store", port=int(sys.argv[2]), warm=False, device="cpu", workers=0))
"""


class Process:
    """A server in a separate process."""

    def __init__(self, folder: Path, port: int, name: str) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(folder), str(port), name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[3],
        )
        until(self.lives, 60)

    def lives(self) -> bool:
        try:
            return httpx.get(f"{self.address}/v2/health/live", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)


def test_acknowledged_work_survives_kill_9(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    server = Process(tmp_path, port, "first")
    acknowledged: list[dict[str, Any]] = []
    jobs: list[dict[str, Any]] = []

    def load(number: int) -> None:
        """Sends requests until the server is gone, and records the answers."""
        try:
            while True:
                files = [("files", ("n.csv", f"{number},{len(acknowledged)}".encode()))]
                response = httpx.post(f"{server.address}/api/echo/predict", files=files, timeout=60)
                if response.status_code == 200:
                    acknowledged.append(response.json())
                if len(jobs) < 6:
                    accepted = httpx.post(f"{server.address}/api/echo/jobs", files=files, timeout=60)
                    assert accepted.status_code == 202
                    jobs.append(accepted.json())
        except httpx.TransportError:
            return

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(acknowledged) >= 12 and len(jobs) >= 6, 60)
    server.kill()
    for thread in threads:
        thread.join(30)
    restarted = Process(tmp_path, port, "second")
    try:
        with httpx.Client(base_url=restarted.address, timeout=60) as client:
            for case in acknowledged:
                place = f"/api/echo/cases/{case['case']}"
                assert client.get(place).json() == case
                assert client.get(case["picture"]).content.startswith(b"\x89PNG")
            until(lambda: all(client.get(job["url"]).json()["state"] == "done" for job in jobs), 60)
    finally:
        restarted.kill()
