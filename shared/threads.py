"""The number of threads that the process computes with: one setting for torch and every other runtime."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shared.control_group import core_limit
from shared.errors import InvalidInputError


def compute_threads(workers: int = 1) -> int:
    """The number of threads for each of ``workers`` that compute at the same time: an equal share, at least 1.

    The process has TRIVIUM_THREADS threads if that is set, else OMP_NUM_THREADS, else one for each usable core. Raises
    ``InvalidInputError`` if the variable is not a positive integer.
    """
    for name in ("TRIVIUM_THREADS", "OMP_NUM_THREADS"):
        if text := os.environ.get(name, "").partition(",")[0].strip():
            if not text.isdecimal() or not int(text):
                raise InvalidInputError(f"{name} is {text!r}; expected a number of threads of at least 1")
            return max(1, int(text) // workers)
    return max(1, usable_cores() // workers)


@contextmanager
def compute_threads_divided(workers: int) -> Iterator[None]:
    """Inside this context, each of ``workers`` threads of this process computes with its share of the compute threads.

    It applies to programs that are opened inside the context. It changes the environment, so only commands, which have
    the process to themselves, may use it.
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
    """Inside this context, torch divides the calling thread's number of compute threads by ``workers``.

    This applies to the calling thread and to threads started inside the context; other running threads keep their
    number. Programs that torch does not run keep the number of threads that they were loaded with.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_cores() -> int:
    """The number of cores that this process may run on, or whose time its container may use, at least 1.

    A container's quota is rounded down: with more threads than that, the system stops all of them for a part of every
    period.
    """
    quota = core_limit()
    return _cores_to_run_on() if quota is None else max(1, min(_cores_to_run_on(), int(quota)))


def _cores_to_run_on() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_library_threads() -> None:
    """Limits libraries that start a thread for each core to ``compute_threads()``, if there are more cores than that.

    These are NumPy's BLAS, torch and Arrow (``OMP_NUM_THREADS``), Polars and ITK: they do not know TRIVIUM_THREADS, and
    most do not know a container's quota. A limit that the environment already sets stays. Call it before they are
    imported; processes that this one starts inherit the limits.
    """
    if (threads := compute_threads()) < _cores_to_run_on():
        for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
            os.environ.setdefault(name, str(threads))


def limit_torch_threads() -> None:
    """Lowers torch's number of threads to TRIVIUM_THREADS or a container's quota, which torch does not know.

    It knows OMP_NUM_THREADS, which ``torchrun`` sets to 1: a script that has set more threads since then keeps them.
    """
    import torch

    if os.environ.get("TRIVIUM_THREADS") or not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(torch.get_num_threads(), compute_threads()))


def set_compute_threads() -> int:
    """Sets torch's number of threads to ``compute_threads()``, and returns it."""
    import torch

    threads = compute_threads()
    torch.set_num_threads(threads)
    return threads
