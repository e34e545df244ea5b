"""Answers that did not fit on the disk, held in memory for a while so that the client can still read them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from shared.store.records import Bytes, Case, Outputs

_MAX_BYTES = 64_000_000


class UnkeptCases:
    """The newest cases that could not be kept: at most 64 MB in total, but at least one case."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[Case, dict[str, bytes], Outputs]] = OrderedDict()
        self._lock = threading.Lock()

    def hold(self, case: Case, outputs: Outputs, contents: Mapping[str, Bytes]) -> None:
        """Holds a case with its file contents by name, and the sources of files that are generated on request."""
        copies = {name: bytes(content) for name, content in {**outputs.sources, **contents}.items()}
        with self._lock:
            self._held[case.id] = case, copies, outputs
            while len(self._held) > 1 and sum(held.bytes for held, *_ in self._held.values()) > _MAX_BYTES:
                self._held.popitem(last=False)

    def get(self, case_id: str) -> Case | None:
        """The case; None if it is not held."""
        with self._lock:
            return self._held[case_id][0] if case_id in self._held else None

    def outputs(self, case_id: str) -> Outputs | None:
        """The outputs that were to be kept with the case; None if it is not held."""
        with self._lock:
            return self._held[case_id][2] if case_id in self._held else None

    def content(self, case_id: str, name: str) -> bytes | None:
        """The content of a file of the case; None if the case is not held or has no such file."""
        with self._lock:
            case, copies, _ = self._held.get(case_id, (None, {}, None))
            return None if case is None else copies.get(name)

    def sources(self, case_id: str, name: str) -> dict[str, Path | bytes] | None:
        """The sources of a file that is generated on request; None if the case is not held or has no such file."""
        with self._lock:
            _, copies, outputs = self._held.get(case_id, (None, {}, None))
            if outputs is None or name not in outputs.later:
                return None
            return {source: copies[source] for source in outputs.later[name]}

    def remove(self, case_id: str) -> None:
        """Drops a case, if it is held."""
        with self._lock:
            self._held.pop(case_id, None)
