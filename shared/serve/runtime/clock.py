"""Whether the machine's clock can tell how old a case is."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("trivium.serve")
_MAX_NS = 365 * 86_400 * 10**9
"""No machine sleeps for so long; a wrong year typed in, or a time server's fault, is more."""


class AgeLimit:
    """How old the cases of an application called ``app`` may be, while the clock has not been set forward by a year."""

    def __init__(self, app: str, days: float | None) -> None:
        self._app, self._days = app, days
        self._began_ns = time.time_ns() - time.monotonic_ns()
        self._said = False

    def days(self) -> float | None:
        """After how many days cases are deleted; None for never, or while the clock is not to be believed."""
        wrong = time.time_ns() - time.monotonic_ns() - self._began_ns > _MAX_NS
        if wrong and self._days is not None and not self._said:
            log.error(
                "the machine's clock was set forward by over a year: no case of %s is deleted for its age "
                "(TRIVIUM_KEEP_DAYS) until it is set right, or until the server is started again, if it is right",
                self._app,
            )
        self._said = wrong
        return None if wrong else self._days
