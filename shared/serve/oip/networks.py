"""The dense networks of the artifacts, run by ONNX Runtime as models of the Open Inference Protocol."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from shared.deploy.artifact import MANIFEST, Manifest, TensorSpec, open_artifact
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.serve.metrics import Metrics
from shared.serve.oip.codec import DTYPES, Array, BadTensor
from shared.serve.runtime.limits import MemoryLimit, RequestLimit
from shared.serve.runtime.queue import BatchQueue
from shared.serve.runtime.workers import LoadOnce, Workers
from shared.serve.settings import Settings

log = logging.getLogger("trivium.serve")
Arrays = Mapping[str, Array]
_BODIES_IN_MEMORY = 4
_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "auto": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}


class OnnxNetwork:
    """A network in ONNX Runtime, which computes requests of any number of rows together where axis 0 is a batch."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._symbols: dict[str, list[str | int]] = {tensor.name: tensor.shape for tensor in session.get_inputs()}
        tensors = [*session.get_inputs(), *session.get_outputs()]
        first = {tensor.shape[0] if tensor.shape else None for tensor in tensors}
        # Axis 0 of every input and output is one and the same named size.
        self._batched = len(first) == 1 and isinstance(next(iter(first)), str)

    def check(self, inputs: Arrays) -> None:
        """Refuses inputs in which one named size (as ``batch``) has two values, and empty ones but for zero rows.

        ONNX Runtime's kernels are not made for empty tensors: an LSTM on one ends the process.
        """
        seen: dict[str, tuple[str, int]] = {}
        for name, array in inputs.items():
            for axis, length in enumerate(array.shape):
                if length == 0 and not (self._batched and axis == 0):
                    raise BadTensor(f"the input {name!r} has size 0 in axis {axis}; it must have at least 1")
            for symbol, length in zip(self._symbols[name], array.shape, strict=True):
                if isinstance(symbol, str):
                    other, expected = seen.setdefault(symbol, (name, length))
                    if length != expected:
                        raise BadTensor(
                            f"the size {symbol!r} is {expected} in the input {other!r} and {length} in {name!r}"
                        )

    def kind(self, inputs: Arrays) -> object:
        """What may be computed together: inputs that differ only in their number of rows."""
        return tuple((name, inputs[name].shape[1:]) for name in sorted(inputs)) if self._batched else object()

    def rows(self, inputs: Arrays) -> int:
        """How many rows the inputs have; 1 where there is no batch axis."""
        return int(next(iter(inputs.values())).shape[0]) if self._batched and inputs else 1

    def split(self, inputs: Arrays, most: int) -> Iterator[Arrays]:
        """The inputs in parts of at most so many rows."""
        rows = self.rows(inputs)
        for start in range(0, max(rows, 1), most):
            yield {n: a[start : start + most] for n, a in inputs.items()} if rows > most else inputs

    def compute(self, batch: Sequence[Arrays]) -> list[dict[str, Array]]:
        """All outputs for each of the inputs, computed together."""
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
        ends = np.cumsum([self.rows(one) for one in batch])[:-1]
        parts = [np.split(array, ends) for array in arrays]
        return [dict(zip(names, part, strict=True)) for part in zip(*parts, strict=True)]


@dataclass(frozen=True, slots=True)
class _QueuedNetwork:
    network: OnnxNetwork
    queue: BatchQueue[Arrays, dict[str, Array]]


