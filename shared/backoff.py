"""Exponential backoff: when what failed is tried again, each thing after its own pause."""

from __future__ import annotations

import time
from collections.abc import Container


class Backoff:
    """Pauses by key: ``first_s`` seconds, then twice as long each time, up to ``longest_s``."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._last_s: dict[str, float] = {}
        self.until: dict[str, float] = {}
        """When each key's pause ends, by the monotonic clock."""

    def failed(self, key: str) -> float:
        """The key's next pause begins; how many seconds it takes."""
        pause_s = min(self._longest_s, 2 * self._last_s.get(key, self._first_s / 2))
        self._last_s[key], self.until[key] = pause_s, time.monotonic() + pause_s
        return pause_s

    def end_pauses(self, but: Container[str]) -> None:
        """What kept all of them waiting is over: all but these keys are tried again at once, as at first."""
        for key in [key for key in self.until if key not in but]:
            self.forget(key)

    def forget(self, key: str) -> None:
        """What the key stands for has succeeded, or is given up."""
        self._last_s.pop(key, None)
        self.until.pop(key, None)
