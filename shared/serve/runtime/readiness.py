"""Whether the server can answer: models loaded in the background, or checked without loading."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from shared.errors import InvalidInputError
from shared.serve.runtime.workers import LoadOnce, Workers

log = logging.getLogger("trivium.serve")
_CHECK_AGAIN_S = 30.0


class Readiness:
    """Loads every model on a thread where ``warm``, once started; and says whether all can answer.

    A warm server is ready when all are loaded. Another is ready when none failed to load and all could be loaded. That
    is found out once, a fault again after half a minute, so that asking costs nothing.
    """

    def __init__(self, models: Sequence[LoadOnce[Any]], warm: bool) -> None:
        self._models, self._warm = models, warm
        self._stopped = threading.Event()
        self._checking = Workers("check", 1)
        self._checked: dict[int, tuple[bool, float]] = {}

    def start(self) -> None:
        """Begins to load, where that is wanted."""
        if self._warm:
            threading.Thread(target=self._load_all, name="warming", daemon=True).start()

    def stop(self) -> None:
        """Begins nothing more."""
        self._stopped.set()
        self._checking.close()

    async def ready(self) -> bool:
        """Whether all can answer."""
        if self._warm:
            return all(model.value is not None for model in self._models)
        if any(model.failure is not None for model in self._models):
            return False
        if not all(self._known(number) for number in range(len(self._models))):
            await self._checking.run(self._check_unknown)
        return all(self._usable(number) for number in range(len(self._models)))

    def _usable(self, number: int) -> bool:
        return self._models[number].value is not None or self._checked[number][0]

    def _known(self, number: int) -> bool:
        until = self._checked.get(number, (False, -math.inf))[1]
        return self._models[number].value is not None or until > time.monotonic()

    def _check_unknown(self) -> None:
        for number, model in enumerate(self._models):
            if not self._known(number):
                usable = _succeeds(model.what, model.check)
                self._checked[number] = usable, math.inf if usable else time.monotonic() + _CHECK_AGAIN_S

    def _load_all(self) -> None:
        for model in self._models:
            if self._stopped.is_set():
                return
            _succeeds(model.what, model.load)


def _succeeds(what: str, attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except InvalidInputError as refusal:
        log.warning("%s cannot answer: %s", what, refusal)
    except Exception:
        log.exception("%s cannot answer", what)
    else:
        return True
    return False
