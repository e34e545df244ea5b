"""Answers that a full disk could not keep: held in memory for a while, so that who asked can still read them."""

from __future__ import annotations

import threading
from collections import OrderedDict

from shared.store.records import Bytes, Case, Outputs

_MOST_BYTES = 64_000_000


class UnkeptCases:
    """The newest cases that could not be kept, of at most 64 MB together and at least one."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[Case, dict[str, bytes]]] = OrderedDict()
        self._lock = threading.Lock()

    def hold(self, case: Case, outputs: Outputs, result: str, picture: str) -> None:
        """Holds a case; ``result`` and ``picture`` are the names of those two files."""
        named: dict[str, Bytes] = {result: outputs.result, picture: outputs.picture, **outputs.files}
        with self._lock:
            self._held[case.id] = case, {name: bytes(content) for name, content in named.items()}
            while len(self._held) > 1 and sum(one.bytes for one, _ in self._held.values()) > _MOST_BYTES:
                self._held.popitem(last=False)

    def get(self, case_id: str) -> Case | None:
        """The case, while it is held."""
        with self._lock:
            return self._held[case_id][0] if case_id in self._held else None

    def content(self, case_id: str, name: str) -> bytes | None:
        """A file of the case, while it is held."""
        with self._lock:
            return self._held[case_id][1].get(name) if case_id in self._held else None

    def remove(self, case_id: str) -> None:
        """Drops a case; one that is not held is no error."""
        with self._lock:
            self._held.pop(case_id, None)
