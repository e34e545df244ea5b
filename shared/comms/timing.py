"""How much of a training step is communication, and how much of that computing hides.

``nccl_time`` is the name that users know; here it is, on any backend, the time of a step in which at least one
collective was running, hidden or not, waiting for slower processes included. ``exposed`` is the part of it in which
this process computed nothing: on a CPU collectives that the training's own thread waits for, and gradients on their
way after the backward pass has computed the last; on a GPU NCCL's kernels beside no other, by the profiler.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from shared.atomic_files import write_whole
from shared.comms.collective_log import Span
from shared.comms.group import Group

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times as disjoint intervals in order."""
    found: list[Interval] = []
    for start, end in sorted(interval for interval in intervals if interval[0] < interval[1]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def length(intervals: Iterable[Interval]) -> float:
    """The length of the union."""
    return sum(end - start for start, end in union(intervals))


def outside(intervals: Iterable[Interval], covering: Iterable[Interval]) -> float:
    """The length of what of ``intervals`` lies in none of ``covering``."""
    own, other = union(intervals), union(covering)
    return length([*own, *other]) - length(other)


class Kernel(NamedTuple):
    """What a GPU did, by the profiler: times in seconds; ``collective`` and ``group`` where it was NCCL's."""

    name: str
    start: float
    end: float
    collective: str = ""
    group: str = ""

    @property
    def communicates(self) -> bool:
        return self.name.lower().startswith("nccl")


def kernels_in_trace(document: Mapping[str, Any]) -> list[Kernel]:
    """The kernels, copies and fills of a GPU in a trace that torch's profiler exported.

    Kineto gives NCCL's kernels the arguments ``Collective name``, ``Process Group Name`` and, where the group has one,
    ``Process Group Description`` (torch/csrc/distributed/c10d/ParamCommsUtils.hpp).
    """
    found = []
    for event in document.get("traceEvents", ()):
        if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        told, start = event.get("args", {}), float(event["ts"]) / 1e6
        group = told.get("Process Group Description", "undefined")
        group = told.get("Process Group Name", "") if group == "undefined" else group
        end = start + float(event.get("dur", 0)) / 1e6
        found.append(Kernel(event["name"], start, end, str(told.get("Collective name", "")), str(group)))
    return found


def gpu_exposed(kernels: Sequence[Kernel]) -> tuple[float, float]:
    """Seconds in which NCCL's kernels ran, and those in which no other kernel ran beside them."""
    talking = [(one.start, one.end) for one in kernels if one.communicates]
    computing = [(one.start, one.end) for one in kernels if not one.communicates]
    return length(talking), outside(talking, computing)


@dataclass
class Totals:
    """Sums over steps of one process; ``by`` has seconds by collective and group."""

    steps: int = 0
    seconds: float = 0.0
    nccl_time: float = 0.0
    exposed: float = 0.0
    bytes: int = 0
    by: dict[str, float] = field(default_factory=dict)

    def add(self, spans: Sequence[Span], start: float, end: float, ready: float) -> None:
        """Adds a step from ``start`` to ``end`` whose last gradient was computed at ``ready``."""
        waited = [(span.start, span.end) for span in spans if span.blocking]
        late = [(max(span.start, ready), span.end) for span in spans if not span.blocking]
        self.steps += 1
        self.seconds += end - start
        self.nccl_time += length((span.start, span.end) for span in spans)
        self.exposed += length([*waited, *late])
        self.bytes += sum(span.bytes for span in spans)
        for span in spans:
            name = f"{span.name} ({span.group})"
            self.by[name] = self.by.get(name, 0.0) + span.end - span.start

    def add_kernels(self, kernels: Sequence[Kernel], seconds: float) -> None:
        """Adds a step of ``seconds`` in which a GPU did this."""
        talking, exposed = gpu_exposed(kernels)
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds
        self.nccl_time, self.exposed = self.nccl_time + talking, self.exposed + exposed
        for span in (_span(one) for one in kernels if one.communicates):
            name = f"{span.name} ({span.group})"
            self.by[name] = self.by.get(name, 0.0) + span.end - span.start


def _span(kernel: Kernel) -> Span:
    """A kernel of NCCL as a collective; by its own name where the trace does not tell the collective's."""
    return Span(kernel.collective or kernel.name, kernel.group or "all", kernel.start, kernel.end, 0, False)


class CommunicationTimer:
    """Times the steps of a run of several processes; does nothing in a run of one.

    Every step is timed by what the processes log of their collectives. On a GPU collectives are only started there, so
    that the profiler looks at each ``sampled`` step in their place.
    """

    def __init__(self, group: Group, *, sampled: int) -> None:
        self._group, self._sampled = group, sampled
        self._totals = Totals()
        self._last: tuple[float, list[Span]] = (0.0, [])

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A training step; its ``number`` counts from 0."""
        if self._group.world == 1:
            yield
            return
        log = self._group.log
        log.take()
        start = time.perf_counter()
        if self._group.device.type == "cuda":
            if (number + 1) % self._sampled:
                yield
                return
            yield from self._profiled(start)
            return
        yield
        spans, end = log.take(), time.perf_counter()
        self._totals.add(spans, start, end, log.gradients_ready)
        self._last = (start, spans)

    def _profiled(self, start: float) -> Iterator[None]:
        import torch
        from torch.profiler import ProfilerActivity, profile

        # Without the host's side the profiler does not know which collective a kernel belongs to.
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            yield
            torch.cuda.synchronize(self._group.device)
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(file))
            kernels = kernels_in_trace(json.loads(file.read_text(encoding="utf-8")))
        self._totals.add_kernels(kernels, seconds)
        began = min((one.start for one in kernels), default=0.0)
        self._last = (began, [_span(one) for one in kernels if one.communicates])

    def report(self, folder: Path | None) -> dict[str, float]:
        """What the steps since the last report took, over all processes; every process calls it.

        ``nccl_time`` and ``exposed`` are seconds a step, ``share`` and ``exposed_share`` parts of the step, each of
        the median process and, as ``..._worst``, of the worst; ``rank_that_waits_most`` has the most exposed seconds,
        and ``rank_that_waits_least``, for which the others wait, the fewest. Into ``folder``, where it is given, go
        ``communication.prom`` (Prometheus' text format, for node_exporter's textfile collector) and
        ``communication.trace.json`` (spans of the last step, for Perfetto). Empty where no step was timed.
        """
        if self._group.world == 1:
            return {}
        gathered = self._group.gather(self._totals)
        ranks = [rank for rank, totals in enumerate(gathered) if totals.steps]
        told = [gathered[rank] for rank in ranks]
        self._totals = Totals()
        if not told:
            return {}
        values: dict[str, float] = {}
        figures = {
            "nccl_time": [one.nccl_time / one.steps for one in told],
            "exposed": [one.exposed / one.steps for one in told],
            "hidden": [(one.nccl_time - one.exposed) / one.steps for one in told],
            "share": [one.nccl_time / one.seconds for one in told],
            "exposed_share": [one.exposed / one.seconds for one in told],
            "megabytes": [one.bytes / one.steps / 1e6 for one in told],
        }
        for name in sorted({name for one in told for name in one.by}):
            figures[f"seconds of {name}"] = [one.by.get(name, 0.0) / one.steps for one in told]
        for name, found in figures.items():
            values[name] = statistics.median(found)
            values[f"{name}_worst"] = max(found)
        # Others wait for the one that waits least: it is the slowest.
        waiting = figures["exposed"]
        values["rank_that_waits_most"] = float(ranks[waiting.index(max(waiting))])
        values["rank_that_waits_least"] = float(ranks[waiting.index(min(waiting))])
        if folder is not None:
            write_whole(folder / "communication.prom", prometheus_text(values))
            write_whole(folder / "communication.trace.json", json.dumps(self._trace()))
        return values

    def _trace(self) -> dict[str, Any]:
        start, spans = self._last
        events = [
            {
                "name": span.name,
                "cat": span.group,
                "ph": "X",
                "ts": (span.start - start) * 1e6,
                "dur": (span.end - span.start) * 1e6,
                "pid": self._group.rank,
                "tid": span.group,
                "args": {"bytes": span.bytes},
            }
            for span in spans
        ]
        return {"traceEvents": events, "displayTimeUnit": "ms"}


def prometheus_text(values: dict[str, float]) -> str:
    """The report in Prometheus' text format: ``trivium_nccl_time{process="median"}`` and so on."""
    lines = [
        "# HELP trivium_nccl_time Seconds of a step with a collective running, of any backend, hidden or not.",
        "# TYPE trivium_nccl_time gauge",
    ]
    for name, value in values.items():
        plain = name.removesuffix("_worst")
        process = "worst" if name != plain else "median"
        if name.startswith("rank_"):
            lines.append(f"trivium_{name} {value:.0f}")
        elif plain.startswith("seconds of "):
            labels = f'collective="{plain.removeprefix("seconds of ")}",process="{process}"'
            lines.append(f"trivium_collective_seconds{{{labels}}} {value:.9g}")
        else:
            lines.append(f'trivium_{plain}{{process="{process}"}} {value:.9g}')
    return "\n".join(lines) + "\n"
