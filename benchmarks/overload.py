"""A server under overload: how much it answers, how cheaply it refuses, and how late it answers.

Starts a server on the loopback device with an application whose worker process takes 0.1 s for each request. First,
eight clients send request after request (saturation). Then requests arrive at three times that rate, and then at RATE
requests per second (200). Each phase takes SECONDS (10); each request has its own connection and a body of 100 kB. From
the repository's root:

    python -m benchmarks.overload [RATE] [SECONDS]

Bars: only the statuses 200, 429 and 503; each reply within the deadline, counted from the last byte of the request; at
three times saturation at least 90 % of the answers at saturation; a refusal costs the server less CPU time than an
answer.
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
_DEADLINE_S, _REQUEST_S, _NUM_CLIENTS = 2.0, 0.1, 8
_THROUGHPUT_BAR = 0.9
_BODY = (
    b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + b" " * 100_000 + b"1\r\n--x--\r\n"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """The status (0 if the connection broke), the seconds since the request's last byte, and the time of the reply."""

    status: int
    seconds: float
    received: float


async def send_request(host: str, port: int) -> Reply:
    """Sends one request on a new connection."""
    head = f"POST /api/echo/predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(_BODY)}\r\n"
    sent, status = time.perf_counter(), 0
    try:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.transport.set_write_buffer_limits(0)  # drain() waits until everything is written
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
    """The replies to clients that send the next request as soon as the last one is answered."""
    end, replies = time.perf_counter() + seconds, []

    async def client() -> None:
        while time.perf_counter() < end:
            replies.append(await send_request(host, port))

    await asyncio.gather(*(client() for _ in range(_NUM_CLIENTS)))
    return replies


async def offer(host: str, port: int, rate: float, seconds: float) -> list[Reply]:
    """The replies to requests that arrive at a fixed rate, whether earlier requests are answered or not."""
    start, tasks = time.perf_counter(), []
    for index in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + index / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(send_request(host, port)))
    return await asyncio.gather(*tasks)


def process_cpu_seconds(process: int) -> float:
    """The CPU-seconds of a process, from /proc (proc(5)); other load affects them less than latency."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Phase:
    """The replies of one phase, and the CPU time of the server's process without its worker."""

    name: str
    replies: list[Reply]
    rate: float
    cpu_s: float

    @property
    def answered(self) -> int:
        """The number of requests with a result."""
        return sum(reply.status == 200 for reply in self.replies)

    @property
    def refused(self) -> int:
        """The number of requests that were refused, to be sent again."""
        return sum(reply.status in (429, 503) for reply in self.replies)

    def show(self) -> None:
        """Prints a line for each status."""
        print(f"{self.name}: {self.rate:.2f} answers a second")
        for status in sorted({reply.status for reply in self.replies}):
            waits = sorted(reply.seconds for reply in self.replies if reply.status == status)
            percentiles = ", ".join(
                f"{name} {waits[int(fraction * (len(waits) - 1))] * 1e3:.1f}" for name, fraction in _PERCENTILES
            )
            print(f"  {status}: {len(waits):5d} answers, ms: {percentiles}")


def wait_until_ready(address: str, seconds: float = 120) -> None:
    """Polls until the server reports that its models are loaded."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def run_phase(name: str, process: int, load: Callable[[], Awaitable[list[Reply]]], seconds: float) -> Phase:
    """Runs a load on the server. The rate counts the answers between the deadline and the end of the load."""

    async def run() -> list[Reply]:
        return await load()

    cpu_before, start = process_cpu_seconds(process), time.perf_counter()
    replies = asyncio.run(run())
    num_counted = sum(reply.status == 200 and _DEADLINE_S < reply.received - start < seconds for reply in replies)
    return Phase(name, replies, num_counted / (seconds - _DEADLINE_S), process_cpu_seconds(process) - cpu_before)


def measure(rate: float, seconds: float) -> list[Phase]:
    """Runs the phases: saturation, three times saturation, and ``rate``."""
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
                saturation = run_phase("saturation", server.pid, lambda: saturate(host, port, seconds), seconds)
                phases = [saturation]
                for offered_rate in (3 * max(saturation.rate, 1.0), rate):
                    name = f"{offered_rate:.0f} a second offered"
                    phases.append(
                        run_phase(name, server.pid, lambda o=offered_rate: offer(host, port, o, seconds), seconds)
                    )
            finally:
                server.terminate()
    return phases


def main(rate: float = 200, seconds: float = 10) -> int:
    """Prints the phases' replies and whether the bars were met; returns 0 if they were."""
    phases = measure(rate, seconds)
    print(f"{1 / _REQUEST_S:g} a second can be computed at most; the deadline is {_DEADLINE_S:g} s")
    for phase in phases:
        phase.show()
    saturation, triple, flood = phases
    answer_s = saturation.cpu_s / max(1, saturation.answered)
    refusal_s = (flood.cpu_s - flood.answered * answer_s) / max(1, flood.refused)
    num_failed = sum(len(phase.replies) - phase.answered - phase.refused for phase in phases)
    longest_wait = max(reply.seconds for phase in phases for reply in phase.replies)
    ratio = triple.rate / max(saturation.rate, 1e-9)
    figures = {
        "saturation, 1/s": saturation.rate,
        "three times saturation, 1/s": triple.rate,
        f"{rate:g} offered, 1/s": flood.rate,
        "neither answered nor refused": float(num_failed),
        "longest wait, s": longest_wait,
        "an answer, ms of CPU": answer_s * 1e3,
        "a refusal, ms of CPU": refusal_s * 1e3,
    }
    missed_bars = (
        [] if ratio >= _THROUGHPUT_BAR else [f"{ratio:.0%} of saturation's throughput (bar {_THROUGHPUT_BAR:.0%})"]
    )
    missed_bars += [f"{num_failed} were neither answered nor refused"] if num_failed else []
    missed_bars += (
        [f"one waited {longest_wait:.2f} s (deadline {_DEADLINE_S:g} s)"] if longest_wait > _DEADLINE_S else []
    )
    missed_bars += ["a refusal costs as much as an answer"] if refusal_s >= answer_s else []
    report("overload", figures, ratio=ratio, ok=not missed_bars, note="; ".join(missed_bars) or "all bars met")
    return 0 if not missed_bars else 1


_PERCENTILES = (("median", 0.5), ("95 %", 0.95), ("99 %", 0.99), ("longest", 1.0))

if __name__ == "__main__":
    raise SystemExit(main(*map(float, sys.argv[1:])))
