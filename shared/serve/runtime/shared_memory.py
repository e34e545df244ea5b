"""Memory for large requests and their answers, used again and again."""

from __future__ import annotations

from shared.serve.worker.messages import ALIGNMENT, Memory, SharedBytes

_GRAIN = 1 << 20


class SharedMemory:
    """Gives out memory, and keeps what comes back for the next, at most ``most_kept`` bytes.

    Fresh memory costs more than what is done with it: the kernel fills each page with zeros when it is first used.
    """

    def __init__(self, most_kept: int) -> None:
        self._most_kept = most_kept
        self._kept: list[Memory] = []

    def take(self, size: int, header: int, room: int) -> SharedBytes:
        """Memory for a body of so many bytes, of which the first ``header`` are no tensors, and room for an answer."""
        start = -header % ALIGNMENT
        return SharedBytes(self._memory(start + size + ALIGNMENT + room), start, size, self._give_back)

    def _memory(self, size: int) -> Memory:
        for number in range(len(self._kept) - 1, -1, -1):  # the last that was used may be in the processor's cache
            if size <= len(self._kept[number]) <= 2 * size + _GRAIN:
                return self._kept.pop(number)
        return Memory(-(-size // _GRAIN) * _GRAIN)

    def _give_back(self, memory: Memory) -> None:
        self._kept.append(memory)
        while self._kept and sum(map(len, self._kept)) > self._most_kept:
            del self._kept[0]

    def close(self) -> None:
        """Keeps nothing more."""
        self._most_kept = 0
        self._kept.clear()
