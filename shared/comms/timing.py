"""Measures how much of a training step is communication, and how much of it overlaps with computation.

``nccl_time`` is the name that users know. Here it is, for any backend, the time of a step in which at least one
collective was running, whether or not it overlapped with computation, including the wait for slower processes.
``exposed`` is the part in which this process computed nothing. On a CPU these are collectives that the training thread
waits for, and gradients still in transit after the backward pass has computed the last one. On a GPU it is the time in
which the profiler saw NCCL kernels and no other kernel.
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
    """The union of the intervals as sorted, disjoint intervals."""
    merged: list[Interval] = []
    for start, end in sorted(interval for interval in intervals if interval[0] < interval[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    """The total length of the union of the intervals."""
    return sum(end - start for start, end in union(intervals))


def length_outside(intervals: Iterable[Interval], covering: Iterable[Interval]) -> float:
    """The total length of ``intervals`` outside all of ``covering``."""
    own, covered = union(intervals), union(covering)
    return length([*own, *covered]) - length(covered)


class Kernel(NamedTuple):
    """GPU activity from the profiler, with times in seconds; ``collective`` and ``group`` for NCCL's kernels."""

    name: str
    start: float
    end: float
    collective: str = ""
    group: str = ""

    @property
    def is_communication(self) -> bool:
        return self.name.lower().startswith("nccl")


def kernels_in_trace(document: Mapping[str, Any]) -> list[Kernel]:
    """The GPU kernels, memory copies and memory fills in a trace exported by torch's profiler.

    Kineto adds the arguments ``Collective name``, ``Process Group Name`` and, if the group has one, ``Process Group
    Description`` to NCCL's kernels (torch/csrc/distributed/c10d/ParamCommsUtils.hpp).
    """
    kernels = []
    for event in document.get("traceEvents", ()):
        if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        arguments, start = event.get("args", {}), float(event["ts"]) / 1e6
        group = arguments.get("Process Group Description", "undefined")
        group = arguments.get("Process Group Name", "") if group == "undefined" else group
        end = start + float(event.get("dur", 0)) / 1e6
        kernels.append(Kernel(event["name"], start, end, str(arguments.get("Collective name", "")), str(group)))
    return kernels


def gpu_exposed(kernels: Sequence[Kernel]) -> tuple[float, float]:
    """The seconds in which NCCL's kernels ran, and the seconds in which they ran without any other kernel."""
    communicating = [(kernel.start, kernel.end) for kernel in kernels if kernel.is_communication]
    computing = [(kernel.start, kernel.end) for kernel in kernels if not kernel.is_communication]
    return length(communicating), length_outside(communicating, computing)


@dataclass
class Totals:
    """Sums over the steps of one process; ``by_collective`` has the seconds of each collective and group."""

    steps: int = 0
    seconds: float = 0.0
    nccl_time: float = 0.0
    exposed: float = 0.0
    bytes: int = 0
    by_collective: dict[str, float] = field(default_factory=dict)

    def add(self, spans: Sequence[Span], start: float, end: float, ready: float) -> None:
        """Adds a step from ``start`` to ``end``; its last gradient was computed at ``ready``."""
        waiting = [(span.start, span.end) for span in spans if span.blocking]
        after_backward = [(max(span.start, ready), span.end) for span in spans if not span.blocking]
        self.steps += 1
        self.seconds += end - start
        self.nccl_time += length((span.start, span.end) for span in spans)
        self.exposed += length([*waiting, *after_backward])
        self.bytes += sum(span.bytes for span in spans)
        self._add_to_collectives(spans)

    def add_kernels(self, kernels: Sequence[Kernel], seconds: float) -> None:
        """Adds a step of ``seconds`` with the GPU activity ``kernels``."""
        communication, exposed = gpu_exposed(kernels)
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds
        self.nccl_time, self.exposed = self.nccl_time + communication, self.exposed + exposed
        self._add_to_collectives(map(_to_span, filter(lambda kernel: kernel.is_communication, kernels)))

    def _add_to_collectives(self, spans: Iterable[Span]) -> None:
        for span in spans:
            name = f"{span.name} ({span.group})"
            self.by_collective[name] = self.by_collective.get(name, 0.0) + span.end - span.start


def _to_span(kernel: Kernel) -> Span:
    """An NCCL kernel as a span, with the kernel's name if the trace does not contain the collective's."""
    return Span(kernel.collective or kernel.name, kernel.group or "all", kernel.start, kernel.end, 0, False)


