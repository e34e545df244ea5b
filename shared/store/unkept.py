"""Answers that did not fit on the disk, held in memory for a while so that the client can still read them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

from shared.store.records import Bytes, Case, Outputs

_MAX_BYTES = 64_000_000


class UnkeptCases:
    """The newest cases that could not be kept: at most 64 MB in total, but at least one case."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[Case, Outputs]] = OrderedDict()
        self._lock = threading.Lock()

    def hold(self, case: Case, outputs: Outputs) -> None:
        """Holds a case with a copy of its outputs, since those of a worker share the memory of its whole reply."""
        copied = replace(
            outputs,
            result=bytes(outputs.result),
            picture=bytes(outputs.picture),
            files=_copies(outputs.files),
            sources=_copies(outputs.sources),
        )
        with self._lock:
            self._held[case.id] = case, copied
            while len(self._held) > 1 and sum(held.bytes for held, _ in self._held.values()) > _MAX_BYTES:
                self._held.popitem(last=False)

    def get(self, case_id: str) -> Case | None:
        """The case; None if it is not held."""
        with self._lock:
            return self._held[case_id][0] if case_id in self._held else None

    def outputs(self, case_id: str) -> Outputs | None:
        """The outputs that were to be kept with the case; None if it is not held."""
        with self._lock:
            return self._held[case_id][1] if case_id in self._held else None

    def remove(self, case_id: str) -> None:
        """Drops a case, if it is held."""
        with self._lock:
            self._held.pop(case_id, None)


def _copies(contents: Mapping[str, Bytes]) -> dict[str, Bytes]:
    return {name: bytes(content) for name, content in contents.items()}
