"""Limits the age of cases, unless the machine's clock is obviously wrong."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("trivium.serve")
_MAX_CLOCK_JUMP_NS = 365 * 86_400 * 10**9
"""No machine sleeps for a year. A larger jump is an error, such as a mistyped year or a faulty time server."""


class AgeLimit:
    """The maximum age of the cases of the application ``app``, suspended after the clock jumps ahead by over a year."""

    def __init__(self, app: str, days: float | None) -> None:
        self._app, self._days = app, days
        self._start_offset_ns = time.time_ns() - time.monotonic_ns()
        self._is_reported = False

    def days(self) -> float | None:
        """The number of days after which cases are deleted; None for never, or while the clock seems to be wrong."""
        has_jumped = time.time_ns() - time.monotonic_ns() - self._start_offset_ns > _MAX_CLOCK_JUMP_NS
        if has_jumped and self._days is not None and not self._is_reported:
            log.error(
                "the machine's clock jumped ahead by over a year: cases of %s are not deleted by age "
                "(TRIVIUM_KEEP_DAYS) until the clock is corrected; if the clock is right, restart the server",
                self._app,
            )
        self._is_reported = has_jumped
        return None if has_jumped else self._days
