"""The dense networks of the artifacts as models of the Open Inference Protocol, run by workers."""

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
from shared.serve.runtime.limits import MemoryLimit, RequestLimit, wait_until_loaded
from shared.serve.runtime.loading import LoadOnce
from shared.serve.runtime.models import network_workers
from shared.serve.runtime.pool import WorkerPool
from shared.serve.runtime.shared_memory import SharedMemoryPool
from shared.serve.runtime.threads import Threads
from shared.serve.runtime.turns import Turns
from shared.serve.settings import Settings
from shared.serve.worker.messages import Blob, Message, SharedBytes

log = logging.getLogger("trivium.serve")
_MAX_BODIES_IN_MEMORY, _CONCURRENT_UPLOADS = 4, 4
_MAX_ANSWER_SHARE = 4.0
_SHARED_MEMORY_CACHE_BYTES = 1 << 27


class NetworkModel:
    """One version of a model. Its workers are loaded on the first request, after its files are checked by digest."""

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
        self.turns = Turns(_CONCURRENT_UPLOADS)
        self._answer_share = 0.0
        self._retired: str | None = None

    @property
    def version(self) -> str:
        """The version, as text, as in the protocol."""
        return str(self.manifest.version)

    @property
    def retired(self) -> bool:
        """Whether the version is retired, until it is promoted again."""
        return self._retired is not None

    def check_room(self, group: str | None) -> None:
        """Raises ``Busy`` (503), counted as a rejected request, if a request of the group would not be admitted."""
        with self.metrics.failures():
            self.limit.check(group)

    async def infer(
        self, body: Blob | SharedBytes, header_length: int | None, group: str | None
    ) -> tuple[Sequence[Blob], bool]:
        """Runs the network on a request body; returns the parts of the response body, and whether it is binary.

        The first part is JSON; in a binary response, the tensors follow. ``header_length`` is the length in bytes of
        the request's JSON part if tensors follow it. The parts may be in the memory of the request, which must be kept
        until they are sent. Raises ``InvalidInputError``.
        """
        arrived = time.monotonic()
        deadline = arrived + self._settings.deadline_s
        workers = await wait_until_loaded(self.model, deadline)
        with self.limit.computing(group):
            request_head = {"header_length": header_length, "arrived": arrived}
            request = (
                Message(request_head, (), [body]) if isinstance(body, SharedBytes) else Message(request_head, [body])
            )
            reply = await workers.answer(request, deadline, group=group)
        head = reply.head
        self.metrics.observe_answer(
            request_s=time.monotonic() - arrived, input_s=head["input_s"], output_s=head["output_s"]
        )
        if not isinstance(body, SharedBytes):
            return reply.blobs, head["binary"]
        parts = [*reply.blobs, *(body.room[at : at + size] for at, size in head["spans"])]
        self._answer_share = max(self._answer_share, sum(map(len, parts)) / body.size)
        return parts, head["binary"]

    def room(self, size: int) -> int:
        """The bytes to reserve for the answer to a request of this size, by the largest ratio of sizes so far."""
        return int(size * min(self._answer_share, _MAX_ANSWER_SHARE))

    async def unload(self) -> None:
        """Ends the workers after they have answered the requests they have. It then refuses requests until loaded."""
        name = self.manifest.name
        await self._end(
            f"version {self.version} of {name} was unloaded; load it with POST /v2/repository/models/{name}/load"
        )

    async def retire(self) -> None:
        """Ends the workers as ``unload`` does, until the version is promoted."""
        name = self.manifest.name
        self._retired = f"version {self.version} of {name} is retired; promote it with POST /api/models/{name}/promote"
        await self._end(self._retired)

    def unretire(self) -> None:
        """If the version was retired, lets it load again on the next request."""
        if self._retired is not None and self.model.unloaded == self._retired:
            self.model.unloaded = None
        self._retired = None

    async def _end(self, reason: str) -> None:
        if (workers := await self.model.unload(reason)) is not None:
            await workers.drain_and_close()

    async def reload(self) -> None:
        """Replaces loaded workers by new ones; the old ones first answer the requests they have."""
        if (old := await self.model.replace()) is not None:
            await old.drain_and_close()

    async def _load(self) -> WorkerPool:
        await self._loading.run(open_artifact, self._path)
        workers = WorkerPool(
            self.model.title,
            network_workers(self._path, self._settings),
            capacity=self._settings.request_limit,
            max_batch_s=self._settings.max_batch_s,
            metrics=self.metrics,
        )
        await workers.start()
        self.turns.max_uploads = max(_CONCURRENT_UPLOADS, 2 * workers.max_requests + 2)
        return workers


