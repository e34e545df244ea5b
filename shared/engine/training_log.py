"""The console output of a run: a progress bar in a terminal, plain lines if the output is redirected."""

from __future__ import annotations

import math
import sys
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingLog:
    """Writes to the console if ``enabled``: on the leader, unless ``quiet``."""

    def __init__(self, title: str, *, enabled: bool) -> None:
        self._title, self._enabled = title, enabled
        self._total, self._steps_per_epoch, self._first_step, self._past_seconds = 0, 1, 0, 0.0
        console = Console()
        self._bar: Progress | None = None
        if enabled and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[last]}"), console=console)

    def start(self, total: int, done: int, seconds: float, steps_per_epoch: int) -> None:
        """Called before the first step of this process: ``done`` of ``total`` steps are done and took ``seconds``."""
        self._total, self._steps_per_epoch, self._first_step, self._past_seconds = total, steps_per_epoch, done, seconds
        if self._bar is not None:
            self._bar.add_task(self._title, total=total, completed=done, last="")

    def steps_per_second(self, done: int, seconds: float) -> float:
        """Steps per second since this process started; earlier steps may have run on another machine."""
        return (done - self._first_step) / max(seconds - self._past_seconds, 1e-9)

    def step(self, done: int, loss: float, learning_rate: float, speed: float) -> None:
        """Shows the values of a logging step."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, last=f"loss {loss:.4f}, {speed:.3g} steps/s")
        else:
            epochs = f"epoch {math.ceil(done / self._steps_per_epoch)}/{math.ceil(self._total / self._steps_per_epoch)}"
            left = timedelta(seconds=round((self._total - done) / max(speed, 1e-9)))
            self.info(
                f"step {done}/{self._total}, {epochs}: loss {loss:.4f}, learning rate {learning_rate:.3g}, "
                f"{speed:.3g} steps/s, {left} left"
            )

    def info(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, soft_wrap=True, markup=False, highlight=False)
        elif self._enabled:
            sys.stdout.write(f"{self._title}: {text}\n")
            sys.stdout.flush()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
