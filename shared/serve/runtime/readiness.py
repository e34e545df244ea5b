"""Whether the server can answer: models loaded in the background, or checked without loading."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shared.errors import InvalidInputError
from shared.serve.runtime.loading import LoadOnce
from shared.serve.runtime.threads import Threads

log = logging.getLogger("trivium.serve")
_CHECK_AGAIN_S = 30.0


class Readiness:
    """Loads every model in turn where ``warm``, once started; and says whether all can answer.

    A warm server is ready when all are loaded. Another is ready when none failed to load and all could be loaded. That
    is found out once, a fault again after half a minute, so that asking costs nothing. What an operator unloaded is not
    missed.
    """

    def __init__(self, models: Sequence[LoadOnce[Any]], warm: bool) -> None:
        self._models, self._warm = models, warm
        self._warming: asyncio.Task[None] | None = None
        self._checking = Threads("check", 1)
        self._checked: dict[int, tuple[bool, float]] = {}

    def start(self) -> None:
        """Begins to load, where that is wanted."""
        if self._warm:
            self._warming = asyncio.create_task(self._load_all())

    def stop(self) -> None:
        """Begins nothing more."""
        if self._warming is not None:
            self._warming.cancel()
        self._checking.close()

    async def fault(self) -> str | None:
        """Which of them cannot answer at the moment, as a sentence; None where all can."""
        for model in self._models:
            if model.unloaded is not None:
                continue
            if model.value is not None and not model.usable:
                return f"{model.what}: its workers are being replaced"
            if model.value is None and model.failure is not None:
                return f"{model.what} cannot answer: {model.failure}"
            if model.value is None and self._warm:
                return f"{model.what} is being loaded"
        if not all(self._known(number) for number in range(len(self._models))):
            await self._checking.run(self._check_unknown)
        unusable = [model.what for number, model in enumerate(self._models) if not self._usable(number)]
        return f"{unusable[0]} cannot be loaded; the log says why" if unusable else None

    def _usable(self, number: int) -> bool:
        model = self._models[number]
        return model.value is not None or model.unloaded is not None or self._checked[number][0]

    def _known(self, number: int) -> bool:
        until = self._checked.get(number, (False, -math.inf))[1]
        return self._models[number].value is not None or until > time.monotonic()

    def _check_unknown(self) -> None:
        for number, model in enumerate(self._models):
            if not self._known(number):
                usable = _can_be_loaded(model)
                self._checked[number] = usable, math.inf if usable else time.monotonic() + _CHECK_AGAIN_S

    async def _load_all(self) -> None:
        for model in [model for model in self._models if model.unloaded is None]:
            with _faults_logged(model.what):
                await model.get()


def _can_be_loaded(model: LoadOnce[Any]) -> bool:
    with _faults_logged(model.what):
        model.check()
        return True
    return False


@contextmanager
def _faults_logged(what: str) -> Iterator[None]:
    try:
        yield
    except InvalidInputError as refusal:
        log.warning("%s cannot answer: %s", what, refusal)
    except Exception:
        log.exception("%s cannot answer", what)
