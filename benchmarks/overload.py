"""A server that is offered more than it can do: what it answers, how fast it refuses, and how late it is.

Starts a server on the loopback device with an application whose worker process takes 0.1 s for each request. First
eight clients ask one after the other (saturation); then three times that rate is offered, and then RATE requests a
second (200), each for SECONDS (10) on a connection of its own and with a body of 100 kB. From the repository's root:

    python -m benchmarks.overload [RATE] [SECONDS]

Bars: no answer but 200, 429 and 503; each within the deadline, counted from the request's last byte; at three times
saturation at least 90 % of the answers at saturation; a refusal takes the server less processor time than an answer.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import report

_APP = """
import os, time
from pathlib import Path
from tests.shared.serve.echo import Echo, make_app

class Slow(Echo):
    def predict(self, batch, options=None):
        time.sleep(0.1 * len(batch))
        return super().predict(batch, options)

predictor = Slow()
predictor.gate.set()
app = make_app(Path(__file__).parent / str(os.getpid()), predictor)
"""
_SERVER = """
import sys
from pathlib import Path
from shared.app import installed
from shared.serve import app as building, server
from shared.serve.settings import Settings

app = installed()["echo"]
building.installed = lambda: {"echo": app}
server.announce = lambda address, apps: print(address, flush=True)
settings = Settings(store=Path(sys.argv[1]), port=0, warm=True, device="cpu", deadline_s=float(sys.argv[2]), drain_s=0)
server.run(settings, demo=True)
"""
_DEADLINE_S, _EACH_S, _CLIENTS = 2.0, 0.1, 8
_THROUGHPUT_BAR = 0.9
_BODY = (
    b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + b" " * 100_000 + b"1\r\n--x--\r\n"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """Status (0 where the connection broke), seconds from the request's last byte, and when it came."""

    status: int
    took: float
    at: float


async def ask(host: str, port: int) -> Reply:
    """One request on a connection of its own."""
    head = f"POST /api/echo/predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(_BODY)}\r\n"
    sent, status = time.perf_counter(), 0
    try:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.transport.set_write_buffer_limits(0)  # drain() waits for all that was written
            writer.write(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + _BODY)
            await writer.drain()
            sent = time.perf_counter()
            status = int((await asyncio.wait_for(reader.readline(), 30)).split()[1])
        finally:
            writer.close()
    except (OSError, IndexError, TimeoutError):
        pass
    now = time.perf_counter()
    return Reply(status, now - sent, now)


async def saturate(host: str, port: int, seconds: float) -> list[Reply]:
    """What clients get that ask again when they are answered."""
    end, found = time.perf_counter() + seconds, []

    async def client() -> None:
        while time.perf_counter() < end:
            found.append(await ask(host, port))

    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return found


async def offer(host: str, port: int, rate: float, seconds: float) -> list[Reply]:
    """What requests get that come at a rate, whatever becomes of those before."""
    began, asked = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        asked.append(asyncio.create_task(ask(host, port)))
    return await asyncio.gather(*asked)


def cpu_seconds(process: int) -> float:
    """What a process has spent on all cores, from /proc (proc(5)); it varies less with what else runs than latency."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Phase:
    """What one load got, and what the server's process (its worker apart) spent on it."""

    name: str
    replies: list[Reply]
    rate: float
    cpu_s: float

    @property
    def answered(self) -> int:
        """Requests with a result."""
        return sum(reply.status == 200 for reply in self.replies)

    @property
    def refused(self) -> int:
        """Requests that were told to come again."""
        return sum(reply.status in (429, 503) for reply in self.replies)

    def show(self) -> None:
        """Prints a line for each status."""
        print(f"{self.name}: {self.rate:.2f} answers a second")
        for status in sorted({reply.status for reply in self.replies}):
            took = sorted(reply.took for reply in self.replies if reply.status == status)
            shown = ", ".join(f"{name} {took[int(share * (len(took) - 1))] * 1e3:.1f}" for name, share in _SHARES)
            print(f"  {status}: {len(took):5d} answers, ms: {shown}")


