"""A three-step pipeline over consecutive frames. Results come in order and equal those of frame-by-frame processing.

While the network computes a frame, other threads read, decode, resize and upload the next frames, and one decodes the
boxes of the previous frame. On a GPU each of the three steps has its own stream, which waits for the previous step on
the device, not on the host.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from shared.threads import usable_cores

Item = TypeVar("Item")
Value = TypeVar("Value")
Prepared = TypeVar("Prepared")
Computed = TypeVar("Computed")
Result = TypeVar("Result")
_MAX_READERS = 4


def overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Prepared],
    compute: Callable[[Prepared], Computed],
    finish: Callable[[Computed], Result],
    *,
    device: str = "cpu",
    readers: int | None = None,
) -> Generator[tuple[Item, Future[Result]]]:
    """Yields each item with the future of its result, in order. If a step raises for an item, only its future raises.

    ``compute`` runs in the caller's thread. At most ``readers`` items are read ahead of it (by default half the number
    of cores, at most 4), and at most two are being finished after it. The tuples, lists and mappings that a step
    returns may hold tensors on the device for the next step. On KeyboardInterrupt the results of all computed items are
    yielded before it is raised again.
    """
    count = readers or min(_MAX_READERS, max(1, usable_cores() // 2))
    read_step, compute_step, finish_step = (
        _Step(read, device),
        _Step(compute, device, own_stream=False),
        _Step(finish, device),
    )
    upcoming = iter(items)
    reading: deque[tuple[Item, Future[_StepOutput[Prepared]]]] = deque()
    finishing: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(count, "read") as reader, ThreadPoolExecutor(1, "finish") as finisher:

        def read_next(max_items: int) -> None:
            reading.extend((item, reader.submit(read_step, _StepOutput(item))) for item in islice(upcoming, max_items))

        def submit_computed(prepared: Future[_StepOutput[Prepared]]) -> Future[Result]:
            try:
                output = compute_step(prepared.result())
            except Exception as error:
                failed: Future[Result] = Future()
                failed.set_exception(error)
                return failed
            return finisher.submit(lambda: finish_step(output).value)

        try:
            read_next(count)
            while reading:
                item, prepared = reading.popleft()
                wait([prepared])
                read_next(1)
                finishing.append((item, submit_computed(prepared)))
                del prepared
                if len(finishing) > 1:
                    yield finishing.popleft()
            while finishing:
                yield finishing.popleft()
        except KeyboardInterrupt:
            reader.shutdown(wait=False, cancel_futures=True)
            yield from finishing
            raise
        finally:
            reader.shutdown(wait=False, cancel_futures=True)


class _StepOutput(NamedTuple, Generic[Value]):
    """A step's output, and the event that its stream records when the output is ready; None on a CPU."""

    value: Value
    done: torch.cuda.Event | None = None


class _Step(Generic[Value, Result]):
    """A step that starts on the device when the previous step is done there; in one stream per thread, or in the
    caller's stream."""

    def __init__(self, call: Callable[[Value], Result], device: str, *, own_stream: bool = True) -> None:
        self._call, self._device, self._own_stream = call, torch.device(device), own_stream
        self._thread_local = threading.local()

    def __call__(self, previous: _StepOutput[Value]) -> _StepOutput[Result]:
        if self._device.type != "cuda":
            return _StepOutput(self._call(previous.value))
        with torch.cuda.stream(self._stream()) if self._own_stream else nullcontext():
            stream = torch.cuda.current_stream(self._device)
            if previous.done is not None:
                stream.wait_event(previous.done)
            for tensor in _on_device(previous.value):
                # The allocator must not reuse its memory before this stream is done with it.
                tensor.record_stream(stream)
            return _StepOutput(self._call(previous.value), stream.record_event())

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._thread_local, "stream"):
            self._thread_local.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream: torch.cuda.Stream = self._thread_local.stream
        return stream


def _on_device(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings that are not on the CPU, in order."""
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _on_device(part)
