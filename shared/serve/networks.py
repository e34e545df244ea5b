"""The dense networks of the artifacts, run by ONNX Runtime as models of the Open Inference Protocol."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from shared.deploy.artifact import MANIFEST, Manifest, open_artifact
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.serve.admission import Places, Workers
from shared.serve.batcher import Batcher
from shared.serve.metrics import Metrics
from shared.serve.settings import Settings
from shared.serve.tensors import Array, BadTensor

log = logging.getLogger("trivium.serve")
_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "auto": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}


class Network:
    """One version of a model. The session is made on the first request, and checked against the manifest's digests."""

    def __init__(self, path: Path, manifest: Manifest, settings: Settings, metrics: Metrics, loading: Workers) -> None:
        self.manifest = manifest
        self.what = f"the model {manifest.name}"
        self.places = Places(self.what, settings.places)
        self.metrics = metrics.of(manifest.name, str(manifest.version))
        self.failure: str | None = None
        self._path, self._settings, self._loading = path, settings, loading
        self._lock = threading.Lock()
        self._closed = False
        self._session: Any = None
        self._batcher: Batcher[Mapping[str, Array], dict[str, Array]] | None = None
        self._symbols: dict[str, list[str | int]] = {}
        self._batched = False

    @property
    def version(self) -> str:
        return str(self.manifest.version)

    @property
    def loaded(self) -> bool:
        """Whether the session is there already."""
        return self._batcher is not None

    async def prepare(self) -> Batcher[Mapping[str, Array], dict[str, Array]]:
        """The queue, once the session is there."""
        return self._batcher if self._batcher is not None else await self._loading.run(self._load)

    async def infer(self, inputs: Mapping[str, Array], deadline: float) -> list[dict[str, Array]]:
        """All outputs of the network, in parts of at most ``max_batch`` rows. Raises ``InvalidInputError``.

        What a network needs while it computes grows with its rows; and between the parts others have their turn.
        """
        batcher = await self.prepare()
        self._check_symbols(inputs)
        return [await batcher.answer(portion, deadline) for portion in self._portions(inputs)]

    def look(self) -> None:
        """Opens the artifact without making the session. Raises ``InvalidInputError`` where it cannot be used."""
        open_artifact(self._path)

    def load(self) -> None:
        """Makes the session, so that the first request need not wait for it."""
        self._load()

    def close(self) -> None:
        """Refuses what waits, and waits for nothing."""
        self._closed = True
        if self._batcher is not None:
            self._batcher.close()

    def _load(self) -> Batcher[Mapping[str, Array], dict[str, Array]]:
        with self._lock:
            if self._batcher is None:
                try:
                    self._session = self._open_session()
                except InvalidInputError as refusal:
                    self.failure = str(refusal)
                    raise InvalidInputError(str(refusal), status=503) from refusal
                except Exception as error:
                    self.failure = f"{type(error).__name__}: {error}"
                    raise
                self._symbols = {i.name: i.shape for i in self._session.get_inputs()}
                self._batched = self._has_batch_axis()
                self._batcher = Batcher(
                    self._compute,
                    name=self.what,
                    capacity=self._settings.places,
                    max_batch=self._settings.max_batch,
                    max_delay_s=self._settings.max_delay_ms / 1e3,
                    metrics=self.metrics,
                    kind=self._kind,
                    size=self._rows,
                )
                self.failure = None
                if self._closed:
                    self._batcher.close()
            return self._batcher

    def _open_session(self) -> Any:
        import onnxruntime as ort

        artifact = open_artifact(self._path)
        wanted, present = _PROVIDERS[self._settings.device], ort.get_available_providers()
        session = ort.InferenceSession(
            str(artifact.network), providers=[provider for provider in wanted if provider in present]
        )
        given = {tensor.name: tensor.shape for tensor in session.get_inputs()}
        for spec in self.manifest.inputs:
            shape = tuple(size if isinstance(size, int) else -1 for size in given.get(spec.name, ()))
            if spec.name not in given or shape != spec.shape:
                raise InvalidInputError(
                    f"{artifact.network}: the input {spec.name!r} has shape {list(shape)} there and "
                    f"{list(spec.shape)} in {MANIFEST}; export the run again"
                )
        return session

    def _has_batch_axis(self) -> bool:
        """Whether axis 0 of every input and output is one and the same named size."""
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        first = {tensor.shape[0] if tensor.shape else None for tensor in tensors}
        return len(first) == 1 and isinstance(next(iter(first)), str)

    def _check_symbols(self, inputs: Mapping[str, Array]) -> None:
        """Refuses inputs in which one named size (as ``batch``) has two values."""
        seen: dict[str, tuple[str, int]] = {}
        for name, array in inputs.items():
            for symbol, length in zip(self._symbols[name], array.shape, strict=True):
                if isinstance(symbol, str):
                    other, expected = seen.setdefault(symbol, (name, length))
                    if length != expected:
                        raise BadTensor(
                            f"the size {symbol!r} is {expected} in the input {other!r} and {length} in {name!r}"
                        )

    def _kind(self, inputs: Mapping[str, Array]) -> object:
        """What may be computed together: inputs that differ only in their number of rows."""
        return tuple((name, inputs[name].shape[1:]) for name in sorted(inputs)) if self._batched else object()

    def _rows(self, inputs: Mapping[str, Array]) -> int:
        return int(next(iter(inputs.values())).shape[0]) if self._batched and inputs else 1

    def _portions(self, inputs: Mapping[str, Array]) -> Iterator[Mapping[str, Array]]:
        rows, most = self._rows(inputs), self._settings.max_batch
        for start in range(0, max(rows, 1), most):
            yield {n: a[start : start + most] for n, a in inputs.items()} if rows > most else inputs

    def _compute(self, batch: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        together = batch[0] if len(batch) == 1 else {n: np.concatenate([one[n] for one in batch]) for n in batch[0]}
        names = [output.name for output in self._session.get_outputs()]
        try:
            arrays = self._session.run(names, dict(together))
        except Exception as error:
            if type(error).__name__ == "InvalidArgument":
                raise BadTensor(f"the network cannot be run on these values: {error}") from error
            raise
        if len(batch) == 1:
            return [dict(zip(names, arrays, strict=True))]
        ends = np.cumsum([self._rows(one) for one in batch])[:-1]
        parts = [np.split(array, ends) for array in arrays]
        return [dict(zip(names, part, strict=True)) for part in zip(*parts, strict=True)]


class Networks:
    """All versions of all models in the registry, by name and version."""

    def __init__(self, registry: Registry, settings: Settings, metrics: Metrics) -> None:
        self._models: dict[str, dict[str, Network]] = {}
        self._loading = Workers("load-network", 1)
        for path in (path for name in registry.names() for path in registry.versions(name).values()):
            try:
                manifest = TypeAdapter(Manifest).validate_json((path / MANIFEST).read_bytes())
            except (OSError, ValidationError) as error:
                log.warning("%s is left out: %s", path, error)
                continue
            if not manifest.has_network:
                continue
            network = Network(path, manifest, settings, metrics, self._loading)
            self._models.setdefault(manifest.name, {})[network.version] = network

    def names(self) -> list[str]:
        return sorted(self._models)

    def versions(self, name: str) -> list[str]:
        """The versions of a model, the oldest first."""
        return sorted(self._model(name), key=int)

    def find(self, name: str, version: str | None) -> Network:
        """A version of a model, the newest by default; refuses an unknown one with 404."""
        versions = self._model(name)
        chosen = version if version is not None else max(versions, key=int)
        if chosen not in versions:
            raise InvalidInputError(
                f"the model {name!r} has no version {chosen!r}; it has {', '.join(sorted(versions, key=int))}",
                status=404,
            )
        return versions[chosen]

    def all(self) -> list[Network]:
        return [network for versions in self._models.values() for network in versions.values()]

    def close(self) -> None:
        for network in self.all():
            network.close()
        self._loading.close()

    def _model(self, name: str) -> dict[str, Network]:
        if name not in self._models:
            raise InvalidInputError(
                f"there is no model {name!r}; there are {', '.join(self._models) or 'none'}", status=404
            )
        return self._models[name]


def join(parts: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    """The outputs of all rows, from those of some at a time."""
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