class CommunicationTimer:
    """Times the communication in the steps of a run; does nothing in a run of a single process.

    On a CPU every step is timed with the processes' logs of their collectives. On a GPU the host only launches
    collectives, so the profiler records every ``sample_every``-th step instead.
    """

    def __init__(self, group: Group, *, sample_every: int) -> None:
        self._group, self._sample_every = group, sample_every
        self._totals = Totals()
        self._last_step: tuple[float, list[Span]] = (0.0, [])

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Times one training step; ``number`` counts from 0."""
        if self._group.world == 1:
            yield
            return
        log = self._group.log
        log.take()
        start = time.perf_counter()
        if self._group.device.type == "cuda":
            if (number + 1) % self._sample_every:
                yield
                return
            yield from self._profile(start)
            return
        yield
        spans, end = log.take(), time.perf_counter()
        self._totals.add(spans, start, end, log.gradients_ready)
        self._last_step = (start, spans)

    def _profile(self, start: float) -> Iterator[None]:
        import torch
        from torch.profiler import ProfilerActivity, profile

        # Without the CPU activity the profiler does not know which collective a kernel belongs to.
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            yield
            torch.cuda.synchronize(self._group.device)
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(file))
            kernels = kernels_in_trace(json.loads(file.read_text(encoding="utf-8")))
        self._totals.add_kernels(kernels, seconds)
        first_start = min((kernel.start for kernel in kernels), default=0.0)
        self._last_step = (first_start, [_to_span(kernel) for kernel in kernels if kernel.is_communication])

    def report(self, folder: Path | None) -> dict[str, float]:
        """Returns the timings of the steps since the last report over all processes. Every process must call it.

        ``nccl_time`` and ``exposed`` are seconds per step, ``share`` and ``exposed_share`` fractions of the step, each
        for the median process and, as ``..._worst``, for the worst. ``rank_that_waits_most`` has the most exposed
        seconds, and ``rank_that_waits_least``, for which the others wait, the fewest. If ``folder`` is given, writes
        ``communication.prom`` (Prometheus text format, for node_exporter's textfile collector) and
        ``communication.trace.json`` (the spans of the last step, for Perfetto) into it. Empty if no step was timed.
        """
        if self._group.world == 1:
            return {}
        gathered = self._group.gather(self._totals)
        ranks = [rank for rank, totals in enumerate(gathered) if totals.steps]
        processes = [gathered[rank] for rank in ranks]
        self._totals = Totals()
        if not processes:
            return {}
        values: dict[str, float] = {}
        figures = {
            "nccl_time": [totals.nccl_time / totals.steps for totals in processes],
            "exposed": [totals.exposed / totals.steps for totals in processes],
            "hidden": [(totals.nccl_time - totals.exposed) / totals.steps for totals in processes],
            "share": [totals.nccl_time / totals.seconds for totals in processes],
            "exposed_share": [totals.exposed / totals.seconds for totals in processes],
            "megabytes": [totals.bytes / totals.steps / 1e6 for totals in processes],
        }
        for name in sorted({name for totals in processes for name in totals.by_collective}):
            figures[f"seconds of {name}"] = [totals.by_collective.get(name, 0.0) / totals.steps for totals in processes]
        for name, by_process in figures.items():
            values[name] = statistics.median(by_process)
            values[f"{name}_worst"] = max(by_process)
        # The process that waits least is the slowest: the others wait for it.
        waiting = figures["exposed"]
        values["rank_that_waits_most"] = float(ranks[waiting.index(max(waiting))])
        values["rank_that_waits_least"] = float(ranks[waiting.index(min(waiting))])
        if folder is not None:
            write_whole(folder / "communication.prom", prometheus_text(values))
            write_whole(folder / "communication.trace.json", json.dumps(self._trace()))
        return values

    def _trace(self) -> dict[str, Any]:
        start, spans = self._last_step
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
    """The report in the Prometheus text format: ``trivium_nccl_time{process="median"}`` and so on."""
    lines = [
        "# HELP trivium_nccl_time Seconds of a step with a collective running, of any backend, hidden or not.",
        "# TYPE trivium_nccl_time gauge",
    ]
    for name, value in values.items():
        metric = name.removesuffix("_worst")
        process = "worst" if name != metric else "median"
        if name.startswith("rank_"):
            lines.append(f"trivium_{name} {value:.0f}")
        elif metric.startswith("seconds of "):
            labels = f'collective="{metric.removeprefix("seconds of ")}",process="{process}"'
            lines.append(f"trivium_collective_seconds{{{labels}}} {value:.9g}")
        else:
            lines.append(f'trivium_{metric}{{process="{process}"}} {value:.9g}')
    return "\n".join(lines) + "\n"
