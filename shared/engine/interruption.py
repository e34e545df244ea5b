"""SIGTERM, SIGUSR1 and Ctrl-C while a run trains: a checkpoint first, then the end."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from shared.comms.group import Group
from shared.recipe import Limits

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SAME_S = 1.0
"""Within how many seconds a second signal is the first once more."""


class Interruption:
    """Within it the first SIGTERM, SIGUSR1 or Ctrl-C is noted, as ``signal``; another later ends the process as usual.

    One that comes within a second of the first is the same once more: a terminal and ``torchrun`` both pass a Ctrl-C
    on. Signals reach the main thread alone; elsewhere nothing changes.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._noted = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._noted = number, time.monotonic()
        elif time.monotonic() - self._noted >= _SAME_S:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}


class StopWatch:
    """Whether a run is to stop, the same answer on every process, whatever their clocks and signals say.

    One process looks after every step. Several look on logging steps and about once a second, for that takes a
    collective call.
    """

    def __init__(self, limits: Limits, group: Group, interruption: Interruption) -> None:
        self._limits, self._group, self._interruption = limits, group, interruption
        self._next, self._last = 0, (0, 0.0)

    def look(self, step: int, seconds: float, *, logging: bool) -> tuple[bool, int]:
        """After ``step`` steps in ``seconds``: whether the minutes are over (on logging steps), and the signal or 0."""
        over = self._limits.minutes is not None and seconds > 60 * self._limits.minutes
        if self._group.world == 1:
            return logging and over, self._interruption.signal
        if not logging and step < self._next:
            return False, 0
        pace = (seconds - self._last[1]) / max(step - self._last[0], 1)
        late, number, pace = self._group.max(over, self._interruption.signal, pace)
        self._next, self._last = step + max(1, int(1 / max(pace, 1e-9))), (step, seconds)
        return logging and bool(late), int(number)


def exit_by_signal(number: int) -> NoReturn:
    """Ends as the signal asks: ``KeyboardInterrupt``, or exit code 128 + N, by which schedulers see a signal N.

    That is 143 for SIGTERM, and 138 for SIGUSR1, which Slurm's users ask for before a time limit.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
