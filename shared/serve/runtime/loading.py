"""What is loaded once, by the first who asks. Used from the event loop alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shared.errors import InvalidInputError

Loaded = TypeVar("Loaded")


class LoadOnce(Generic[Loaded]):
    """Something that the first who asks has loaded; who asks meanwhile waits for the same.

    ``load`` makes it, ``check`` says without loading whether it could be (both raise ``InvalidInputError`` where it
    cannot; the check is called on a thread), ``close`` ends it, ``usable`` says whether it can do its work now. A load
    that failed is tried again by the next who asks.
    """

    def __init__(
        self,
        what: str,
        *,
        load: Callable[[], Awaitable[Loaded]],
        check: Callable[[], object],
        close: Callable[[Loaded], None],
        usable: Callable[[Loaded], bool] = lambda _: True,
    ) -> None:
        self.what = what
        self.failure: str | None = None
        """Why the last load failed; None once it is loaded."""
        self.unloaded: str | None = None
        """Why it is out of use, where it was unloaded; None otherwise."""
        self._load, self._check, self._close, self._usable = load, check, close, usable
        self._loading: asyncio.Task[Loaded] | None = None
        self._value: Loaded | None = None
        self._closed = False

    @property
    def value(self) -> Loaded | None:
        """What was loaded, or None before."""
        return self._value

    @property
    def usable(self) -> bool:
        """Whether it is loaded and can do its work at the moment."""
        return self._value is not None and self._usable(self._value)

    async def get(self) -> Loaded:
        """What is loaded, once it is. Raises ``InvalidInputError`` (503) where it cannot be.

        When cancelled, the loading goes on: others may wait for it. What was unloaded is not loaded by it, and refused
        with 404, as Triton does: to try again is of no use.
        """
        if self._value is not None:
            return self._value
        if self.unloaded is not None:
            raise InvalidInputError(self.unloaded, status=404)
        if self._loading is None:
            self._loading = asyncio.ensure_future(self._run())
            self._loading.add_done_callback(self._done)
        return await asyncio.shield(self._loading)

    async def load(self) -> Loaded:
        """As ``get``, and loads again what was unloaded."""
        self.unloaded = None
        return await self.get()

    async def unload(self, why: str) -> Loaded | None:
        """Takes it out of use until ``load``, and returns what was loaded, not closed. ``get`` refuses, saying why."""
        self.unloaded = why
        if self._loading is not None:
            await asyncio.wait({self._loading})
        found, self._value = self._value, None
        return found

    async def replace(self) -> Loaded | None:
        """Loads anew beside what is loaded, and puts it in its place. Returns what it took the place of, not closed.

        Where it cannot be loaded, the old stays and the refusal is raised; what is not loaded yet is left so (None).
        """
        if self._loading is not None:
            await asyncio.shield(self._loading)
        if self._value is None:
            return None
        new = await self._load()
        old, self._value = self._value, new
        if self._closed:
            self._close(new)
        return old

    def check(self) -> None:
        """Raises ``InvalidInputError`` where it could not be loaded. Nothing is loaded."""
        self._check()

    def close(self) -> None:
        """Closes what is loaded or being loaded, and waits for nothing."""
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
        if self._value is not None:
            self._close(self._value)

    async def _run(self) -> Loaded:
        try:
            self._value = await self._load()
        except InvalidInputError as refusal:
            self.failure = str(refusal)
            raise InvalidInputError(str(refusal), status=503) from refusal
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            raise
        self.failure = None
        if self._closed:
            self._close(self._value)
        return self._value

    def _done(self, loading: asyncio.Task[Loaded]) -> None:
        self._loading = None
        if not loading.cancelled():
            loading.exception()  # nobody may be left who waits for it