class NetworkModel:
    """One version of a model. The network is loaded on the first request, its files checked against their digests."""

    def __init__(self, path: Path, manifest: Manifest, settings: Settings, metrics: Metrics, loading: Workers) -> None:
        self.manifest = manifest
        self.limit = RequestLimit(f"the model {manifest.name}", settings.request_limit, settings.deadline_s)
        self.metrics = metrics.of(manifest.name, str(manifest.version))
        self.model: LoadOnce[_QueuedNetwork] = LoadOnce(
            f"the model {manifest.name}",
            loading,
            load=self._load,
            check=lambda: open_artifact(path),
            close=lambda loaded: loaded.queue.close(),
        )
        self._path, self._settings = path, settings

    @property
    def version(self) -> str:
        """The version, as the protocol writes it."""
        return str(self.manifest.version)

    def check_room(self) -> None:
        """Raises ``Busy`` (503), counted as a rejected request, where a request would not be admitted."""
        with self.metrics.failures():
            self.limit.check()

    async def infer(self, inputs: Arrays, deadline: float) -> list[dict[str, Array]]:
        """All outputs of the network, in parts of at most ``max_batch`` rows. Raises ``InvalidInputError``.

        What a network needs while it computes grows with its rows; and between the parts others have their turn.
        For no rows the network is not run.
        """
        loaded = await self.model.get()
        loaded.network.check(inputs)
        if loaded.network.rows(inputs) == 0:
            return [_without_rows(self.manifest.outputs)]
        parts = loaded.network.split(inputs, self._settings.max_batch)
        return [await loaded.queue.answer(part, deadline) for part in parts]

    def _load(self) -> _QueuedNetwork:
        network = OnnxNetwork(self._open_session())
        queue: BatchQueue[Arrays, dict[str, Array]] = BatchQueue(
            network.compute,
            name=self.model.what,
            capacity=self._settings.request_limit,
            max_batch=self._settings.max_batch,
            max_delay_s=self._settings.max_delay_ms / 1e3,
            metrics=self.metrics,
            kind=network.kind,
            size=network.rows,
        )
        return _QueuedNetwork(network, queue)

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


class Networks:
    """All versions of all models in the registry, by name and version.

    ``readers`` and ``writers`` turn bodies into tensors and back; ``memory`` bounds the bodies of all requests.
    """

    def __init__(self, registry: Registry, settings: Settings, metrics: Metrics) -> None:
        self._models: dict[str, dict[str, NetworkModel]] = {}
        self.settings = settings
        self.readers, self.writers = Workers("read-tensors"), Workers("write-tensors")
        self.memory = MemoryLimit("the Open Inference Protocol", _BODIES_IN_MEMORY * settings.max_tensor_bytes)
        self._loading = Workers("load-network", 1)
        for path in (path for name in registry.names() for path in registry.versions(name).values()):
            try:
                manifest = TypeAdapter(Manifest).validate_json((path / MANIFEST).read_bytes())
            except (OSError, ValidationError) as error:
                log.warning("%s is left out: %s", path, error)
                continue
            if not manifest.has_network:
                continue
            network = NetworkModel(path, manifest, settings, metrics, self._loading)
            self._models.setdefault(manifest.name, {})[network.version] = network

    def names(self) -> list[str]:
        """The models that there are."""
        return sorted(self._models)

    def versions(self, name: str) -> list[str]:
        """The versions of a model, the oldest first."""
        return sorted(self._versions(name), key=int)

    def find(self, name: str, version: str | None) -> NetworkModel:
        """A version of a model, the newest by default; refuses an unknown one with 404."""
        versions = self._versions(name)
        chosen = version if version is not None else max(versions, key=int)
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
        self.readers.close()
        self.writers.close()

    def _versions(self, name: str) -> dict[str, NetworkModel]:
        if name not in self._models:
            raise InvalidInputError(
                f"there is no model {name!r}; there are {', '.join(self._models) or 'none'}", status=404
            )
        return self._models[name]


def _without_rows(outputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The outputs for inputs of zero rows; refuses where another axis than the first has no fixed size."""
    for spec in outputs:
        if -1 in spec.shape[1:]:
            raise BadTensor(f"the inputs have no rows, and the shape of the output {spec.name!r} depends on them")
    return {spec.name: np.empty((0, *spec.shape[1:]), DTYPES[spec.datatype]) for spec in outputs}


def concatenate(parts: Sequence[Arrays]) -> Arrays:
    """The outputs of all rows, from those of some at a time."""
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
