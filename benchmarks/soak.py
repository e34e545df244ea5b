"""The server at 80 % of saturation or more for a while: whether requests fail, and whether its memory grows.

wrk sends the forecaster's requests over 16 connections. Each connection pauses after an answer so that requests arrive
at 84 % of the saturation rate, which leaves a margin above 80 %. The saturation rate changes with other load on the
machine, so it is measured before each minute and after the last, and each minute is compared with the mean of its two
neighbouring measurements. The resident memory of the server and its workers is sampled every two seconds. After a
warm-up of the first fifth, the time is divided into twelve parts, and the growth from part to part is tested. From the
repository's root:

    python -m benchmarks.soak [--seconds 60]

Under a steady load, ten minutes nearly always detect a growth of 5 MB an hour (tests/test_soak.py); the seconds of
saturation between the minutes widen the error up to that. One minute only shows that the script runs.

Bars: every answer is 200; at least 80 % of saturation is held; the slope of the memory does not exceed zero by more
than its error (95 %, Student's t).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.report import report
from benchmarks.serve import NETWORKS, OURS, Server, bodies, load
from shared.app import find
from shared.deploy.registry import shipped

TARGET_SHARE, MIN_SHARE, CONNECTIONS, PARTS = 0.84, 0.8, 16, 12
_SAMPLE_INTERVAL_S, _PIECE_SECONDS, _TRIALS = 2.0, 60.0, 3


def resident_bytes(server: int) -> int:
    """The resident memory of a process and its children in bytes, from /proc (proc(5))."""
    total, page = 0, os.sysconf("SC_PAGE_SIZE")
    for process_folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process_folder / "stat").read_text().rpartition(")")[2].split()[1])
            if server in (int(process_folder.name), parent):
                total += int((process_folder / "statm").read_text().split()[1]) * page
        except (OSError, IndexError, ValueError):
            continue  # the process has ended
    return total


def slope(times: list[float], values: list[float]) -> tuple[float, float]:
    """The mean growth from part to part, and half of its 95 % interval by Student's t with ``PARTS`` - 2 degrees.

    Resident memory is constant most of the time and changes in steps of some pages. Samples are therefore correlated,
    and a fitted line takes a single step for a slope: in simulations of a random walk without a trend, in 3 of 10 runs,
    also with Newey and West's error. With the growth from part to part, whose values are nearly independent, it
    happened in 1 of 20 runs. For noise about a constant level the interval is too wide, never too narrow.
    """
    part_times = [float(np.mean(part)) for part in np.array_split(times, PARTS)]
    growth = np.diff([float(np.mean(part)) for part in np.array_split(values, PARTS)]) / np.mean(np.diff(part_times))
    return float(growth.mean()), float(stats.sem(growth) * stats.t.ppf(0.975, PARTS - 2))


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of a load in pieces: seconds of each, answers per second in each, and saturation rates around each."""

    seconds: float
    rates: list[float]
    saturations: list[float]

    @property
    def saturation(self) -> float:
        """The saturation rate: of each piece the mean of the rates before and after it, averaged over the pieces."""
        return float(np.mean([np.mean(pair) for pair in pairwise(self.saturations)]))

    @property
    def share(self) -> float:
        return float(np.mean(self.rates)) / self.saturation


def hold_load(pieces: int, seconds: float, trial: float, measure_rate: Callable[[float, int], float]) -> LoadResult:
    """Loads the server at ``TARGET_SHARE`` of saturation for ``pieces`` of ``seconds`` each.

    ``measure_rate(seconds, pause_ms)`` loads the server and returns the answers per second. A connection sends 1 /
    (answer time + pause) requests per second, and the answer time depends on the load. So the first pause is found in a
    few trials, and each further pause is computed from the previous piece, corrected for the change of the saturation
    rate.
    """
    saturations, rates = [measure_rate(trial, 0)], []
    answer_ms, pause_ms = 0.0, 0
    for _ in range(_TRIALS):
        pause_ms = pause_for(TARGET_SHARE * saturations[0], answer_ms)
        answer_ms = 1e3 * CONNECTIONS / measure_rate(trial, pause_ms) - pause_ms
    for _ in range(pieces):
        pause_ms = pause_for(TARGET_SHARE * saturations[-1], answer_ms)
        rates.append(measure_rate(seconds, pause_ms))
        saturations.append(measure_rate(trial, 0))
        answer_ms = (1e3 * CONNECTIONS / rates[-1] - pause_ms) * saturations[-2] / saturations[-1]
    return LoadResult(seconds, rates, saturations)


