"""The live versions of the models: promotes, rolls back, retires and reloads them without dropping a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastapi.concurrency import run_in_threadpool

from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.serve.runtime.recurring_error import RecurringError
from shared.store.promotions import Promotions, VersionStage

if TYPE_CHECKING:
    from shared.serve.oip.networks import Networks
    from shared.serve.service import Service

log = logging.getLogger("trivium.serve")
_POLL_INTERVAL_S = 5.0


class LiveState:
    """The live version of each model, for the registry and the networks. ``loading_versions`` are being loaded."""

    def __init__(self, promotions: Promotions) -> None:
        self.promotions = promotions
        self.versions = promotions.live()
        self.retired_versions = promotions.retired()
        self.loading_versions: dict[str, int] = {}

    def serving(self, model: str) -> int | None:
        """The version that answers requests, or None for the newest."""
        return self.versions.get(model)

    def loading(self, model: str) -> int | None:
        """The version to load now, or None for the newest."""
        return self.loading_versions.get(model, self.versions.get(model))

    def retired(self, model: str, version: int) -> bool:
        """Whether a version is retired, and is not being promoted now."""
        return (model, version) in self.retired_versions and self.loading_versions.get(model) != version


class LiveVersions:
    """Changes the live version of a model: loads the new version next to the old one, then switches over.

    ``users`` has the service that predicts with a model, by the model's name. If the new version cannot be loaded,
    nothing changes.
    """

    def __init__(
        self,
        live: LiveState,
        registry: Registry,
        users: Mapping[str, Service],
        networks: Networks,
    ) -> None:
        self._live, self._registry, self._users, self._networks = live, registry, users, networks
        self._change_lock = asyncio.Lock()
        self._stopped_versions: set[tuple[str, int]] = set()
        self._before_reload: dict[str, int] = {}
        self._follow_error = RecurringError(
            log, "cannot follow the live versions in the store", "follows the live versions in the store again"
        )

    def models(self) -> list[str]:
        return self._registry.names()

    async def stages(self, model: str) -> dict[int, VersionStage]:
        """The stage of each version of a model, the oldest first. Raises ``InvalidInputError`` (404) if unknown."""
        versions = self._versions(model)
        live = self._serving_versions(model, versions)
        return await run_in_threadpool(self._live.promotions.stages, model, list(versions), live)

    async def promote(self, model: str, version: int) -> None:
        """Makes a version live. Raises ``InvalidInputError`` if it does not exist or cannot be loaded."""
        async with self._change_lock:
            versions = self._check_version(model, version)
            # Record the live version explicitly, so that a newer one does not become live during the switch.
            before = self._live.versions[model] = self._live_version(model, versions)
            await self._switch(model, version)
            await run_in_threadpool(self._live.promotions.promote, model, version, before)

    async def roll_back(self, model: str) -> None:
        """Makes the previous version live again.

        That is the version before the last promotion, or else the one before a reload switched to a newer version.
        Raises ``InvalidInputError`` (409) if there is none.
        """
        async with self._change_lock:
            versions, promotions = self._versions(model), self._live.promotions
            version = await run_in_threadpool(promotions.previous, model)
            if version is not None:
                await self._switch(model, version)
                await run_in_threadpool(promotions.roll_back, model)
                return
            version = self._before_reload.get(model)
            if version not in versions or (model, version) in self._stopped_versions:
                message = f"no version of {model!r} was live before this one; promote a version by its number instead"
                raise InvalidInputError(message, status=409)
            live = self._live_version(model, versions)
            await self._switch(model, version)
            await run_in_threadpool(promotions.promote, model, version, live)
            del self._before_reload[model]

    async def retire(self, model: str, version: int) -> None:
        """Retires a version that is not live: its workers end once they have answered, and no rollback returns to it.

        Raises ``InvalidInputError`` (409) for the live version. An optional partner model, such as a second stage, can
        be retired even if it is live; the workers of the application are then replaced.
        """
        async with self._change_lock:
            versions = self._check_version(model, version)
            live, user = self._live_version(model, versions), self._users.get(model)
            if version == live and (user is None or user.needs(model)):
                raise InvalidInputError(f"version {version} of {model!r} is live; promote another first", status=409)
            if version != live:
                # Record the live version explicitly, so that it stays live whichever version is the newest.
                self._live.versions[model] = live
                await run_in_threadpool(self._live.promotions.promote, model, live, live)
            await run_in_threadpool(self._live.promotions.retire, model, version)
            await self._stop_retired()

    async def reload(self, model: str) -> None:
        """Finds new versions in the registry, and replaces the model's workers."""
        async with self._change_lock:
            before = self._live_version(model, self._versions(model))
            await self._networks.read_new_versions(model)
            if (user := self._users.get(model)) is not None:
                await user.reload()
            await self._networks.reload(model)
            if self._live_version(model, self._versions(model)) != before:
                self._before_reload[model] = before

    async def start(self) -> None:
        """Ends the workers of the versions that the store states as retired."""
        async with self._change_lock:
            await self._stop_retired()

    async def follow(self) -> None:
        """Follows the changes of other servers that share the store, until it is cancelled."""
        while True:
            await asyncio.sleep(_POLL_INTERVAL_S)
            await self.follow_once()

    async def follow_once(self) -> None:
        """Switches to the versions that the store states as live, and stops those that it states as retired."""
        try:
            async with self._change_lock:
                stored = await run_in_threadpool(self._live.promotions.live)
                for model, version in stored.items():
                    if self._live.serving(model) != version and version in self._registry.versions(model):
                        log.info("another server made version %d of %s the live one", version, model)
                        try:
                            await self._switch(model, version)
                        except InvalidInputError as refusal:
                            # Expected for a partner until the model that it belongs to has been switched too.
                            log.warning("%s", refusal)
                await self._stop_retired()
            self._follow_error.ended()
        except Exception as error:
            self._follow_error.occurred(error)

    async def _switch(self, model: str, version: int) -> None:
        """Loads a version wherever its model is used, and makes it live."""
        path = self._registry.versions(model)[version]
        await run_in_threadpool(self._registry.open, path)  # checks that its files are complete
        await self._networks.read_new_versions(model)
        with self._while_loading(model, version):
            await self._networks.load_version(model, version)
            if (user := self._users.get(model)) is not None:
                await user.reload()
                if (loaded := user.loaded_versions(model)) is not None and version not in loaded:
                    raise InvalidInputError(
                        f"version {version} of {model!r} belongs to none of the live models and would not be used; "
                        "promote the model that it belongs to first",
                        status=409,
                    )
        self._live.versions[model] = version
        self._live.retired_versions.discard((model, version))
        self._stopped_versions.discard((model, version))

    async def _stop_retired(self) -> None:
        """Ends the workers of newly retired versions, as the store states them."""
        stored = await run_in_threadpool(self._live.promotions.retired)
        self._live.retired_versions = set(stored)
        for model, version in sorted(stored - self._stopped_versions):
            await self._networks.retire_version(model, version)
            user = self._users.get(model)
            if user is not None and not user.needs(model) and version in (user.loaded_versions(model) or []):
                await user.reload()
        self._stopped_versions = stored

    @contextmanager
    def _while_loading(self, model: str, version: int) -> Iterator[None]:
        """Makes the registry load this version of the model while the block lasts."""
        self._live.loading_versions[model] = version
        try:
            yield
        finally:
            del self._live.loading_versions[model]

    def _versions(self, model: str) -> list[int]:
        if not (found := self._registry.versions(model)):
            names = ", ".join(self._registry.names()) or "none"
            raise InvalidInputError(f"there is no model {model!r}; there are {names}", status=404)
        return list(found)

    def _check_version(self, model: str, version: int) -> list[int]:
        """All versions of the model. Raises ``InvalidInputError`` (404) if ``version`` is not one of them."""
        versions = self._versions(model)
        if version not in versions:
            known = ", ".join(map(str, versions))
            raise InvalidInputError(f"the model {model!r} has no version {version}; it has {known}", status=404)
        return versions

    def _live_version(self, model: str, versions: list[int]) -> int:
        """The live version; the newest if no version can answer."""
        return next(iter(self._serving_versions(model, versions)), max(versions))

    def _serving_versions(self, model: str, versions: list[int]) -> list[int]:
        """The versions that answer: those loaded; if nothing is loaded, the one recorded as live, else the newest."""
        user = self._users.get(model)
        if (loaded := None if user is None else user.loaded_versions(model)) is None:
            stored = self._live.serving(model)
            usable = [version for version in versions if not self._live.retired(model, version)]
            return [stored] if stored in usable else usable[-1:]
        return [version for version in loaded if version in versions]
