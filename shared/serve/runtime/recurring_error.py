"""Logs an error that recurs at every attempt only once, so that an outage of hours does not fill the log."""

from __future__ import annotations

import logging

from shared.store.database import is_database_gone, reason_of
from shared.store.disk import is_disk_full


class RecurringError:
    """What a server attempts again every few seconds: logs ``failed`` when it fails, and ``recovered`` afterwards.

    The same error is logged once until it ends. An error that is not the database's or a full disk's is logged with its
    traceback.
    """

    def __init__(self, log: logging.Logger, failed: str, recovered: str) -> None:
        self._log, self._failed, self._recovered = log, failed, recovered
        self._logged: str | None = None

    def occurred(self, error: Exception) -> None:
        """Logs an error, unless it is the one that was logged last."""
        reason = reason_of(error)
        if reason != self._logged:
            self._log.error("%s: %s", self._failed, reason, exc_info=None if is_temporary(error) else error)
        self._logged = reason

    def ended(self) -> None:
        """Logs the end of the error if there was one: an attempt succeeded."""
        if self._logged is not None:
            self._log.info("%s", self._recovered)
        self._logged = None


def is_temporary(error: BaseException) -> bool:
    """Whether a later attempt to use the store may succeed: its database cannot be reached, or its disk is full."""
    return is_database_gone(error) or is_disk_full(error)