def pause_for(rate: float, answer_ms: float) -> int:
    """Milliseconds between an answer and the next request of a connection, for ``rate`` requests per second in all."""
    return max(1, round(1e3 * CONNECTIONS / rate - answer_ms))


def main() -> int:
    """Measures and reports; returns 0 if the bars were met."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    seconds: float = parser.parse_args().seconds
    if shutil.which("wrk") is None:
        print(json.dumps({"name": "soak", "ok": False, "note": "wrk is not installed: apt-get install wrk"}))
        return 1
    app, model, _ = NETWORKS["forecaster"]
    artifact = next(each for each in shipped(find(app)) if each.manifest.name == model)
    generator = np.random.default_rng(0)
    rows = {t.name: generator.standard_normal((1, *t.shape[1:])).astype(np.float32) for t in artifact.manifest.inputs}
    body, headers, _ = bodies(list(artifact.manifest.inputs), rows, False)
    with tempfile.TemporaryDirectory(prefix="trivium-bench-") as folder:
        body_file = Path(folder, "body")
        body_file.write_bytes(body)
        server_cores = ",".join(map(str, sorted(os.sched_getaffinity(0) - {0}))) or "0"
        server = Server(
            "ours", OURS, [str(Path(folder, "store")), "8704", app], 8704, f"/v2/models/{model}/infer", server_cores
        )
        times: list[float] = []
        memory: list[float] = []
        stopped = threading.Event()

        def sample_memory(start: float) -> None:
            while not stopped.wait(_SAMPLE_INTERVAL_S):
                times.append(time.monotonic() - start)
                memory.append(resident_bytes(server.process.pid))

        measurements: list[dict[str, float]] = []

        def measure_rate(seconds: float, pause_ms: int) -> float:
            measurements.append(load(server, CONNECTIONS, seconds, body_file, headers, pause_ms=pause_ms))
            return measurements[-1]["rate"]

        pieces = max(1, round(seconds / _PIECE_SECONDS))
        try:
            server.ask(body, headers)
            sampler = threading.Thread(target=sample_memory, args=(time.monotonic(),))
            sampler.start()
            result = hold_load(pieces, seconds / pieces, min(5.0, seconds / 4), measure_rate)
            stopped.set()
            sampler.join()
        finally:
            stopped.set()
            server.close()
    after_warm_up = [number for number, moment in enumerate(times) if moment > times[-1] / 5]
    growth, error = slope([times[n] for n in after_warm_up], [memory[n] for n in after_warm_up])
    num_failed = sum(measured["refused"] + measured["other"] for measured in measurements)
    figures = {
        "seconds": seconds,
        "saturation, 1/s": result.saturation,
        "saturation, least, 1/s": min(result.saturations),
        "saturation, most, 1/s": max(result.saturations),
        "held, 1/s": float(np.mean(result.rates)),
        "held, share of saturation": result.share,
        "held, p99 ms, worst minute": max(measured["p99_ms"] for measured in measurements[-2 * pieces :: 2]),
        "not answered with 200": num_failed,
        "memory at the end, MB": memory[-1] / 1e6,
        "memory's slope, MB an hour": growth * 3600 / 1e6,
        "its error (95 %, Student's t, 10 degrees of freedom), MB an hour": error * 3600 / 1e6,
    }
    missed_bars = ["some were not answered with 200"] if num_failed else []
    missed_bars += (
        [] if result.share >= MIN_SHARE else [f"{result.share:.0%} of saturation were held (bar {MIN_SHARE:.0%})"]
    )
    missed_bars += ["the memory grows by more than its error (95 %)"] if growth > error else []
    note = "; ".join(missed_bars) or "all bars met"
    report("soak", figures, ratio=result.share, ok=not missed_bars, note=note)
    return 0 if not missed_bars else 1


if __name__ == "__main__":
    raise SystemExit(main())
