"""The server at 80 % of saturation and more for a while: whether anything fails, and whether its memory grows.

wrk sends the forecaster's requests over 16 connections, each of which pauses so long after an answer that 84 % of what
the server can answer come, so that 80 % do where it is missed a little. What it can answer changes with what else the
machine does: it is measured before each minute and after the last, and a minute is held against the mean of the two
beside it. The resident sets of the server and its workers are added up every two seconds; after the first fifth, for
warming up, the time is cut into twelve parts, and the growth from each to the next is judged. From the repository's
root:

    python -m benchmarks.soak [--seconds 60]

Under an even load ten minutes find 5 MB an hour nearly always (tests/test_soak.py); the seconds of saturation between
the minutes make the error wider, up to that. One minute says that the script runs.

Bars: no answer but 200; at least 80 % of saturation held; the slope of the memory is not above nought by more than its
error (95 %, Student's t).
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

SHARE, MIN_SHARE, CONNECTIONS, PARTS = 0.84, 0.8, 16, 12
_EVERY_S, _PIECE_S, _TRIALS = 2.0, 60.0, 3


def resident_bytes(server: int) -> int:
    """The resident sets of a process and of those that it started, from /proc (proc(5))."""
    total, page = 0, os.sysconf("SC_PAGE_SIZE")
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if server in (int(place.name), parent):
                total += int((place / "statm").read_text().split()[1]) * page
        except (OSError, IndexError, ValueError):
            continue  # it has ended
    return total


def slope(times: list[float], values: list[float]) -> tuple[float, float]:
    """The mean growth from part to part, and half of its 95 % interval by Student's t with ``PARTS`` - 2 degrees.

    A resident set stays where it is, and now and then moves by some pages: a sample depends on the one before, and a
    line fitted to them takes a single step for a slope. In simulations of a random walk without a trend that happened
    in 3 of 10 runs, with Newey and West's error too, and in 1 of 20 with the growth from part to part, which is nearly
    independent. For noise about a level its scatter is too wide, never too narrow.
    """
    at = [float(np.mean(part)) for part in np.array_split(times, PARTS)]
    growth = np.diff([float(np.mean(part)) for part in np.array_split(values, PARTS)]) / np.mean(np.diff(at))
    return float(growth.mean()), float(stats.sem(growth) * stats.t.ppf(0.975, PARTS - 2))


@dataclass(frozen=True, slots=True)
class Held:
    """What pieces of load came to: seconds each, answers a second in each, and at saturation before and after each."""

    seconds: float
    rates: list[float]
    saturations: list[float]

    @property
    def saturation(self) -> float:
        """The mean over the pieces, of each the mean of the two beside it."""
        return float(np.mean([np.mean(pair) for pair in pairwise(self.saturations)]))

    @property
    def share(self) -> float:
        return float(np.mean(self.rates)) / self.saturation


def hold(pieces: int, seconds: float, trial: float, ask: Callable[[float, int], float]) -> Held:
    """Holds ``SHARE`` of saturation for ``pieces`` of ``seconds`` each.

    ``ask(seconds, pause_ms)`` loads the server and returns the answers a second. A connection asks 1 / (answer + pause)
    times a second, and how long an answer takes depends on the others: so the first pause is tried a few times, and
    each further one is computed from the piece before, as much faster or slower as the server has become.
    """
    saturations, rates = [ask(trial, 0)], []
    answer_ms, pause_ms = 0.0, 0
    for _ in range(_TRIALS):
        pause_ms = pause_for(SHARE * saturations[0], answer_ms)
        answer_ms = 1e3 * CONNECTIONS / ask(trial, pause_ms) - pause_ms
    for _ in range(pieces):
        pause_ms = pause_for(SHARE * saturations[-1], answer_ms)
        rates.append(ask(seconds, pause_ms))
        saturations.append(ask(trial, 0))
        answer_ms = (1e3 * CONNECTIONS / rates[-1] - pause_ms) * saturations[-2] / saturations[-1]
    return Held(seconds, rates, saturations)


def pause_for(rate: float, answer_ms: float) -> int:
    """The milliseconds between an answer and the next request of a connection with which ``rate`` a second come."""
    return max(1, round(1e3 * CONNECTIONS / rate - answer_ms))


def main() -> int:
    """Measures, prints, and says whether the bars were met."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    seconds: float = parser.parse_args().seconds
    if shutil.which("wrk") is None:
        print(json.dumps({"name": "soak", "ok": False, "note": "wrk is not installed: apt-get install wrk"}))
        return 1
    app, model, _ = NETWORKS["forecaster"]
    artifact = next(one for one in shipped(find(app)) if one.manifest.name == model)
    generator = np.random.default_rng(0)
    rows = {t.name: generator.standard_normal((1, *t.shape[1:])).astype(np.float32) for t in artifact.manifest.inputs}
    body, headers, _ = bodies(list(artifact.manifest.inputs), rows, False)
    with tempfile.TemporaryDirectory(prefix="trivium-bench-") as folder:
        place = Path(folder, "body")
        place.write_bytes(body)
        others = ",".join(map(str, sorted(os.sched_getaffinity(0) - {0}))) or "0"
        server = Server(
            "ours", OURS, [str(Path(folder, "store")), "8704", app], 8704, f"/v2/models/{model}/infer", others
        )
        times: list[float] = []
        memory: list[float] = []
        ended = threading.Event()

        def watch(began: float) -> None:
            while not ended.wait(_EVERY_S):
                times.append(time.monotonic() - began)
                memory.append(resident_bytes(server.process.pid))

        found: list[dict[str, float]] = []

        def ask(seconds: float, pause_ms: int) -> float:
            found.append(load(server, CONNECTIONS, seconds, place, headers, pause_ms=pause_ms))
            return found[-1]["rate"]

        pieces = max(1, round(seconds / _PIECE_S))
        try:
            server.ask(body, headers)
            watching = threading.Thread(target=watch, args=(time.monotonic(),))
            watching.start()
            held = hold(pieces, seconds / pieces, min(5.0, seconds / 4), ask)
            ended.set()
            watching.join()
        finally:
            ended.set()
            server.close()
    warm = [number for number, moment in enumerate(times) if moment > times[-1] / 5]
    grows, error = slope([times[n] for n in warm], [memory[n] for n in warm])
    failed = sum(one["refused"] + one["other"] for one in found)
    figures = {
        "seconds": seconds,
        "saturation, 1/s": held.saturation,
        "saturation, least, 1/s": min(held.saturations),
        "saturation, most, 1/s": max(held.saturations),
        "held, 1/s": float(np.mean(held.rates)),
        "held, share of saturation": held.share,
        "held, p99 ms, worst minute": max(one["p99_ms"] for one in found[-2 * pieces :: 2]),
        "not answered with 200": failed,
        "memory at the end, MB": memory[-1] / 1e6,
        "memory's slope, MB an hour": grows * 3600 / 1e6,
        "its error (95 %, Student's t, 10 degrees of freedom), MB an hour": error * 3600 / 1e6,
    }
    missed = ["some were not answered with 200"] if failed else []
    missed += [] if held.share >= MIN_SHARE else [f"{held.share:.0%} of saturation were held (bar {MIN_SHARE:.0%})"]
    missed += ["the memory grows by more than its error (95 %)"] if grows > error else []
    note = "; ".join(missed) or "all bars met"
    report("soak", figures, ratio=held.share, ok=not missed, note=note)
    return 0 if not missed else 1


if __name__ == "__main__":
    raise SystemExit(main())
