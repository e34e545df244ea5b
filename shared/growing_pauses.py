"""When what failed is tried again: after pauses that grow, each thing after its own."""

from __future__ import annotations

import time

_FIRST_S, _LONGEST_S = 5.0, 300.0


class GrowingPauses:
    """Pauses by key: 5 seconds, then twice as long each time, up to five minutes."""

    def __init__(self, first_s: float = _FIRST_S, longest_s: float = _LONGEST_S) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._last_s: dict[str, float] = {}
        self.until: dict[str, float] = {}
        """When each key's pause ends, by the monotonic clock."""

    def grow(self, key: str) -> float:
        """Begins the key's next pause; how many seconds it takes."""
        pause_s = min(self._longest_s, 2 * self._last_s.get(key, self._first_s / 2))
        self._last_s[key], self.until[key] = pause_s, time.monotonic() + pause_s
        return pause_s

    def forget(self, key: str) -> None:
        """What the key stands for has succeeded, or is given up."""
        self._last_s.pop(key, None)
        self.until.pop(key, None)
