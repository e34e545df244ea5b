"""Consecutive frames through a network, several under way at a time, results in order and as frame by frame.

While the network computes a frame, the next ones are read, decoded, resized and uploaded by other threads, and the
boxes of the one before are worked out by another. On a GPU each of the three steps has a stream of its own, in which it
waits for the step before on the device and not on the host.
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
Given = TypeVar("Given")
Ready = TypeVar("Ready")
Computed = TypeVar("Computed")
Result = TypeVar("Result")
_MAX_READERS = 4


def overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Ready],
    compute: Callable[[Ready], Computed],
    finish: Callable[[Computed], Result],
    *,
    device: str = "cpu",
    readers: int | None = None,
) -> Generator[tuple[Item, Future[Result]]]:
    """Each item with what became of it, in order; what a step raised for one item is raised by its future alone.

    ``compute`` runs in the caller's thread. At most ``readers`` items are read ahead of it (by default by half of the
    cores, 4 at most), and two are finished behind it. What tuples, lists and mappings a step returns may hold tensors
    on the device, which the next step uses. An interrupt comes after the results of what was computed before.
    """
    count = readers or min(_MAX_READERS, max(1, usable_cores() // 2))
    begin, middle, end = _Step(read, device), _Step(compute, device, own_stream=False), _Step(finish, device)
    upcoming = iter(items)
    reading: deque[tuple[Item, Future[_Handed[Ready]]]] = deque()
    finishing: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(count, "read") as reader, ThreadPoolExecutor(1, "finish") as finisher:

        def read_next(most: int) -> None:
            reading.extend((item, reader.submit(begin, _Handed(item))) for item in islice(upcoming, most))

        def computed(ready: Future[_Handed[Ready]]) -> Future[Result]:
            try:
                handed = middle(ready.result())
            except Exception as error:
                failed: Future[Result] = Future()
                failed.set_exception(error)
                return failed
            return finisher.submit(lambda: end(handed).value)

        try:
            read_next(count)
            while reading:
                item, ready = reading.popleft()
                wait([ready])
                read_next(1)
                finishing.append((item, computed(ready)))
                del ready
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


class _Handed(NamedTuple, Generic[Given]):
    """What a step hands to the next, and when its stream has computed it; None on a CPU."""

    value: Given
    done: torch.cuda.Event | None = None


class _Step(Generic[Given, Result]):
    """A step that begins when that before it is done on the device; in a stream of its own for each thread, or in the
    caller's."""

    def __init__(self, call: Callable[[Given], Result], device: str, *, own_stream: bool = True) -> None:
        self._call, self._device, self._own_stream = call, torch.device(device), own_stream
        self._of_thread = threading.local()

    def __call__(self, given: _Handed[Given]) -> _Handed[Result]:
        if self._device.type != "cuda":
            return _Handed(self._call(given.value))
        with torch.cuda.stream(self._stream()) if self._own_stream else nullcontext():
            stream = torch.cuda.current_stream(self._device)
            if given.done is not None:
                stream.wait_event(given.done)
            for tensor in _on_device(given.value):
                # Its memory is not used anew before this stream is done with it.
                tensor.record_stream(stream)
            return _Handed(self._call(given.value), stream.record_event())

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream: torch.cuda.Stream = self._of_thread.stream
        return stream


def _on_device(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings that are not on the CPU."""
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _on_device(part)
