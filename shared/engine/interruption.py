"""Handles SIGTERM, SIGUSR1 and Ctrl-C during training: the run saves a checkpoint and then exits."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from shared.comms.group import Group
from shared.recipe import Limits

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_REPEAT_WINDOW_S = 1.0
"""A second signal within this many seconds counts as a repetition of the first."""


class InterruptHandler:
    """While active, records the first SIGTERM, SIGUSR1 or Ctrl-C in ``signal``; later ones go to the previous handler.

    A signal within one second of the first counts as a repetition, because a terminal and ``torchrun`` both forward a
    Ctrl-C. Python handles signals only in the main thread; in another thread this class does nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._received_at = 0.0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._received_at = number, time.monotonic()
        elif time.monotonic() - self._received_at >= _REPEAT_WINDOW_S:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous_handlers = {}


class StopCheck:
    """Decides whether a run must stop, with the same answer on every process, whatever their clocks and signals.

    A single process polls after every step. Several processes poll on logging steps and about once a second, because
    it takes a collective call.
    """

    def __init__(self, limits: Limits, group: Group, interrupt_handler: InterruptHandler) -> None:
        self._limits, self._group, self._interrupt_handler = limits, group, interrupt_handler
        self._next_step, self._last_poll = 0, (0, 0.0)

    def poll(self, step: int, seconds: float, *, logging: bool) -> tuple[bool, int]:
        """Called after ``step`` steps that took ``seconds``. Returns whether the time limit is over (only on logging
        steps) and the number of the received signal, or 0."""
        out_of_time = self._limits.minutes is not None and seconds > 60 * self._limits.minutes
        if self._group.world == 1:
            return logging and out_of_time, self._interrupt_handler.signal
        if not logging and step < self._next_step:
            return False, 0
        seconds_per_step = (seconds - self._last_poll[1]) / max(step - self._last_poll[0], 1)
        any_out_of_time, number, seconds_per_step = self._group.max(
            out_of_time, self._interrupt_handler.signal, seconds_per_step
        )
        self._next_step, self._last_poll = step + max(1, int(1 / max(seconds_per_step, 1e-9))), (step, seconds)
        return logging and bool(any_out_of_time), int(number)


def exit_by_signal(number: int) -> NoReturn:
    """Exits as expected after the signal: ``KeyboardInterrupt`` for Ctrl-C, else exit code 128 + signal number.

    Schedulers expect these codes: 143 for SIGTERM, and 138 for SIGUSR1, which Slurm users request before a time limit.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
