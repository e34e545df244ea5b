"""The server against plain FastAPI (and LitServe if installed), with the same ONNX file under the same load.

wrk (Debian's package) sends the load from one core; the servers and their worker processes have the others. The servers
are measured in turn for several rounds, and the medians are compared. From the repository's root:

    python -m benchmarks.serve [--quick] [--network forecaster|pointpillars] [--litserve PYTHON] [--program NAME]

LitServe (Apache-2.0) can be installed in a separate environment, whose interpreter is given: it installs uvloop, which
the other servers would then use too. All run the network in ONNX Runtime, on as many threads as they have cores. The
rate of the network without a server, on one row and on 16 rows at a time, is measured in between: it is the upper limit
of any server.

Bars: the median latency of a single client is at most 1.5 times plain FastAPI's; at 16 and 64 clients the requests per
second are at least 1.2 times those of each peer for the forecaster and 1.5 times for PointPillars; with 256 clients
they are at least 90 % of those of 64 clients, which saturate the server, measured just before, with only the statuses
200, 429 and 503.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.report import progress, report
from benchmarks.serve_peers import LITSERVE, PLAIN
from shared.deploy.registry import shipped

NETWORKS = {"forecaster": ("finance", "tft-anomaly", 1.2), "pointpillars": ("driving", "pointpillars", 1.5)}
LONE_BAR, OVERLOAD_BAR = 1.5, 0.9
OURS = """
import sys
from pathlib import Path
from shared.app import find
from shared.serve import app as building, server
from shared.serve.settings import Settings
app = find(sys.argv[3])
building.installed = lambda: {app.name: app}
server.run(Settings(store=Path(sys.argv[1]), port=int(sys.argv[2]), warm=False, device="cpu", queue_length=96,
                    max_batch=32, deadline_s=10, drain_s=0, program=sys.argv[4] if len(sys.argv) > 4 else None),
           demo=True)
"""
_NETWORK_ALONE = """
import os, sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = len(os.sched_getaffinity(0))
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
rows = int(sys.argv[3])
feeds = {t.name: np.zeros([size if isinstance(size, int) else rows for size in t.shape], types[t.type])
         for t in session.get_inputs()}
session.run(None, feeds)
began, number = time.perf_counter(), 0
while time.perf_counter() - began < float(sys.argv[2]):
    session.run(None, feeds)
    number += rows
print(number / (time.perf_counter() - began))
"""
_WRK_SCRIPT = """
local file = io.open(os.getenv("BODY"), "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = os.getenv("CONTENT_TYPE")
if os.getenv("HEADER_LENGTH") ~= "" then
  wrk.headers["Inference-Header-Content-Length"] = os.getenv("HEADER_LENGTH")
end
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args) refused, other = 0, 0 end
local pause = tonumber(os.getenv("PAUSE_MS"))
if pause > 0 then
  function delay() return math.random(0, 2 * pause) end
end
function response(status)
  if status == 503 or status == 429 then refused = refused + 1
  elseif status ~= 200 then other = other + 1 end
end
function done(summary, latency)
  local r, o = 0, 0
  for _, thread in ipairs(threads) do r = r + thread:get("refused"); o = o + thread:get("other") end
  local e = summary.errors
  local shape = '\\nJSON {"requests": %d, "us": %d, "p50_ms": %f, "p99_ms": %f, "refused": %d, "other": %d}\\n'
  io.write(string.format(shape, summary.requests, summary.duration, latency:percentile(50) / 1000,
    latency:percentile(99) / 1000, r, o + e.connect + e.read + e.write + e.timeout))
