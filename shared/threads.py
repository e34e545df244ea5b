"""How many threads the process computes with: one setting for torch and for every other runtime."""

from __future__ import annotations

import os

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


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_compute_threads() -> int:
    """Gives torch the threads of a process by itself, as ``compute_threads`` says; returns their number."""
    import torch

    threads = compute_threads()
    torch.set_num_threads(threads)
    return threads
