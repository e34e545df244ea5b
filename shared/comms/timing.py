"""How much of a training step is communication, and how much of that computing hides.

``nccl_time`` is the name that users know; here it is, on any backend, the time of a step in which at least one
collective was running, hidden or not, waiting for slower processes included. ``exposed`` is the part of it in which
this process computed nothing: on a CPU collectives that the training's own thread waits for, and gradients on their
way after the backward pass has computed the last; on a GPU NCCL's kernels beside no other, by the profiler.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
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
    """A kernel on a GPU, by the profiler: times in seconds."""

    name: str
    start: float
    end: float

    @property
    def communicates(self) -> bool:
        return self.name.lower().startswith("nccl")


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

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            yield
            torch.cuda.synchronize(self._group.device)
        kernels = [
            Kernel(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
            for event in profiler.events() or ()
            if event.device_type.name == "CUDA"
        ]
        talking, exposed = gpu_exposed(kernels)
        totals = self._totals
        totals.steps, totals.seconds = totals.steps + 1, totals.seconds + time.perf_counter() - start
        totals.nccl_time, totals.exposed = totals.nccl_time + talking, totals.exposed + exposed
        for one in kernels:
            if one.communicates:
                totals.by[one.name] = totals.by.get(one.name, 0.0) + one.end - one.start

    def report(self, folder: Path | None) -> dict[str, float]:
        """What the steps since the last report took, over all processes; every process calls it.

        ``nccl_time`` and ``exposed`` are seconds a step, ``share`` and ``exposed_share`` parts of the step, each of
        the median process and, as ``..._worst``, of the worst. Into ``folder``, where it is given, go
        ``communication.prom`` (Prometheus' text format, for node_exporter's textfile collector) and
        ``communication.trace.json`` (spans of the last step, for Perfetto). Empty where no step was timed.
        """
        if self._group.world == 1:
            return {}
        told = [totals for totals in self._group.gather(self._totals) if totals.steps]
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
        if plain.startswith("seconds of "):
            labels = f'collective="{plain.removeprefix("seconds of ")}",process="{process}"'
            lines.append(f"trivium_collective_seconds{{{labels}}} {value:.9g}")
        else:
            lines.append(f'trivium_{plain}{{process="{process}"}} {value:.9g}')
    return "\n".join(lines) + "\n"
