"""Whether the server can answer: predictors and networks loaded in the background, or looked at without loading."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from shared.errors import InvalidInputError
from shared.serve.admission import Workers

log = logging.getLogger("trivium.serve")
_LOOK_AGAIN_S = 30.0


class Member(Protocol):
    """A predictor or a network."""

    failure: str | None

    @property
    def what(self) -> str: ...

    @property
    def loaded(self) -> bool: ...

    def load(self) -> None: ...

    def look(self) -> None: ...


class Readiness:
    """Loads every member on a thread where ``warm``, once started; and says whether all can answer.

    A warm server is ready when all are loaded. Another is ready when none failed to load and the artifacts of all can
    be opened. That is found out once, a fault again after half a minute, so that asking costs nothing.
    """

    def __init__(self, members: Sequence[Member], warm: bool) -> None:
        self._members, self._warm = members, warm
        self._stopped = threading.Event()
        self._looking = Workers("look", 1)
        self._looked: dict[int, tuple[bool, float]] = {}

    def start(self) -> None:
        """Begins to load, where that is wanted."""
        if self._warm:
            threading.Thread(target=self._load_all, name="warming", daemon=True).start()

    def stop(self) -> None:
        """Begins nothing more."""
        self._stopped.set()
        self._looking.close()

    async def ready(self) -> bool:
        """Whether all can answer."""
        if self._warm:
            return all(member.loaded for member in self._members)
        if any(member.failure is not None for member in self._members):
            return False
        if not all(self._known(number) for number in range(len(self._members))):
            await self._looking.run(self._look)
        return all(self._usable(number) for number in range(len(self._members)))

    def _usable(self, number: int) -> bool:
        return self._members[number].loaded or self._looked[number][0]

    def _known(self, number: int) -> bool:
        return self._members[number].loaded or self._looked.get(number, (False, -math.inf))[1] > time.monotonic()

    def _look(self) -> None:
        for number, member in enumerate(self._members):
            if not self._known(number):
                usable = self._tried(member.what, member.look)
                self._looked[number] = usable, math.inf if usable else time.monotonic() + _LOOK_AGAIN_S

    def _load_all(self) -> None:
        for member in self._members:
            if self._stopped.is_set():
                return
            self._tried(member.what, member.load)

    def _tried(self, what: str, attempt: Callable[[], None]) -> bool:
        try:
            attempt()
        except InvalidInputError as refusal:
            log.warning("%s cannot answer: %s", what, refusal)
        except Exception:
            log.exception("%s cannot answer", what)
        else:
            return True
        return False
