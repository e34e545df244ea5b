"""The hierarchical all-reduce: reduce-scatter inside each node, all-reduce of shards across, all-gather, pipelined."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from shared.comms.allreduce import Flat, Peers, ring_all_gather, ring_reduce_scatter
from shared.comms.compression import Compressor, NoCompression, Part

Step = Callable[[], None]
Done = Callable[[BaseException | None], None]


class Stages:
    """A pipeline of threads: each job passes through all stages, and each stage works on a different job.

    Every stage processes jobs in submission order, which is the same on every process. An exception of a job is passed
    to its ``done``. On a GPU the stages use a separate stream, which first waits for the submitter's stream.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._queues: list[queue.SimpleQueue[Step | None]] = [queue.SimpleQueue() for _ in range(count)]
        for jobs in self._queues:
            threading.Thread(target=_run_stage, args=(jobs,), name="gradients", daemon=True).start()
            weakref.finalize(self, jobs.put, None)

    def submit(self, steps: Sequence[Step], done: Done) -> None:
        """Runs step ``i`` of ``steps`` on stage ``i``; steps beyond the last stage also run on the last stage."""
        queues, stream = self._queues, self._stream
        submitted = None if stream is None else torch.cuda.current_stream().record_event()

        def run(number: int) -> None:
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                proceed(number)

        def proceed(number: int) -> None:
            try:
                if submitted is not None and number == 0:
                    stream.wait_event(submitted)
                steps[number]()
            except BaseException as error:
                return done(error)
            if number + 1 == len(steps):
                return done(None)
            if number + 1 < len(queues):
                return queues[number + 1].put(lambda: run(number + 1))
            proceed(number + 1)

        queues[0].put(lambda: run(0))


def _run_stage(jobs: queue.SimpleQueue[Step | None]) -> None:
    while (step := jobs.get()) is not None:
        step()
        del step


class Hierarchical:
    """Sums inside a node, then across nodes by shard, and distributes the result inside the node.

    ``inside`` are the processes of this node and ``across`` the processes with the same local rank on every node;
    ``back`` is a second group of the processes of this node, because a group serves one thread at a time. A tensor is
    sent in segments of at most ``segment_bytes``: while one is in transit between nodes, the next is summed inside.
    """

    def __init__(
        self, inside: Peers, across: Peers, back: Peers, *, device: torch.device, segment_bytes: int = 4 << 20
    ) -> None:
        self.inside, self.across, self.back, self.segment_bytes = inside, across, back, segment_bytes
        self._stages = Stages(1 if back is inside else 3, device)

    def start(self, flat: Tensor, parts: Sequence[Part], compressor: Compressor, done: Done) -> None:
        """Starts to replace a flat tensor by its sum over all processes; calls ``done`` once, on another thread.

        ``compressor`` compresses the sum of each node for the transfer between nodes.
        """
        segments = [flat] if not compressor.divisible else _segments(flat, self.segment_bytes)
        errors: list[BaseException] = []

        def segment_done(error: BaseException | None, last: bool) -> None:
            if error is not None and not errors:
                errors.append(error)
                done(error)
            elif last and not errors:
                done(None)

        for number, segment in enumerate(segments):
            last = number + 1 == len(segments)
            self._stages.submit(
                self._steps(segment, parts if len(segments) == 1 else (), compressor),
                lambda error, last=last: segment_done(error, last),  # type: ignore[misc]
            )

    def all_reduce(self, tensor: Tensor, compressor: Compressor | None = None) -> None:
        """Sums ``tensor`` over all processes in place and waits for the end; by default without compression."""
        ended = threading.Event()
        outcome: list[BaseException | None] = []

        def done(error: BaseException | None) -> None:
            outcome.append(error)
            ended.set()

        self.start(tensor.view(-1), (), compressor or NoCompression(), done)
        ended.wait()
        if outcome[0] is not None:
            raise outcome[0]

    def _steps(self, flat: Tensor, parts: Sequence[Part], compressor: Compressor) -> list[Step]:
        inside, across = self.inside, self.across
        bounds = compressor.bounds(flat.numel(), parts, inside.size)
        start, stop = bounds[inside.rank], bounds[inside.rank + 1]
        own = [Part(part.name, part.start - start, part.shape) for part in parts if start <= part.start < stop]
        return [
            lambda: ring_reduce_scatter(flat, bounds, inside),
            lambda: compressor.sum(flat[start:stop], own, Flat(across), across.size),
            lambda: ring_all_gather(flat, bounds, self.back),
        ]


def _segments(flat: Tensor, segment_bytes: int) -> list[Tensor]:
    return list(flat.split(max(1, segment_bytes // flat.element_size())))  # type: ignore[no-untyped-call]