def wait_until_ready(address: str, seconds: float = 120) -> None:
    """Asks until the server says that its models are loaded."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def play(name: str, process: int, load: Callable[[], Awaitable[list[Reply]]], seconds: float) -> Phase:
    """Puts a load on the server. The rate is that of the answers from the deadline to the load's end."""

    async def run() -> list[Reply]:
        return await load()

    before, began = cpu_seconds(process), time.perf_counter()
    replies = asyncio.run(run())
    inside = sum(reply.status == 200 and _DEADLINE_S < reply.at - began < seconds for reply in replies)
    return Phase(name, replies, inside / (seconds - _DEADLINE_S), cpu_seconds(process) - before)


def measure(rate: float, seconds: float) -> list[Phase]:
    """Saturation, three times as much, and ``rate``."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "overloaded-1.dist-info")
        package.mkdir()
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: overloaded\nVersion: 1\n")
        (package / "entry_points.txt").write_text("[trivium.apps]\necho = overloaded:app\n")
        Path(folder, "overloaded.py").write_text(_APP)
        path = os.pathsep.join((folder, str(Path.cwd()), os.environ.get("PYTHONPATH", "")))
        command = [sys.executable, "-c", _SERVER, str(Path(folder, "store")), str(_DEADLINE_S)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        ) as server:
            assert server.stdout is not None
            host, number = server.stdout.readline().strip().removeprefix("http://").split(":")
            port = int(number)
            try:
                wait_until_ready(f"http://{host}:{port}/v2/health/ready")
                whole = play("saturation", server.pid, lambda: saturate(host, port, seconds), seconds)
                phases = [whole]
                for offered in (3 * max(whole.rate, 1.0), rate):
                    name = f"{offered:.0f} a second offered"
                    phases.append(play(name, server.pid, lambda o=offered: offer(host, port, o, seconds), seconds))  # type: ignore[misc]
            finally:
                server.terminate()
    return phases


def main(rate: float = 200, seconds: float = 10) -> int:
    """Prints what the phases got, and says whether the bars were met."""
    phases = measure(rate, seconds)
    print(f"{1 / _EACH_S:g} a second can be computed at most; the deadline is {_DEADLINE_S:g} s")
    for phase in phases:
        phase.show()
    saturation, three, flood = phases
    answer_s = saturation.cpu_s / max(1, saturation.answered)
    refusal_s = (flood.cpu_s - flood.answered * answer_s) / max(1, flood.refused)
    others = sum(len(phase.replies) - phase.answered - phase.refused for phase in phases)
    longest = max(reply.took for phase in phases for reply in phase.replies)
    ratio = three.rate / max(saturation.rate, 1e-9)
    figures = {
        "saturation, 1/s": saturation.rate,
        "three times saturation, 1/s": three.rate,
        f"{rate:g} offered, 1/s": flood.rate,
        "neither answered nor refused": float(others),
        "longest wait, s": longest,
        "an answer, ms of CPU": answer_s * 1e3,
        "a refusal, ms of CPU": refusal_s * 1e3,
    }
    missed = [] if ratio >= _THROUGHPUT_BAR else [f"{ratio:.0%} of saturation's throughput (bar {_THROUGHPUT_BAR:.0%})"]
    missed += [f"{others} were neither answered nor refused"] if others else []
    missed += [f"one waited {longest:.2f} s (deadline {_DEADLINE_S:g} s)"] if longest > _DEADLINE_S else []
    missed += ["a refusal costs as much as an answer"] if refusal_s >= answer_s else []
    report("overload", figures, ratio=ratio, ok=not missed, note="; ".join(missed) or "all bars met")
    return 0 if not missed else 1


_SHARES = (("median", 0.5), ("95 %", 0.95), ("99 %", 0.99), ("longest", 1.0))

if __name__ == "__main__":
    raise SystemExit(main(*map(float, sys.argv[1:])))
