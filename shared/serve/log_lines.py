"""Log messages as JSON, one per line, for log collectors."""

from __future__ import annotations

import json
import logging

from shared.utc_time import iso_utc


class JsonLines(logging.Formatter):
    """Formats ``time`` (UTC), ``level``, ``message``, and ``error`` with the traceback if there is one.

    ``worker`` is the process id of the worker that logs; None in the server's own process.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        timestamp = iso_utc(record.created)
        line = {"time": timestamp, "level": record.levelname, **self._worker, "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
