"""How many threads the process computes with: one setting for torch and for every other runtime."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import InvalidInputError


def compute_threads(workers: int = 1) -> int:
    """The threads of each of ``workers`` that compute at the same time: their share of the process's.

    TRIVIUM_THREADS says how many the process has; else OMP_NUM_THREADS; else one for each core that it may use.
    """
    for name in ("TRIVIUM_THREADS", "OMP_NUM_THREADS"):
        if text := os.environ.get(name, "").partition(",")[0].strip():
            if not text.isdecimal() or not int(text):
                raise InvalidInputError(f"{name} is {text!r}; expected a number of threads from 1 up")
            return max(1, int(text) // workers)
    return max(1, usable_cores() // workers)


@contextmanager
def compute_threads_divided(workers: int) -> Iterator[None]:
    """Within it each of ``workers`` threads of this process computes with its share of the process's threads.

    It holds for programs that are opened within it. For a command, which has its process to itself.
    """
    before, share = os.environ.get("TRIVIUM_THREADS"), compute_threads(workers)
    os.environ["TRIVIUM_THREADS"] = str(share)
    try:
        yield
    finally:
        del os.environ["TRIVIUM_THREADS"]
        if before is not None:
            os.environ["TRIVIUM_THREADS"] = before
        if "torch" in sys.modules:
            set_compute_threads()


@contextmanager
def torch_threads_divided(workers: int) -> Iterator[None]:
    """Within it torch computes with the share of each of ``workers`` in the calling thread's number of threads.

    So it does in the calling thread and in those that begin within it; others that run already keep their number.
    Programs keep the threads that they were loaded with, but for those that torch computes.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_compute_threads() -> int:
    """Gives torch the threads of a process by itself, as ``compute_threads`` says; returns their number."""
    import torch

    threads = compute_threads()
    torch.set_num_threads(threads)
    return threads
