"""A fair queue: groups of keys take turns, and within a group the oldest entry goes first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Generic, Protocol, TypeVar


class HasGroup(Protocol):
    """An entry that belongs to a group of keys; None stands for keys without a group."""

    @property
    def group(self) -> str | None:
        """The group."""
        ...


Entry = TypeVar("Entry", bound=HasGroup)


class GroupQueue(Generic[Entry]):
    """A queue whose next entry is the oldest of the group that has waited longest for its turn."""

    def __init__(self) -> None:
        self._waiting: dict[str | None, deque[Entry]] = {}
        self._turn_count, self._last_turn = 0, dict[str | None, int]()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Entry]:
        """All waiting entries, one group after the other."""
        return chain.from_iterable(self._waiting.values())

    def count(self, group: str | None) -> int:
        return len(self._waiting.get(group, ()))

    def append(self, entry: Entry) -> None:
        """Adds an entry behind the others of its group."""
        self._waiting.setdefault(entry.group, deque()).append(entry)

    def put_back(self, entry: Entry) -> None:
        """Adds an entry in front of the others of its group."""
        self._waiting.setdefault(entry.group, deque()).appendleft(entry)

    @property
    def first(self) -> Entry:
        """The next entry. Raises ``ValueError`` if the queue is empty."""
        return self._waiting[self._next_group()][0]

    def take_first(self) -> Entry:
        """Removes and returns the next entry. Raises ``ValueError`` if the queue is empty."""
        group = self._next_group()
        entry = self._waiting[group].popleft()
        self._turn_count += 1
        self._last_turn[group] = self._turn_count
        self._remove_if_empty(group)
        return entry

    def remove(self, entry: Entry) -> bool:
        """Removes an entry; returns whether it was in the queue."""
        waiting = self._waiting.get(entry.group, deque())
        if entry not in waiting:
            return False
        waiting.remove(entry)
        self._remove_if_empty(entry.group)
        return True

    def clear(self) -> None:
        self._waiting.clear()

    def _next_group(self) -> str | None:
        return min(self._waiting, key=lambda group: self._last_turn.get(group, 0))

    def _remove_if_empty(self, group: str | None) -> None:
        if not self._waiting[group]:
            del self._waiting[group]
