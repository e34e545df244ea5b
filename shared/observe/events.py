"""The events of a run: one JSON line per event, and their numbers as TensorBoard scalars."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from shared.atomic_files import write_whole

_TAIL_BYTES = 2**16
OnEvent: TypeAlias = Callable[[dict[str, Any]], object]


class Events:
    """Appends to ``events.jsonl`` and to TensorBoard files in a run's directory; does nothing if ``path`` is None.

    ``on_event`` is called with each event after it was written.

    A run that resumes after ``step`` steps drops the events of later steps, which it will repeat. If an error ends the
    run, its last event is ``end`` with the reason ``failed``.
    """

    def __init__(self, path: Path | None, step: int = 0, on_event: OnEvent | None = None) -> None:
        self._file = None
        self._board: Any = None
        self._step = step
        self._on_event = on_event
        if path is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            file = path / "events.jsonl"
            if file.exists():
                write_whole(
                    file, "".join(json.dumps(event) + "\n" for event in read_events(file) if event["step"] <= step)
                )
            self._file = file.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(path), purge_step=step + 1)

    def write(self, event: str, step: int, **values: Any) -> None:
        """Records ``event`` after ``step`` steps; numbers are also written as TensorBoard scalars ``event/name``."""
        if self._file is None:
            return
        self._step = step
        line = without_nan({"time": time.time_ns(), "event": event, "step": step, **values})
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._board.add_scalar(f"{event}/{name}", value, step)
        if self._on_event is not None:
            self._on_event(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            if error is not None:
                self._write_end(error)
            self._file.close()
            self._board.close()

    def _write_end(self, error: BaseException) -> None:
        with suppress(Exception):  # on a full disk, or if on_event fails, the error itself must be reported
            if isinstance(error, Exception):
                self.write("end", self._step, reason="failed", why=f"{type(error).__name__}: {error}")
            else:
                self.write("end", self._step, reason="interrupted")


def read_events(file: Path) -> list[dict[str, Any]]:
    """The events in an ``events.jsonl``, without lines that are truncated or damaged."""
    return _parsed(file.read_bytes())


def read_last_events(file: Path) -> list[dict[str, Any]]:
    """The last few hundred events in an ``events.jsonl``; an empty list if there is no file."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return _parsed(stream.read())
    except OSError:
        return []


def _parsed(lines: bytes) -> list[dict[str, Any]]:
    events = []
    for line in lines.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str) and type(event.get("step")) is int:
            events.append(event)
    return events


def without_nan(value: Any) -> Any:
    """The value with None in place of numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