end
"""


class Server:
    """A server in its own processes, on the cores that the load generator does not use."""

    def __init__(
        self, name: str, program: str, arguments: list[str], port: int, path: str, cores: str, python: str = ""
    ) -> None:
        self.name, self.address = name, f"http://127.0.0.1:{port}{path}"
        with socket.create_server(("127.0.0.1", port)):
            pass  # raises if the port is taken: another server would be measured instead of this one
        script = Path(tempfile.mkdtemp()) / "server.py"  # LitServe starts processes that read the file again
        script.write_text(program)
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        command = ["taskset", "-c", cores, python or sys.executable, str(script), *arguments]
        discard = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, env=environment, stdout=discard, stderr=discard, start_new_session=True
        )

    def ask(self, body: bytes, headers: dict[str, str]) -> bytes:
        """Sends a request until the server answers; returns the answer."""
        end = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(self.address, body, headers), timeout=60) as answer:
                    return bytes(answer.read())
            except OSError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise
                time.sleep(0.3)

    def close(self) -> None:
        """Stops the server and its child processes: LitServe's children outlive their parent."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def network_rate(network: str, cores: str, seconds: float, rows: int) -> float:
    """Rows per second of the network alone, with ``rows`` at a time and without a server."""
    command = ["taskset", "-c", cores, sys.executable, "-c", _NETWORK_ALONE, network, str(seconds), str(rows)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def load(
    server: Server, clients: int, seconds: float, body: Path, headers: dict[str, str], *, pause_ms: int = 0
) -> dict[str, float]:
    """Runs wrk; returns latencies in milliseconds, answers of status 200 per second, and the numbers of other replies.

    ``pause_ms`` is the average pause of a client between an answer and its next request.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_WRK_SCRIPT)
        script.flush()
        environment = {
            **os.environ,
            "BODY": str(body),
            "PAUSE_MS": str(pause_ms),
            "CONTENT_TYPE": headers["Content-Type"],
            "HEADER_LENGTH": headers.get("Inference-Header-Content-Length", ""),
        }
        command = f"taskset -c 0 wrk -t1 -c{clients} -d{seconds:g}s --timeout 12s --latency".split()
        process = subprocess.run(
            [*command, "-s", script.name, server.address],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=environment,
        )
    result: dict[str, float] = json.loads(
        next(line[5:] for line in process.stdout.splitlines() if line.startswith("JSON "))
    )
    result["rate"] = (result["requests"] - result["refused"] - result["other"]) / (result["us"] / 1e6)
    return result


def bodies(
    inputs: list[Any], rows: dict[str, np.ndarray[Any, Any]], binary: bool
) -> tuple[bytes, dict[str, str], bytes]:
    """The request body for the Open Inference Protocol, its headers, and the body for plain FastAPI."""
    if binary:
        input_descriptions = [
            {"name": t.name, "shape": list(rows[t.name].shape), "datatype": "FP32",
             "parameters": {"binary_data_size": rows[t.name].nbytes}} for t in inputs
        ]  # fmt: skip
        header = json.dumps({"inputs": input_descriptions, "parameters": {"binary_data_output": True}}).encode()
        raw = b"".join(rows[t.name].tobytes() for t in inputs)
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
        return header + raw, headers, raw
    input_descriptions = [
        {"name": t.name, "shape": list(rows[t.name].shape), "datatype": "FP32", "data": rows[t.name].ravel().tolist()}
        for t in inputs
    ]
    text = json.dumps({"inputs": input_descriptions}).encode()
    return text, {"Content-Type": "application/json"}, text


def _to_form(raw: bytes) -> tuple[bytes, dict[str, str]]:
    """Wraps bytes as a file in a form: LitServe takes only forms and JSON."""
    header = b'--x\r\nContent-Disposition: form-data; name="raw"; filename="raw"\r\n\r\n'
    return header + raw + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def values(answer: bytes, binary: bool, names: list[str], ours: bool) -> np.ndarray[Any, Any]:
    """All outputs in an answer as one vector, in the order of ``names``."""
    if binary:
        start = answer.index(b"}]}") + 3 if ours else 0
        return np.frombuffer(answer[start:], np.float32)
    outputs = {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}
    return np.concatenate([np.asarray(outputs[name], np.float32).ravel() for name in names])


def main() -> int:
    """Measures and reports; returns 0 if the bars were met."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="forecaster")
    parser.add_argument("--litserve", help="an interpreter with litserve, onnxruntime, python-multipart")
    parser.add_argument("--program", help="the program of our server, as TRIVIUM_PROGRAM, such as openvino-bf16")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        print(json.dumps({"name": "serve", "ok": False, "note": "wrk is not installed: apt-get install wrk"}))
        return 1
    from shared.app import find

    app, model, bar = NETWORKS[arguments.network]
    artifact = next(each for each in shipped(find(app)) if each.manifest.name == model)
    binary, generator = arguments.network == "pointpillars", np.random.default_rng(0)
    rows = {t.name: generator.standard_normal((1, *t.shape[1:])).astype(np.float32) for t in artifact.manifest.inputs}
    body, headers, plain_body = bodies(list(artifact.manifest.inputs), rows, binary)
    server_cores = ",".join(map(str, sorted(os.sched_getaffinity(0) - {0}))) or "0"
    network, folder = str(artifact.network), Path(tempfile.mkdtemp(prefix="trivium-bench-"))
    server_arguments = [str(folder / "store"), "8701", app, *([arguments.program] if arguments.program else [])]
    servers = {
        "ours": Server("ours", OURS, server_arguments, 8701, f"/v2/models/{model}/infer", server_cores),
        "plain": Server("plain", PLAIN, [network, "8702"], 8702, "/raw" if binary else "/infer", server_cores),
    }
    litserve = arguments.litserve or (sys.executable if importlib.util.find_spec("litserve") else None)
    if litserve is not None:
        servers["litserve"] = Server("litserve", LITSERVE, [network, "8703"], 8703, "/predict", server_cores, litserve)
    seconds, rounds = (2.0 if not binary else 6.0, 2) if arguments.quick else (8.0 if not binary else 20.0, 5)
    plain_headers = {"Content-Type": headers["Content-Type"]}
    requests_of = {"ours": (body, headers), "plain": (plain_body, plain_headers)}
    requests_of["litserve"] = _to_form(plain_body) if binary else (plain_body, plain_headers)
    for name, (content, _) in requests_of.items():
        (folder / name).write_bytes(content)
    try:
        names = [output.name for output in artifact.manifest.outputs]
        answers = {
            name: values(server.ask(*requests_of[name]), binary, names, name == "ours")
            for name, server in servers.items()
        }
        # A requested program may round: then each value may differ by 5 % of the largest.
        absolute_tolerance = 0.05 * float(np.abs(answers["plain"]).max()) if arguments.program else 1e-5
        equal = all(
            np.allclose(answers["ours"], outputs, rtol=1e-3, atol=absolute_tolerance) for outputs in answers.values()
        )
        measurements: dict[str, list[dict[str, float]]] = {}
        rates_alone: dict[int, list[float]] = {1: [], 16: []}
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            for count, rates in rates_alone.items():
                rates.append(network_rate(network, server_cores, seconds / 2, count))
            for clients in (1, 16, 64):
                for name, server in servers.items():
                    measured = load(server, clients, seconds, folder / name, requests_of[name][1])
                    measurements.setdefault(f"{name} {clients}", []).append(measured)
            saturated = load(servers["ours"], 64, seconds, folder / "ours", headers)["rate"]
            overload = load(servers["ours"], 3 * 64 + 64, 2 * seconds, folder / "ours", headers)
            measurements.setdefault("overload", []).append(
                {**overload, "share": overload["rate"] / max(saturated, 1e-9)}
            )
    finally:
        for server in servers.values():
            server.close()
        shutil.rmtree(folder, ignore_errors=True)
    return _report(
        f"{arguments.network} {arguments.program or ''}".strip(),
        measurements,
        {rows: median(rates) for rows, rates in rates_alone.items()},
        equal,
        bar,
        list(servers),
    )


def _report(
    network: str,
    measurements: dict[str, list[dict[str, float]]],
    rates_alone: dict[int, float],
    equal: bool,
    bar: float,
    names: list[str],
) -> int:
    figures = {
        f"{name} 1 client, median ms": median(measured["p50_ms"] for measured in measurements[f"{name} 1"])
        for name in names
    }
    for clients in (16, 64):
        for name in names:
            figures[f"{name} {clients} clients, 1/s"] = median(
                measured["rate"] for measured in measurements[f"{name} {clients}"]
            )
    latency_ratio = figures["ours 1 client, median ms"] / figures["plain 1 client, median ms"]
    rates = {title: rate for title, rate in figures.items() if title.endswith("clients, 1/s")}
    unanswered = [title.removesuffix(", 1/s") for title, rate in rates.items() if not rate]
    gains = {
        f"{clients} clients over {name}": rates[f"ours {clients} clients, 1/s"]
        / rates[f"{name} {clients} clients, 1/s"]
        for clients in (16, 64)
        for name in names
        if name != "ours" and rates[f"{name} {clients} clients, 1/s"]
    }
    overload = {
        title: [measured[title] for measured in measurements["overload"]] for title in measurements["overload"][0]
    }
    saturation_share, num_failed = median(overload["share"]), sum(overload["other"])
    figures |= {
        "lone latency, times plain": latency_ratio,
        **{f"the network alone, {rows} at a time, rows/s": rate for rows, rate in rates_alone.items()},
        "the network alone over plain at 16 clients": max(rates_alone.values())
        / max(rates["plain 16 clients, 1/s"], 1e-9),
        **gains,
        "overload, 1/s": median(overload["rate"]),
        "overload, share of saturation": saturation_share,
        "overload, refused": sum(overload["refused"]),
        "overload, neither answered nor refused": num_failed,
        "overload, p99 ms": median(overload["p99_ms"]),
    }
    missed_bars = [] if equal else ["the servers' outputs differ"]
    missed_bars += [f"{title}: not one answer in the time, so nothing to compare" for title in unanswered]
    if latency_ratio > LONE_BAR:
        missed_bars.append(
            f"a lone client waits {latency_ratio:.2f} times as long as at plain FastAPI (bar {LONE_BAR})"
        )
    missed_bars += [f"{title}: {gain:.2f} times (bar {bar})" for title, gain in gains.items() if gain < bar]
    if saturation_share < OVERLOAD_BAR:
        missed_bars.append(f"overload answers {saturation_share:.0%} of saturation (bar {OVERLOAD_BAR:.0%})")
    if num_failed:
        missed_bars.append(f"{num_failed:.0f} requests were neither answered nor refused under overload")
    left_out = "" if "litserve" in names else "LitServe is not installed and left out (--litserve PYTHON). "
    note = left_out + ("; ".join(missed_bars) or "all bars met")
    report(f"serve {network}", figures, ratio=min(gains.values(), default=0.0), ok=not missed_bars, note=note)
    return 0 if not missed_bars else 1


if __name__ == "__main__":
    raise SystemExit(main())
