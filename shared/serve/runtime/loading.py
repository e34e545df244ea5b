"""Lazy loading of a shared value. Used from the event loop only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shared.errors import InvalidInputError

Loaded = TypeVar("Loaded")


class LoadOnce(Generic[Loaded]):
    """A value that the first caller of ``get`` loads; concurrent callers wait for the same load.

    ``load`` returns the value; ``check`` tests on a thread whether it could be loaded; both raise ``InvalidInputError``
    if it cannot. ``close`` closes the value, and ``usable`` says whether it can do its work now. After a failed load
    the next caller retries. ``title`` is its name in messages.
    """

    def __init__(
        self,
        title: str,
        *,
        load: Callable[[], Awaitable[Loaded]],
        check: Callable[[], object],
        close: Callable[[Loaded], None],
        usable: Callable[[Loaded], bool] = lambda _: True,
    ) -> None:
        self.title = title
        self.failure: str | None = None
        """Why the last load failed; None once a load succeeded."""
        self.unloaded: str | None = None
        """Why it was unloaded; None if it was not."""
        self.stage: str | None = None
        """What the current load is doing, in words; None if nothing is being loaded."""
        self.on_stage: Callable[[str], None] | None = None
        """Called with each stage of a load, if given."""
        self._load, self._check, self._close, self._usable = load, check, close, usable
        self._loading: asyncio.Task[Loaded] | None = None
        self._value: Loaded | None = None
        self._closed = False

    @property
    def value(self) -> Loaded | None:
        """The loaded value; None if nothing is loaded."""
        return self._value

    @property
    def usable(self) -> bool:
        """Whether the value is loaded and can do its work now."""
        return self._value is not None and self._usable(self._value)

    async def get(self) -> Loaded:
        """The value, loaded if necessary. Raises ``InvalidInputError`` (503) if it cannot be loaded.

        Cancelling a caller does not cancel the load, because others may wait for it. An unloaded value is not loaded
        again; as in Triton this raises 404, since retrying does not help.
        """
        if self._value is not None:
            return self._value
        if self.unloaded is not None:
            raise InvalidInputError(self.unloaded, status=404)
        if self._loading is None:
            self._loading = asyncio.ensure_future(self._load_value())
            self._loading.add_done_callback(self._finish_loading)
        return await asyncio.shield(self._loading)

    async def load(self) -> Loaded:
        """Like ``get``, but also loads a value that was unloaded."""
        self.unloaded = None
        return await self.get()

    async def unload(self, reason: str) -> Loaded | None:
        """Unloads the value until ``load`` is called, and returns it without closing it.

        Until then ``get`` raises ``InvalidInputError`` (404) with the reason.
        """
        self.unloaded = reason
        if self._loading is not None:
            await asyncio.wait({self._loading})
        value, self._value = self._value, None
        return value

    async def replace(self) -> Loaded | None:
        """Loads a new value, then replaces the old one, which is returned without being closed.

        If the new value cannot be loaded, the old one stays and the error is raised. If nothing is loaded yet, this
        loads nothing and returns None.
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

    def report_stage(self, stage: str) -> None:
        """Called by ``load`` with what it is doing."""
        if self._loading is None:
            return  # a later worker of the same value
        self.stage = f"loading the model: {stage}" if stage else "loading the model"
        if self.on_stage is not None:
            self.on_stage(self.stage)

    def check(self) -> None:
        """Raises ``InvalidInputError`` if the value could not be loaded. Loads nothing."""
        self._check()

    def close(self) -> None:
        """Closes the value, or cancels its load, without waiting."""
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
        if self._value is not None:
            self._close(self._value)

    async def _load_value(self) -> Loaded:
        self.report_stage("")
        try:
            self._value = await self._load()
        except InvalidInputError as refusal:
            self.failure = str(refusal)
            if refusal.status == 503:
                raise  # it may say when to try again
            raise InvalidInputError(str(refusal), status=503) from refusal
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.stage = None
        self.failure = None
        if self._closed:
            self._close(self._value)
        return self._value

    def _finish_loading(self, loading: asyncio.Task[Loaded]) -> None:
        self._loading = None
        if not loading.cancelled():
            loading.exception()  # marks it as retrieved: all callers may have been cancelled
