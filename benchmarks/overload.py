"""A server that is offered more than it can do: how fast it refuses, and how late it answers.

Starts a server on the loopback device with an application that takes 0.1 s for each request, and offers it RATE
requests a second for SECONDS, each on a connection of its own and with a body of 100 kB. From the repository's root:

    python benchmarks/overload.py [RATE] [SECONDS]
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

_SERVER = """
import sys, time
from pathlib import Path
from shared.serve import app as building, server
from shared.serve.settings import Settings
from tests.shared.serve.echo import Echo, make_app

class Slow(Echo):
    def predict(self, batch, options=None):
        time.sleep(0.1 * len(batch))
        return super().predict(batch, options)

root, predictor = Path(sys.argv[1]), Slow()
predictor.gate.set()
app = make_app(root / "echo", predictor)
building.installed = lambda: {"echo": app}
server.announce = lambda address, apps: print(address, flush=True)
settings = Settings(store=root / "store", port=0, warm=True, device="cpu", deadline_s=float(sys.argv[2]), drain_s=0)
server.run(settings, demo=True)
"""
_DEADLINE_S = 2.0
_BODY = (
    b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + b" " * 100_000 + b"1\r\n--x--\r\n"
)


async def ask(host: str, port: int) -> tuple[int, float]:
    """Status and seconds of one request; status 0 where the connection broke."""
    head = f"POST /api/echo/predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(_BODY)}\r\n"
    began = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + _BODY)
            line = await asyncio.wait_for(reader.readline(), 30)
            return int(line.split()[1]), time.perf_counter() - began
        finally:
            writer.close()
    except (OSError, IndexError, TimeoutError):
        return 0, time.perf_counter() - began


async def offer(host: str, port: int, rate: float, seconds: float) -> dict[int, list[float]]:
    """The seconds that requests took, by status."""
    began, asked = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        asked.append(asyncio.create_task(ask(host, port)))
    found: dict[int, list[float]] = defaultdict(list)
    for status, took in await asyncio.gather(*asked):
        found[status].append(took)
    return dict(sorted(found.items()))


def cpu_seconds(process: int) -> float:
    """What a process has spent on all cores, from /proc (proc(5)); it varies less with what else runs than latency."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(rate: float = 200, seconds: float = 5) -> None:
    """Prints a line for each status."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-c", _SERVER, folder, str(_DEADLINE_S)], stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        host, port = process.stdout.readline().strip().removeprefix("http://").split(":")
        try:
            asyncio.run(offer(host, int(port), 5, 1))  # the predictor is loaded, and its time measured
            before = cpu_seconds(process.pid)
            found = asyncio.run(offer(host, int(port), rate, seconds))
            spent = cpu_seconds(process.pid) - before
        finally:
            process.terminate()
    print(f"{rate:g} requests per second for {seconds:g} s; 10 per second can be computed; deadline {_DEADLINE_S:g} s")
    print(f"  the server took {spent / (rate * seconds) * 1e3:.1f} ms of CPU for each request, {spent:.1f} s in all")
    for status, took in found.items():
        took.sort()
        shown = ", ".join(f"{name} {took[int(share * (len(took) - 1))] * 1e3:.1f}" for name, share in _SHARES)
        print(f"  {status}: {len(took):5d} answers, ms: {shown}")


_SHARES = (("median", 0.5), ("95 %", 0.95), ("99 %", 0.99), ("longest", 1.0))

if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
