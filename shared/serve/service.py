"""One application as it is served: its predictor behind the queue, and its cases. Domain routes use this."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shared.app import App, Sample
from shared.deploy.artifact import Manifest
from shared.deploy.predictor import Codec, Decoded, Predictor, Request, Response, with_codec
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.serve.admission import Places, Workers
from shared.serve.batcher import Batcher
from shared.serve.metrics import Metrics, ModelMetrics
from shared.serve.settings import Settings
from shared.serve.waiting import before
from shared.store.cases import PICTURE, RESULT, Case, CaseStore, describe_inputs

log = logging.getLogger("trivium.serve")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A predictor, and the manifests of the models that it was made of, the default first."""

    predictor: Predictor[Any, Any]
    codec: Codec[Any, Any]
    batcher: Batcher[Any, Any]
    metrics: ModelMetrics
    manifests: tuple[Manifest, ...]

    def manifest(self, model: str | None) -> Manifest:
        """That of the model that answered, the default where the answer names none."""
        return self.manifests[0] if model is None else next(m for m in self.manifests if m.name == model)


class Service:
    """One application: ``submit`` takes a request through decode, queue, predict, encode and store.

    The predictor is loaded once, on the first request or by ``load``, with the artifacts that the registry has then.
    """

    def __init__(self, app: App, registry: Registry, settings: Settings, store: CaseStore, metrics: Metrics) -> None:
        self.app, self.settings, self.store = app, settings, store
        self._registry = registry
        self._metrics = metrics
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._closed = False
        self.failure: str | None = None
        self._places = Places(app.title, settings.places)
        self._loading = Workers(f"load-{app.name}", 1)
        # Answers have threads of their own, so that they need not wait for what came after them to be read.
        self.decoding, self._encoding = Workers(f"decode-{app.name}"), Workers(f"encode-{app.name}")

    @property
    def what(self) -> str:
        """What it is called in sentences."""
        return self.app.title

    @property
    def loaded(self) -> bool:
        """Whether the predictor is there already."""
        return self._loaded is not None

    @property
    def manifests(self) -> list[Manifest]:
        """The manifests of the models that it predicts with, the default first; empty where one cannot be used.

        Until the predictor is loaded, those that it would be loaded with: then this reads files.
        """
        if self._loaded is not None:
            return list(self._loaded.manifests)
        try:
            return [artifact.manifest for artifact in self._registry.serving(self.app.name, self.app.models)]
        except InvalidInputError as refusal:
            log.warning("%s: %s", self.app.name, refusal)
            return []

    def look(self) -> None:
        """Opens the artifacts without loading the predictor. Raises ``InvalidInputError`` where they cannot be used."""
        self._registry.serving(self.app.name, self.app.models)

    def load(self) -> None:
        """Loads the predictor where that has not been done. Raises ``InvalidInputError`` (503) where it cannot be."""
        self._load()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, to be taken before its body is read. Raises ``Busy`` (503)."""
        with ExitStack() as stack:
            with nullcontext() if self._loaded is None else self._loaded.metrics.failures():
                stack.enter_context(self._places.one())
            yield

    async def submit(self, request: Request, door: str) -> Case:
        """Answers a request that has a place, and keeps the case. When cancelled, nothing is kept.

        Raises ``InvalidInputError``: for the input, or ``DeadlinePassed`` (504).
        """
        arrived = time.monotonic()
        deadline = arrived + self.settings.deadline_s
        async with before(deadline, self.app.title):
            loaded = self._loaded if self._loaded is not None else await self._loading.run(self._load)
        with loaded.metrics.failures():
            began = time.monotonic()
            with self._names_withheld():
                async with before(deadline, self.app.title):
                    decoded = await self.decoding.run(loaded.codec.decode, request)
                    read = time.monotonic()
                    outputs = await loaded.batcher.answer(decoded, deadline)
                computed = time.monotonic()
                response = await self._encoding.run(loaded.codec.encode, decoded, outputs)
                case = await self._encoding.run(self._keep, request, door, response, loaded.manifest(response.model))
        done = time.monotonic()
        loaded.metrics.answered(request_s=done - arrived, input_s=read - began, output_s=done - computed)
        return case

    def sample(self, name: str) -> Sample:
        """The sample called ``name``; refuses an unknown one."""
        samples = {sample.name: sample for sample in self.app.samples()}
        if name not in samples:
            raise InvalidInputError(
                f"{self.app.name} has no sample {name!r}; it has {', '.join(samples) or 'none at hand'}"
            )
        return samples[name]

    def case(self, case_id: str) -> Case:
        """The case; refuses an unknown one with 404."""
        case = self.store.get(self.app.name, case_id)
        if case is None:
            raise InvalidInputError(f"{self.app.name} has no case {case_id!r}", status=404)
        return case

    def describe(self, case: Case) -> dict[str, Any]:
        """The case in JSON types, as the routes answer it."""
        home = f"/api/{self.app.name}/cases/{case.id}"
        return {
            "case": case.id,
            "app": case.app,
            "created": case.created,
            "door": case.door,
            "inputs": [{"name": item.name, "bytes": item.bytes, "sha256": item.sha256} for item in case.inputs],
            "inputs_sha256": case.inputs_sha256,
            "options": dict(case.options),
            "artifact": {"name": case.artifact_name, "version": case.artifact_version},
            "result": case.result,
            "picture": f"{home}/{PICTURE}",
            "files": {name: f"{home}/files/{quote(name)}" for name in (RESULT, *case.files)},
        }

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A folder for the files of one request, removed afterwards."""
        home = self.settings.store / "incoming"
        home.mkdir(mode=0o700, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{self.app.name}-", dir=home))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Refuses what waits, and waits for nothing."""
        self._closed = True
        if self._loaded is not None:
            self._loaded.batcher.close()
        for workers in (self._loading, self.decoding, self._encoding):
            workers.close()

    @contextmanager
    def _names_withheld(self) -> Iterator[None]:
        """Takes the words out of an unexpected error, which goes to the log, where names may be those of persons."""
        try:
            yield
        except InvalidInputError:
            raise
        except Exception as error:
            if self.app.kinds is None:
                raise
            withheld = RuntimeError(f"{type(error).__name__}; its words are withheld, for they may name a person")
            raise withheld.with_traceback(error.__traceback__) from None

    def _keep(self, request: Request, door: str, response: Response, manifest: Manifest) -> Case:
        return self.store.add(
            app=self.app.name,
            door=door,
            inputs=describe_inputs(request.files, self.app.kinds),
            options=request.options,
            artifact=(manifest.name, manifest.version),
            response=response,
        )

    def _load(self) -> _Loaded:
        with self._lock:
            if self._loaded is None:
                try:
                    artifacts = self._registry.serving(self.app.name, self.app.models)
                    predictor, codec = with_codec(
                        self.app, self.app.predictor(artifacts, _device(self.settings.device))
                    )
                except InvalidInputError as refusal:
                    self.failure = str(refusal)
                    raise InvalidInputError(str(refusal), status=503) from refusal
                except Exception as error:
                    self.failure = f"{type(error).__name__}: {error}"
                    raise
                manifests = tuple(artifact.manifest for artifact in artifacts)
                metrics = self._metrics.of(self.app.name, str(manifests[0].version))
                batcher: Batcher[Decoded[Any], list[Any]] = Batcher(
                    lambda batch: _predict_together(predictor, batch),
                    name=self.app.title,
                    capacity=self.settings.places,
                    max_batch=self.settings.max_batch,
                    max_delay_s=self.settings.max_delay_ms / 1e3,
                    metrics=metrics,
                    kind=lambda decoded: decoded.options,
                    size=lambda decoded: max(1, len(decoded.inputs)),
                )
                self._loaded, self.failure = _Loaded(predictor, codec, batcher, metrics, manifests), None
                if self._closed:
                    batcher.close()
            return self._loaded


def _predict_together(predictor: Predictor[Any, Any], batch: Sequence[Decoded[Any]]) -> list[list[Any]]:
    """The outputs of requests with equal options, those of each request by themselves."""
    outputs = iter(predictor.predict([one for decoded in batch for one in decoded.inputs], batch[0].options))
    return [[next(outputs) for _ in decoded.inputs] for decoded in batch]


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
