"""Loads models in a background thread while the input is being read; see ``predictor.answer``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.deploy.programs.program import Program

_threads: list[Thread] = []


def preload(find_needed: Callable[[], Sequence[Program]]) -> None:
    """Loads the programs returned by ``find_needed``, one after the other, in a thread that callers do not wait for.

    A call of one of these programs waits until it is loaded. ``find_needed`` is called in the thread.
    """

    def load() -> None:
        # The same error is raised again, and reported, when the input is decoded or the program is called.
        with suppress(Exception):
            for program in find_needed():
                program.preload()

    _threads[:] = [thread for thread in _threads if thread.is_alive()]
    _threads.append(Thread(target=load, name="preload"))
    _threads[-1].start()


def is_preloading() -> bool:
    """Whether a preloading thread is running. Python waits for such threads before the process exits."""
    return any(thread.is_alive() for thread in _threads)
