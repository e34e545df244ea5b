"""A pool of reusable memory for large requests and their answers."""

from __future__ import annotations

from shared.serve.worker.messages import ALIGNMENT, Memory, SharedBytes

_GRANULARITY = 1 << 20


class SharedMemoryPool:
    """Allocates memory, and caches at most ``max_cached_bytes`` bytes of returned memory for later requests.

    Fresh memory would cost more than the work on it, because the kernel fills each page with zeros on its first use.
    """

    def __init__(self, max_cached_bytes: int) -> None:
        self._max_cached_bytes = max_cached_bytes
        self._cached: list[Memory] = []

    def take(self, size: int, header: int, room: int) -> SharedBytes:
        """Memory for a body of ``size`` bytes followed by ``room`` bytes for the answer.

        The first ``header`` bytes of the body are not tensors: what follows them is aligned.
        """
        start = -header % ALIGNMENT
        return SharedBytes(self._allocate(start + size + ALIGNMENT + room), start, size, self._put_back)

    def _allocate(self, size: int) -> Memory:
        for index in range(len(self._cached) - 1, -1, -1):  # the most recently used may be in the processor's cache
            if size <= len(self._cached[index]) <= 2 * size + _GRANULARITY:
                return self._cached.pop(index)
        return Memory(-(-size // _GRANULARITY) * _GRANULARITY)

    def _put_back(self, memory: Memory) -> None:
        self._cached.append(memory)
        while self._cached and sum(map(len, self._cached)) > self._max_cached_bytes:
            del self._cached[0]

    def close(self) -> None:
        """Frees the cached memory, and caches no more."""
        self._max_cached_bytes = 0
        self._cached.clear()
