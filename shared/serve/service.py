"""One application as it is served: its predictor behind the queue, and its cases. Domain routes use this."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio.to_thread

from shared.app import App, Sample
from shared.deploy.artifact import Manifest
from shared.deploy.predictor import Predictor, Request
from shared.deploy.registry import Registry
from shared.refusal import Refusal
from shared.serve.batcher import Batcher, Busy, DeadlinePassed
from shared.serve.metrics import Metrics, ModelMetrics
from shared.serve.settings import Settings
from shared.store.cases import PICTURE, RESULT, Case, CaseStore, describe_inputs

log = logging.getLogger("trivium.serve")


class Service:
    """One application: ``submit`` takes a request through decode, queue, predict, encode and store.

    The predictor is loaded once, on the first request or by ``load``.
    """

    def __init__(self, app: App, registry: Registry, settings: Settings, store: CaseStore, metrics: Metrics) -> None:
        self.app, self.settings, self.store = app, settings, store
        self._registry = registry
        self._metrics = metrics
        self._lock = threading.Lock()
        self._loaded: tuple[Predictor[Any, Any], Batcher[Any, Any], ModelMetrics] | None = None
        self.failure: str | None = None
        # As many as may wait and are computed; each holds a thread, none of the server's own.
        self._room = settings.queue_length + settings.max_batch
        self._inside = 0
        self._inside_lock = threading.Lock()
        self._threads: anyio.CapacityLimiter | None = None

    @property
    def loaded(self) -> bool:
        """Whether the predictor is there already."""
        return self._loaded is not None

    @property
    def manifests(self) -> list[Manifest]:
        """The manifests of the models that it predicts with, the default first; empty where one cannot be used."""
        try:
            return [artifact.manifest for artifact in self._registry.serving(self.app)]
        except Refusal as refusal:
            log.warning("%s: %s", self.app.name, refusal)
            return []

    def load(self) -> None:
        """Loads the predictor where that has not been done. Raises ``Refusal`` (503) where it cannot be."""
        self._load()

    def submit(self, request: Request, door: str) -> Case:
        """Answers a request and keeps the case. Blocks; call it from a thread.

        Raises ``Refusal``: for the input, or ``Busy`` (503) or ``DeadlinePassed`` (504).
        """
        with self._admitted():
            return self._carry_out(request, door)

    async def submit_async(self, request: Request, door: str) -> Case:
        """Like ``submit``, without blocking the event loop."""
        with self._admitted():
            if self._threads is None:
                self._threads = anyio.CapacityLimiter(self._room)
            return await anyio.to_thread.run_sync(self._carry_out, request, door, limiter=self._threads)

    def sample(self, name: str) -> Sample:
        """The sample called ``name``; refuses an unknown one."""
        samples = {sample.name: sample for sample in self.app.samples()}
        if name not in samples:
            raise Refusal(f"{self.app.name} has no sample {name!r}; it has {', '.join(samples) or 'none at hand'}")
        return samples[name]

    def case(self, case_id: str) -> Case:
        """The case; refuses an unknown one with 404."""
        case = self.store.get(self.app.name, case_id)
        if case is None:
            raise Refusal(f"{self.app.name} has no case {case_id!r}", status=404)
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
        home.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{self.app.name}-", dir=home))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Refuses what waits."""
        with self._lock:
            if self._loaded is not None:
                self._loaded[1].close()

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        with self._inside_lock:
            if self._inside >= self._room:
                if self._loaded is not None:
                    self._loaded[2].failed(503)
                raise Busy(self.app.title)
            self._inside += 1
        try:
            yield
        finally:
            with self._inside_lock:
                self._inside -= 1

    def _carry_out(self, request: Request, door: str) -> Case:
        arrived = time.monotonic()
        deadline = arrived + self.settings.deadline_s
        predictor, batcher, metrics = self._load()
        try:
            began = time.monotonic()
            inputs = predictor.decode(request)
            decoded = time.monotonic()
            if decoded >= deadline:
                raise DeadlinePassed(self.app.title)
            outputs = batcher.answer(inputs, deadline)
            computed = time.monotonic()
            response = predictor.encode(outputs)
            manifest = self._registry.newest(response.model or self.app.models[0]).manifest
            case = self.store.add(
                app=self.app.name,
                door=door,
                inputs=describe_inputs(request.files),
                options=request.options,
                artifact=(manifest.name, manifest.version),
                response=response,
            )
        except Refusal as refusal:
            metrics.failed(refusal.status)
            raise
        except Exception:
            metrics.failed(500)
            raise
        done = time.monotonic()
        metrics.answered(request_s=done - arrived, input_s=decoded - began, output_s=done - computed)
        return case

    def _load(self) -> tuple[Predictor[Any, Any], Batcher[Any, Any], ModelMetrics]:
        with self._lock:
            if self._loaded is None:
                try:
                    artifacts = self._registry.serving(self.app)
                    predictor = self.app.predictor(artifacts, _device(self.settings.device))
                except Refusal as refusal:
                    self.failure = str(refusal)
                    raise Refusal(str(refusal), status=503) from refusal
                except Exception as error:
                    self.failure = f"{type(error).__name__}: {error}"
                    raise
                self.failure = None
                metrics = self._metrics.of(self.app.name, str(artifacts[0].manifest.version))
                batcher: Batcher[Any, Any] = Batcher(
                    predictor.predict,
                    name=self.app.title,
                    capacity=self.settings.queue_length,
                    max_batch=self.settings.max_batch,
                    max_delay_s=self.settings.max_delay_ms / 1e3,
                    metrics=metrics,
                )
                self._loaded = predictor, batcher, metrics
            return self._loaded


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
