"""Answers that a full disk could not keep: held in memory for a while, so that who asked can still read them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from shared.store.records import Bytes, Case, Outputs

_MAX_BYTES = 64_000_000


class UnkeptCases:
    """The newest cases that could not be kept, of at most 64 MB together and at least one."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[Case, dict[str, bytes], Outputs]] = OrderedDict()
        self._lock = threading.Lock()

    def hold(self, case: Case, outputs: Outputs, contents: Mapping[str, Bytes]) -> None:
        """Holds a case: its files by name, and what others are made from."""
        made = {name: bytes(content) for name, content in {**outputs.sources, **contents}.items()}
        with self._lock:
            self._held[case.id] = case, made, outputs
            while len(self._held) > 1 and sum(one.bytes for one, *_ in self._held.values()) > _MAX_BYTES:
                self._held.popitem(last=False)

    def get(self, case_id: str) -> Case | None:
        """The case, while it is held."""
        with self._lock:
            return self._held[case_id][0] if case_id in self._held else None

    def outputs(self, case_id: str) -> Outputs | None:
        """All that was to be kept of the case, while it is held."""
        with self._lock:
            return self._held[case_id][2] if case_id in self._held else None

    def content(self, case_id: str, name: str) -> bytes | None:
        """A file of the case, while it is held."""
        with self._lock:
            case, made, _ = self._held.get(case_id, (None, {}, None))
            return None if case is None else made.get(name)

    def sources(self, case_id: str, name: str) -> dict[str, Path | bytes] | None:
        """What a file of the case is made from, while it is held; None where it cannot be made."""
        with self._lock:
            _, made, outputs = self._held.get(case_id, (None, {}, None))
            if outputs is None or name not in outputs.later:
                return None
            return {one: made[one] for one in outputs.later[name]}

    def remove(self, case_id: str) -> None:
        """Drops a case; one that is not held is no error."""
        with self._lock:
            self._held.pop(case_id, None)
