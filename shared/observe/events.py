"""What happened in a run: one JSON line an event, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Events:
    """Appends to ``events.jsonl`` and to TensorBoard files in a run's directory; silent where ``path`` is None."""

    def __init__(self, path: Path | None) -> None:
        self._file = None
        self._board: Any = None
        if path is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            path.mkdir(parents=True, exist_ok=True)
            self._file = (path / "events.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(path))

    def write(self, event: str, step: int, **values: Any) -> None:
        """Records ``event`` after ``step`` steps; numbers also become TensorBoard scalars ``event/name``."""
        if self._file is None:
            return
        line = {"time": time.time_ns(), "event": event, "step": step, **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._board.add_scalar(f"{event}/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()
