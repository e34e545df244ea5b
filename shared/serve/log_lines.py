"""Messages of the log as JSON, one a line, for those who collect it by machine."""

from __future__ import annotations

import json
import logging

from shared.utc_time import iso_utc


class JsonLines(logging.Formatter):
    """``time`` (UTC), ``level``, ``message``, and ``error`` with the traceback where there is one."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        moment = iso_utc(record.created)
        line = {"time": moment, "level": record.levelname, **self._worker, "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
