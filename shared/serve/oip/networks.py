"""The dense networks of the artifacts as models of the Open Inference Protocol, behind workers that run them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from shared.deploy.artifact import Manifest, manifest_bytes, open_artifact
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.serve.metrics import Metrics
from shared.serve.runtime.limits import MemoryLimit, RequestLimit, loaded
from shared.serve.runtime.loading import LoadOnce
from shared.serve.runtime.models import network_workers
from shared.serve.runtime.pool import WorkerPool
from shared.serve.runtime.shared_memory import SharedMemory
from shared.serve.runtime.threads import Threads
from shared.serve.runtime.turns import Turns
from shared.serve.settings import Settings
from shared.serve.worker.messages import Blob, Message, SharedBytes

log = logging.getLogger("trivium.serve")
_BODIES_IN_MEMORY, _READ_AT_A_TIME = 4, 4
_MAX_ROOM = 4.0
_MEMORY_KEPT = 1 << 27


class NetworkModel:
    """One version of a model. Its workers load on the first request, its files checked against their digests."""

    def __init__(self, path: Path, manifest: Manifest, settings: Settings, metrics: Metrics, loading: Threads) -> None:
        self.manifest = manifest
        self.limit = RequestLimit(f"the model {manifest.name}", settings.request_limit, settings.deadline_s)
        self.metrics = metrics.of(manifest.name, str(manifest.version))
        self._path, self._settings, self._loading = path, settings, loading
        self.model: LoadOnce[WorkerPool] = LoadOnce(
            f"the model {manifest.name}",
            load=self._load,
            check=lambda: open_artifact(self._path),
            close=lambda workers: workers.close(),
            usable=lambda workers: workers.usable,
        )
        self.turns = Turns(_READ_AT_A_TIME)
        self._answer_share = 0.0
        self._retired: str | None = None

    @property
    def version(self) -> str:
        """The version, as the protocol writes it."""
        return str(self.manifest.version)

    @property
    def retired(self) -> bool:
        """Whether it is out of use until it is promoted."""
        return self._retired is not None

    def check_room(self, group: str | None) -> None:
        """Raises ``Busy`` (503), counted as a rejected request, where a request of the group would not be admitted."""
        with self.metrics.failures():
            self.limit.check(group)

    async def infer(
        self, body: Blob | SharedBytes, header_length: int | None, group: str | None
    ) -> tuple[Sequence[Blob], bool]:
        """The body of the answer to a request's body: its JSON, then tensors where the second says that it is binary.

        ``header_length`` is the length of the request's JSON part where tensors follow it. What is answered may lie in
        the request's memory, which is to be held until it is sent. Raises ``InvalidInputError``.
        """
        arrived = time.monotonic()
        deadline = arrived + self._settings.deadline_s
        workers = await loaded(self.model, deadline)
        with self.limit.computing(group):
            given = {"header_length": header_length, "arrived": arrived}
            request = Message(given, (), [body]) if isinstance(body, SharedBytes) else Message(given, [body])
            reply = await workers.answer(request, deadline, group=group)
        head = reply.head
        self.metrics.answered(request_s=time.monotonic() - arrived, input_s=head["input_s"], output_s=head["output_s"])
        if not isinstance(body, SharedBytes):
            return reply.blobs, head["binary"]
        parts = [*reply.blobs, *(body.room[at : at + size] for at, size in head["spans"])]
        self._answer_share = max(self._answer_share, sum(map(len, parts)) / body.size)
        return parts, head["binary"]

    def room(self, size: int) -> int:
        """How much room the answer to a request of this size is given: what the largest so far would have needed."""
        return int(size * min(self._answer_share, _MAX_ROOM))

    async def unload(self) -> None:
        """Ends the workers once they have answered what they were given. Until it is loaded, it answers no more."""
        name = self.manifest.name
        await self._end(
            f"version {self.version} of {name} was unloaded; POST /v2/repository/models/{name}/load loads it"
        )

    async def retire(self) -> None:
        """As ``unload``, until it is promoted."""
        name = self.manifest.name
        self._retired = f"version {self.version} of {name} is retired; POST /api/models/{name}/promote has it answer"
        await self._end(self._retired)

    def unretire(self) -> None:
        """Has it load when it is next asked, where it was retired."""
        if self._retired is not None and self.model.unloaded == self._retired:
            self.model.unloaded = None
        self._retired = None

    async def _end(self, why: str) -> None:
        if (workers := await self.model.unload(why)) is not None:
            await workers.end()

    async def reload(self) -> None:
        """Has new workers take the place of those that are loaded, which answer first what they were given."""
        if (old := await self.model.replace()) is not None:
            await old.end()

    async def _load(self) -> WorkerPool:
        await self._loading.run(open_artifact, self._path)
        workers = WorkerPool(
            self.model.what,
            network_workers(self._path, self._settings),
            capacity=self._settings.request_limit,
            longest_batch_s=self._settings.max_batch_s,
            metrics=self.metrics,
        )
        await workers.start()
        self.turns.most = max(_READ_AT_A_TIME, 2 * workers.most + 2)
        return workers


class Networks:
    """All versions of all models in the registry, by name and version.

    ``memory`` bounds the bodies of all requests, and ``shared_memory`` is where the large ones lie. ``live`` says which
    version answers where none is named: the newest where it says None.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        live: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._live = live
        self._models: dict[str, dict[str, NetworkModel]] = {}
        self.settings = settings
        bodies = _BODIES_IN_MEMORY * settings.max_tensor_bytes
        of_group = bodies - settings.max_tensor_bytes if settings.require_key else bodies
        self.memory = MemoryLimit("the Open Inference Protocol", bodies, of_group)
        self.shared_memory = SharedMemory(_MEMORY_KEPT)
        self._loading = Threads("load-network", 1)
        self._registry, self._metrics = registry, metrics
        for name in registry.names():
            self._read(name)

    async def load(self, name: str) -> None:
        """Takes up new versions of a model, and loads what is not loaded; 404 for one that is not in the registry."""
        await self.take_up(name)
        for network in self._versions(name).values():
            if not network.retired:
                await network.model.load()

    async def take_up(self, name: str) -> None:
        """Takes up the versions of a model that are not known yet, and loads none."""
        await self._loading.run(self._read, name)

    async def unload(self, name: str) -> None:
        """Ends a model's workers once they have answered what they were given; ``load`` has it answer again."""
        for network in self._versions(name).values():
            await network.unload()

    async def retire_version(self, name: str, version: int) -> None:
        """Ends the workers of a version, where there are any, once they have answered what they were given."""
        if (network := self._models.get(name, {}).get(str(version))) is not None:
            await network.retire()

    async def load_version(self, name: str, version: int) -> None:
        """Loads a version of a model where another is loaded, so that it can take its place."""
        versions = self._models.get(name, {})
        if str(version) in versions:
            versions[str(version)].unretire()
        if str(version) in versions and any(other.model.value is not None for other in versions.values()):
            await versions[str(version)].model.load()

    async def reload(self, name: str) -> None:
        """Has new workers take the place of those of a model that are loaded."""
        for network in list(self._models.get(name, {}).values()):
            await network.reload()

    def _read(self, name: str) -> None:
        """Takes up the versions of a model that are not known yet."""
        for path in self._registry.versions(name).values():
            try:
                manifest = TypeAdapter(Manifest).validate_json(manifest_bytes(path))
            except (OSError, ValidationError) as error:
                log.warning("%s is left out: %s", path, error)
                continue
            if manifest.has_network and str(manifest.version) not in self._models.get(manifest.name, {}):
                network = NetworkModel(path, manifest, self.settings, self._metrics, self._loading)
                self._models.setdefault(manifest.name, {})[network.version] = network

    def names(self) -> list[str]:
        """The models that there are."""
        return sorted(self._models)

    def versions(self, name: str) -> list[str]:
        """The versions of a model, the oldest first."""
        return sorted(self._versions(name), key=int)

    def find(self, name: str, version: str | None) -> NetworkModel:
        """A version of a model, the live one by default; refuses an unknown one with 404."""
        versions = self._versions(name)
        live = str(self._live(name))
        chosen = version if version is not None else live if live in versions else max(versions, key=int)
        if chosen not in versions:
            raise InvalidInputError(
                f"the model {name!r} has no version {chosen!r}; it has {', '.join(sorted(versions, key=int))}",
                status=404,
            )
        return versions[chosen]

    def all(self) -> list[NetworkModel]:
        """Every version of every model."""
        return [network for versions in self._models.values() for network in versions.values()]

    def close(self) -> None:
        """Refuses what waits, and waits for nothing."""
        for network in self.all():
            network.model.close()
        self._loading.close()
        self.shared_memory.close()

    def _versions(self, name: str) -> dict[str, NetworkModel]:
        if name not in self._models:
            raise InvalidInputError(
                f"there is no model {name!r}; there are {', '.join(self._models) or 'none'}", status=404
            )
        return self._models[name]