class Networks:
    """All versions of all models in the registry, by name and version.

    ``memory`` limits the total size of request bodies; large bodies are in ``shared_memory``. ``live`` returns the
    version of a model that answers requests without a version; None for the newest.
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
        max_bytes = _MAX_BODIES_IN_MEMORY * settings.max_tensor_bytes
        max_group_bytes = max_bytes - settings.max_tensor_bytes if settings.require_key else max_bytes
        self.memory = MemoryLimit("the Open Inference Protocol", max_bytes, max_group_bytes)
        self.shared_memory = SharedMemoryPool(_SHARED_MEMORY_CACHE_BYTES)
        self._loading = Threads("load-network", 1)
        self._registry, self._metrics = registry, metrics
        for name in registry.names():
            self._read_versions(name)

    async def load(self, name: str) -> None:
        """Reads new versions of a model and loads all but retired ones; refuses (404) a model not in the registry."""
        await self.read_new_versions(name)
        for network in self._versions(name).values():
            if not network.retired:
                await network.model.load()

    async def read_new_versions(self, name: str) -> None:
        """Reads versions of a model that are new in the registry, without loading them."""
        await self._loading.run(self._read_versions, name)

    async def unload(self, name: str) -> None:
        """Ends a model's workers after they have answered the requests they have, until ``load`` is called."""
        for network in self._versions(name).values():
            await network.unload()

    async def retire_version(self, name: str, version: int) -> None:
        """Retires a version, if it is known: its workers end after they have answered the requests they have."""
        if (network := self._models.get(name, {}).get(str(version))) is not None:
            await network.retire()

    async def load_version(self, name: str, version: int) -> None:
        """Loads a version of a model if another version is loaded, so that it can replace that one."""
        versions = self._models.get(name, {})
        if str(version) in versions:
            versions[str(version)].unretire()
        if str(version) in versions and any(network.model.value is not None for network in versions.values()):
            await versions[str(version)].model.load()

    async def reload(self, name: str) -> None:
        """Replaces the loaded workers of a model by new ones."""
        for network in list(self._models.get(name, {}).values()):
            await network.reload()

    def _read_versions(self, name: str) -> None:
        """Reads the manifests of versions of a model that are not known yet."""
        for path in self._registry.versions(name).values():
            try:
                manifest = TypeAdapter(Manifest).validate_json(manifest_bytes(path))
            except (OSError, ValidationError) as error:
                log.warning("skipping %s: %s", path, error)
                continue
            if manifest.has_network and str(manifest.version) not in self._models.get(manifest.name, {}):
                network = NetworkModel(path, manifest, self.settings, self._metrics, self._loading)
                self._models.setdefault(manifest.name, {})[network.version] = network

    def names(self) -> list[str]:
        return sorted(self._models)

    def versions(self, name: str) -> list[str]:
        """The versions of a model, the oldest first. Refuses (404) an unknown model."""
        return sorted(self._versions(name), key=int)

    def find(self, name: str, version: str | None) -> NetworkModel:
        """A version of a model; for None the live one. Refuses (404) an unknown model or version."""
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
        return [network for versions in self._models.values() for network in versions.values()]

    def pools(self) -> list[WorkerPool]:
        """The worker pools of the loaded networks."""
        return [network.model.value for network in self.all() if network.model.value is not None]

    def close(self) -> None:
        """Refuses waiting requests and closes without waiting for running ones."""
        for network in self.all():
            network.model.close()
        self._loading.close()
        self.shared_memory.close()

    def _versions(self, name: str) -> dict[str, NetworkModel]:
        if name not in self._models:
            raise InvalidInputError(
                f"there is no model {name!r}; available: {', '.join(self._models) or 'none'}", status=404
            )
        return self._models[name]
