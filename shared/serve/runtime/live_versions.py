"""Which versions are served: promoted, rolled back and reloaded without a request being dropped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from fastapi.concurrency import run_in_threadpool

from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.store.promotions import Promotions, Stage

log = logging.getLogger("trivium.serve")
_LOOK_S = 5.0


class User(Protocol):
    """What has workers for some models, and can have them replaced."""

    def loaded_versions(self, model: str) -> list[int] | None:
        """The versions of a model that it predicts with, none where it does without; None where it is not loaded."""
        ...

    def needs(self, model: str) -> bool:
        """Whether it cannot predict without a version of the model."""
        ...

    async def reload(self) -> None:
        """Has new workers take the place of the old, which answer what they were given."""
        ...


class Live:
    """The live version of each model, as the registry and the networks ask for it. ``coming`` are being loaded."""

    def __init__(self, promotions: Promotions) -> None:
        self.promotions = promotions
        self.versions = promotions.live()
        self.out_of_use = promotions.retired()
        self.coming: dict[str, int] = {}

    def serving(self, model: str) -> int | None:
        """The version that answers, or None for the newest."""
        return self.versions.get(model)

    def loading(self, model: str) -> int | None:
        """The version that is loaded where one is to be loaded now, or None for the newest."""
        return self.coming.get(model, self.versions.get(model))

    def retired(self, model: str, version: int) -> bool:
        """Whether a version is out of use, and is not being promoted now."""
        return (model, version) in self.out_of_use and self.coming.get(model) != version


class LiveVersions:
    """Changes the live version of a model: the new one is loaded beside the old, then takes its place.

    ``users`` are those who predict with a model, by its name. Where the new one cannot be loaded, nothing changes.
    """

    def __init__(
        self,
        live: Live,
        registry: Registry,
        users: Mapping[str, User],
        networks: NetworkVersions,
    ) -> None:
        self._live, self._registry, self._users, self._networks = live, registry, users, networks
        self._changing = asyncio.Lock()
        self._retired: set[tuple[str, int]] = set()
        self._before_reload: dict[str, int] = {}

    def models(self) -> list[str]:
        """The models that there are."""
        return self._registry.names()

    async def stages(self, model: str) -> dict[int, Stage]:
        """The stage of each version of a model, the oldest first; refuses an unknown model with 404."""
        versions = self._versions(model)
        live = self._answering(model, versions)
        return await run_in_threadpool(self._live.promotions.stages, model, list(versions), live)

    async def promote(self, model: str, version: int) -> None:
        """Makes a version live. Raises ``InvalidInputError`` where there is none, or it cannot be loaded."""
        async with self._changing:
            versions = self._known(model, version)
            # What is newest is not live by that alone while one is chosen.
            before = self._live.versions[model] = self._live_of(model, versions)
            await self._switch(model, version)
            await run_in_threadpool(self._live.promotions.promote, model, version, before)

    async def roll_back(self, model: str) -> None:
        """Makes the version live again that was before the last promotion, or else before a reload took up a newer one.

        Refuses (409) where there was none.
        """
        async with self._changing:
            versions, promotions = self._versions(model), self._live.promotions
            version = await run_in_threadpool(promotions.before, model)
            if version is not None:
                await self._switch(model, version)
                await run_in_threadpool(promotions.roll_back, model)
                return
            version = self._before_reload.get(model)
            if version not in versions or (model, version) in self._retired:
                words = (
                    f"no version of {model!r} was live before this one; promote the one that is wanted by its number"
                )
                raise InvalidInputError(words, status=409)
            live = self._live_of(model, versions)
            await self._switch(model, version)
            await run_in_threadpool(promotions.promote, model, version, live)
            del self._before_reload[model]

    async def retire(self, model: str, version: int) -> None:
        """Ends the workers of a version that is not live, once they have answered, and has it never be rolled back to.

        Refuses the live one (409): another is promoted first. What is predicted with may do without a partner, such
        as a second stage, and has new workers then.
        """
        async with self._changing:
            versions = self._known(model, version)
            live, user = self._live_of(model, versions), self._users.get(model)
            if version == live and (user is None or user.needs(model)):
                raise InvalidInputError(f"version {version} of {model!r} is live; promote another first", status=409)
            if version != live:
                # What is live stays so by name: a newer one that was retired does not take its place.
                self._live.versions[model] = live
                await run_in_threadpool(self._live.promotions.promote, model, live, live)
            await run_in_threadpool(self._live.promotions.retire, model, version)
            await self._end_retired()

    async def reload(self, model: str) -> None:
        """Takes up new versions from the registry, and has new workers take the place of the model's."""
        async with self._changing:
            before = self._live_of(model, self._versions(model))
            await self._networks.take_up(model)
            if (user := self._users.get(model)) is not None:
                await user.reload()
            await self._networks.reload(model)
            if self._live_of(model, self._versions(model)) != before:
                self._before_reload[model] = before

    async def start(self) -> None:
        """Leaves what the store says is retired without workers."""
        async with self._changing:
            await self._end_retired()

    async def follow(self) -> None:
        """Does as other servers on the store do, until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.follow_once()

    async def follow_once(self) -> None:
        """Serves the versions that the store says are live, and none that it says is retired."""
        try:
            async with self._changing:
                stated = await run_in_threadpool(self._live.promotions.live)
                for model, version in stated.items():
                    if self._live.serving(model) != version and version in self._registry.versions(model):
                        log.info("another server made version %d of %s the live one", version, model)
                        try:
                            await self._switch(model, version)
                        except InvalidInputError as refusal:
                            # That of a partner, until the model that it belongs to has been switched too.
                            log.warning("%s", refusal)
                await self._end_retired()
        except Exception:
            log.exception("the live versions that the store states are not served")

    async def _switch(self, model: str, version: int) -> None:
        """Loads a version where its model is used, and has it answer from then on."""
        path = self._registry.versions(model)[version]
        await run_in_threadpool(self._registry.open, path)  # its files are whole
        await self._networks.take_up(model)
        with self._coming(model, version):
            await self._networks.load_version(model, version)
            if (user := self._users.get(model)) is not None:
                await user.reload()
                if (loaded := user.loaded_versions(model)) is not None and version not in loaded:
                    raise InvalidInputError(
                        f"version {version} of {model!r} belongs to none of the models that are live, and would serve "
                        "none; promote the model that it belongs to first",
                        status=409,
                    )
        self._live.versions[model] = version
        self._live.out_of_use.discard((model, version))
        self._retired.discard((model, version))

    async def _end_retired(self) -> None:
        stated = await run_in_threadpool(self._live.promotions.retired)
        self._live.out_of_use = set(stated)
        for model, version in sorted(stated - self._retired):
            await self._networks.retire_version(model, version)
            user = self._users.get(model)
            if user is not None and not user.needs(model) and version in (user.loaded_versions(model) or []):
                await user.reload()
        self._retired = stated

    @contextmanager
    def _coming(self, model: str, version: int) -> Iterator[None]:
        self._live.coming[model] = version
        try:
            yield
        finally:
            del self._live.coming[model]

    def _versions(self, model: str) -> list[int]:
        if not (found := self._registry.versions(model)):
            names = ", ".join(self._registry.names()) or "none"
            raise InvalidInputError(f"there is no model {model!r}; there are {names}", status=404)
        return list(found)

    def _known(self, model: str, version: int) -> list[int]:
        versions = self._versions(model)
        if version not in versions:
            known = ", ".join(map(str, versions))
            raise InvalidInputError(f"the model {model!r} has no version {version}; it has {known}", status=404)
        return versions

    def _live_of(self, model: str, versions: list[int]) -> int:
        return next(iter(self._answering(model, versions)), max(versions))

    def _answering(self, model: str, versions: list[int]) -> list[int]:
        """The versions that answer, or would: those that are loaded, or the live one by name, else the newest."""
        user = self._users.get(model)
        if (loaded := None if user is None else user.loaded_versions(model)) is None:
            stated, usable = self._live.serving(model), [one for one in versions if not self._live.retired(model, one)]
            return [stated] if stated in usable else usable[-1:]
        return [version for version in loaded if version in versions]


class NetworkVersions(Protocol):
    """The dense networks of the models, by version."""

    async def take_up(self, name: str) -> None:
        """Takes up versions that are not known yet."""
        ...

    async def load_version(self, name: str, version: int) -> None:
        """Loads a version that is to answer, where another version of it is loaded."""
        ...

    async def retire_version(self, name: str, version: int) -> None:
        """Ends the workers of a version, where there are any, once they have answered; it has none until promoted."""
        ...

    async def reload(self, name: str) -> None:
        """Has new workers take the place of those that are loaded."""
        ...
