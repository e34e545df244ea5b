"""The all-reduce of several nodes: reduce-scatter inside each, sums across by shard, all-gather inside, pipelined."""

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
    """Threads through which pieces of work go one after the other, so that each is busy with another piece.

    A thread takes pieces in the order in which they were given, which is the same on every process. What one of them
    raises goes to its ``done``. On a GPU they compute on a stream of their own, which first waits for the giver's.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._queues: list[queue.SimpleQueue[Step | None]] = [queue.SimpleQueue() for _ in range(count)]
        for waiting in self._queues:
            threading.Thread(target=_work, args=(waiting,), name="gradients", daemon=True).start()
            weakref.finalize(self, waiting.put, None)

    def give(self, steps: Sequence[Step], done: Done) -> None:
        """Has each of the ``steps`` done by the stage of its number, the last one by the last stage that there is."""
        queues, stream = self._queues, self._stream
        given = None if stream is None else torch.cuda.current_stream().record_event()

        def run(number: int) -> None:
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                proceed(number)

        def proceed(number: int) -> None:
            try:
                if given is not None and number == 0:
                    stream.wait_event(given)
                steps[number]()
            except BaseException as error:
                return done(error)
            if number + 1 == len(steps):
                return done(None)
            if number + 1 < len(queues):
                return queues[number + 1].put(lambda: run(number + 1))
            proceed(number + 1)

        queues[0].put(lambda: run(0))


def _work(waiting: queue.SimpleQueue[Step | None]) -> None:
    while (step := waiting.get()) is not None:
        step()
        del step


class Hierarchical:
    """Sums inside a node, across nodes by shard, and gives the result to all inside.

    ``inside`` are the processes of this node, ``across`` those with this one's place on every node; ``back`` are the
    processes of this node once more, for a group serves one thread at a time. A tensor goes in segments of at most
    ``segment_bytes``: while one is on its way between nodes, the next is summed inside.
    """

    def __init__(
        self, inside: Peers, across: Peers, back: Peers, *, device: torch.device, segment_bytes: int = 4 << 20
    ) -> None:
        self.inside, self.across, self.back, self.segment_bytes = inside, across, back, segment_bytes
        self._stages = Stages(1 if back is inside else 3, device)

    def start(self, flat: Tensor, parts: Sequence[Part], compressor: Compressor, done: Done) -> None:
        """Replaces a flat tensor by its sum over all processes; ``done`` is called on another thread, once.

        Between nodes it goes as ``compressor`` has it: the sum of each node is what is compressed.
        """
        pieces = [flat] if not compressor.divisible else _segments(flat, self.segment_bytes)
        errors: list[BaseException] = []

        def piece_done(error: BaseException | None, last: bool) -> None:
            if error is not None and not errors:
                errors.append(error)
                done(error)
            elif last and not errors:
                done(None)

        for number, piece in enumerate(pieces):
            last = number + 1 == len(pieces)
            self._stages.give(
                self._steps(piece, parts if len(pieces) == 1 else (), compressor),
                lambda error, last=last: piece_done(error, last),  # type: ignore[misc]
            )

    def all_reduce(self, tensor: Tensor, compressor: Compressor | None = None) -> None:
        """The same, waiting for its end; without a ``compressor`` all bytes go between nodes."""
        ended = threading.Event()
        found: list[BaseException | None] = []

        def done(error: BaseException | None) -> None:
            found.append(error)
            ended.set()

        self.start(tensor.view(-1), (), compressor or NoCompression(), done)
        ended.wait()
        if found[0] is not None:
            raise found[0]

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
