"""Models that are loaded while the input is read: see ``predictor.answer``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.deploy.programs.program import Program

_threads: list[Thread] = []


def read_ahead(needed: Callable[[], Sequence[Program]]) -> None:
    """Loads the programs that are ``needed``, one after the other, in a thread that nobody has to wait for.

    Who calls one of them meanwhile waits for that one. ``needed`` is called in the thread.
    """

    def load() -> None:
        # What fails here fails again, and is told, where the input is read and the program is called.
        with suppress(Exception):
            for program in needed():
                program.read_ahead()

    _threads[:] = [thread for thread in _threads if thread.is_alive()]
    _threads.append(Thread(target=load, name="read-ahead"))
    _threads[-1].start()


def is_reading_ahead() -> bool:
    """Whether such a thread is at work. Python waits for it before the process ends."""
    return any(thread.is_alive() for thread in _threads)
