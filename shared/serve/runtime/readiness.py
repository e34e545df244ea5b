"""The server's readiness: loads the models in the background, or checks them without loading."""

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
_RECHECK_INTERVAL_S = 30.0


class Readiness:
    """Says whether every model can answer. If ``warm``, ``start`` loads them one after the other.

    A warm server is ready when all models are loaded. Otherwise it is ready if no load has failed and every model could
    be loaded. The result of that check is cached, a failure for half a minute, so that a probe is cheap. Models that an
    operator unloaded are ignored.
    """

    def __init__(self, models: Sequence[LoadOnce[Any]], warm: bool) -> None:
        self._models, self._warm = models, warm
        self._load_task: asyncio.Task[None] | None = None
        self._check_thread = Threads("check", 1)
        self._checked: dict[int, tuple[bool, float]] = {}

    def start(self) -> None:
        """Starts loading the models if ``warm``."""
        if self._warm:
            self._load_task = asyncio.create_task(self._load_all())

    def stop(self) -> None:
        """Stops loading and checking."""
        if self._load_task is not None:
            self._load_task.cancel()
        self._check_thread.close()

    async def fault(self) -> str | None:
        """A sentence about the first model that cannot answer now; None if all can."""
        for model in self._models:
            if model.unloaded is not None:
                continue
            if model.value is not None and not model.usable:
                return f"{model.title}: its workers are being replaced"
            if model.value is None and model.failure is not None:
                return f"{model.title} cannot answer: {model.failure}"
            if model.value is None and self._warm:
                return f"{model.title} is being loaded"
        if not all(self._is_known(index) for index in range(len(self._models))):
            await self._check_thread.run(self._check_unknown_models)
        unusable = [model.title for index, model in enumerate(self._models) if not self._is_usable(index)]
        return f"{unusable[0]} cannot be loaded; see the log for the reason" if unusable else None

    def _is_usable(self, index: int) -> bool:
        model = self._models[index]
        return model.value is not None or model.unloaded is not None or self._checked[index][0]

    def _is_known(self, index: int) -> bool:
        valid_until = self._checked.get(index, (False, -math.inf))[1]
        return self._models[index].value is not None or valid_until > time.monotonic()

    def _check_unknown_models(self) -> None:
        for index, model in enumerate(self._models):
            if not self._is_known(index):
                usable = _can_be_loaded(model)
                self._checked[index] = usable, math.inf if usable else time.monotonic() + _RECHECK_INTERVAL_S

    async def _load_all(self) -> None:
        for model in [model for model in self._models if model.unloaded is None]:
            with _log_failure(model.title):
                await model.get()


def _can_be_loaded(model: LoadOnce[Any]) -> bool:
    with _log_failure(model.title):
        model.check()
        return True
    return False


@contextmanager
def _log_failure(title: str) -> Iterator[None]:
    try:
        yield
    except InvalidInputError as error:
        log.warning("%s cannot answer: %s", title, error)
    except Exception:
        log.exception("%s cannot answer", title)
