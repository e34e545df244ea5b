"""Exponential backoff between retries, with a separate pause for each key."""

from __future__ import annotations

import time
from collections.abc import Container


class Backoff:
    """Pauses by key: ``first_s`` seconds after the first failure, then doubled each time, up to ``max_pause_s``."""

    def __init__(self, first_s: float, max_pause_s: float) -> None:
        self._first_s, self._max_pause_s = first_s, max_pause_s
        self._last_s: dict[str, float] = {}
        self.until: dict[str, float] = {}
        """When the pause of each key ends, by the monotonic clock in seconds."""

    def failed(self, key: str) -> float:
        """Starts the next pause of the key and returns its length in seconds."""
        pause_s = min(self._max_pause_s, 2 * self._last_s.get(key, self._first_s / 2))
        self._last_s[key], self.until[key] = pause_s, time.monotonic() + pause_s
        return pause_s

    def forget_all_except(self, keys: Container[str]) -> None:
        """Forgets all keys except those in ``keys``, so that they are retried at once: their common fault is over."""
        for key in [key for key in self.until if key not in keys]:
            self.forget(key)

    def forget(self, key: str) -> None:
        """Forgets a key after its operation succeeded or was given up."""
        self._last_s.pop(key, None)
        self.until.pop(key, None)
