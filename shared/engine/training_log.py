"""What a run says while it goes on: a progress bar in a terminal, plain lines where the output is redirected."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingLog:
    """Speaks on the leader, unless ``quiet``."""

    def __init__(self, title: str, *, enabled: bool) -> None:
        self._title, self._enabled, self._total = title, enabled, 0
        console = Console()
        self._bar: Progress | None = None
        if enabled and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[loss]}"), console=console)

    def begin(self, total: int, done: int) -> None:
        """The run has ``total`` steps, of which ``done`` are done."""
        self._total = total
        if self._bar is not None:
            self._bar.add_task(self._title, total=total, completed=done, loss="")

    def step(self, done: int, loss: float, learning_rate: float, steps_per_second: float) -> None:
        """A logging step."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, loss=f"loss {loss:.4f}")
        else:
            self.say(
                f"step {done}/{self._total}: loss {loss:.4f}, learning rate {learning_rate:.3g}, "
                f"{steps_per_second:.3g} steps/s"
            )

    def say(self, text: str) -> None:
        """A line."""
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
