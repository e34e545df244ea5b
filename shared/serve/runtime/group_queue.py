"""What waits for a worker: groups of keys take turns, and within a group the oldest goes first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Generic, Protocol, TypeVar


class OfGroup(Protocol):
    """What a group of keys asks for; None is whoever has none."""

    @property
    def group(self) -> str | None:
        """The group."""
        ...


Entry = TypeVar("Entry", bound=OfGroup)


class GroupQueue(Generic[Entry]):
    """A queue in which the group goes first that has been without a turn for longest."""

    def __init__(self) -> None:
        self._waiting: dict[str | None, deque[Entry]] = {}
        self._turns, self._last_turn = 0, dict[str | None, int]()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Entry]:
        """All that waits, a group after the other."""
        return chain.from_iterable(self._waiting.values())

    def number(self, group: str | None) -> int:
        """How many of a group wait."""
        return len(self._waiting.get(group, ()))

    def append(self, entry: Entry) -> None:
        """Puts it behind the others of its group."""
        self._waiting.setdefault(entry.group, deque()).append(entry)

    def put_back(self, entry: Entry) -> None:
        """Puts it before the others of its group."""
        self._waiting.setdefault(entry.group, deque()).appendleft(entry)

    @property
    def first(self) -> Entry:
        """What goes next. Raises ``ValueError`` where nothing waits."""
        return self._waiting[self._next()][0]

    def take_first(self) -> Entry:
        """Takes what goes next out. Raises ``ValueError`` where nothing waits."""
        group = self._next()
        entry = self._waiting[group].popleft()
        self._turns += 1
        self._last_turn[group] = self._turns
        self._forget_if_empty(group)
        return entry

    def remove(self, entry: Entry) -> bool:
        """Takes an entry out; False where it does not wait."""
        waiting = self._waiting.get(entry.group, deque())
        if entry not in waiting:
            return False
        waiting.remove(entry)
        self._forget_if_empty(entry.group)
        return True

    def clear(self) -> None:
        """Takes all out."""
        self._waiting.clear()

    def _next(self) -> str | None:
        return min(self._waiting, key=lambda group: self._last_turn.get(group, 0))

    def _forget_if_empty(self, group: str | None) -> None:
        if not self._waiting[group]:
            del self._waiting[group]
