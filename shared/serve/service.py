"""One application as it is served: its predictor behind a queue, and its cases. Domain routes use this."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shared.app import App, Sample
from shared.deploy.artifact import Manifest
from shared.deploy.predictor import Codec, Decoded, Predictor, Request, Response
from shared.deploy.programs.choosing import asked_program
from shared.deploy.registry import Registry
from shared.device import choose_device
from shared.errors import InvalidInputError
from shared.serve.metrics import Metrics, ModelMetrics
from shared.serve.runtime.limits import RequestLimit, until
from shared.serve.runtime.queue import BatchQueue
from shared.serve.runtime.workers import LoadOnce, Workers
from shared.serve.settings import Settings
from shared.store.cases import CaseStore
from shared.store.disk import full_disk_named
from shared.store.inputs import describe_inputs
from shared.store.records import Case

log = logging.getLogger("trivium.serve")


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded predictor behind its queue, and the manifests of what it was loaded from, the default first."""

    codec: Codec[Any, Any]
    queue: BatchQueue[Decoded[Any], list[Any]]
    metrics: ModelMetrics
    manifests: tuple[Manifest, ...]

    def manifest(self, name: str | None) -> Manifest:
        """That of the model that answered, the default where the answer names none."""
        return self.manifests[0] if name is None else next(m for m in self.manifests if m.name == name)


class Service:
    """One application: ``submit`` takes a request through decode, queue, predict, encode and store.

    ``model`` is loaded by the first request that needs it, with the artifacts that the registry has then.
    """

    def __init__(self, app: App, registry: Registry, settings: Settings, store: CaseStore, metrics: Metrics) -> None:
        self.app, self.settings, self.store = app, settings, store
        self._registry, self._metrics = registry, metrics
        self._limit = RequestLimit(app.title, settings.request_limit, settings.deadline_s)
        self._loading = Workers(f"load-{app.name}", 1)
        # Each step has threads of its own: an answer waits neither for what came after it to be read, nor, once it is
        # encoded, for other answers to be.
        self.decoding, self._encoding = Workers(f"decode-{app.name}"), Workers(f"encode-{app.name}")
        self._storing = Workers(f"store-{app.name}")
        self.model: LoadOnce[Model] = LoadOnce(
            app.title,
            self._loading,
            load=self._load,
            check=lambda: registry.serving(app.name, app.models),
            close=lambda model: model.queue.close(),
        )

    @property
    def manifests(self) -> list[Manifest]:
        """The manifests of the models that it predicts with, the default first; empty where one cannot be used.

        Until the predictor is loaded, those that it would be loaded with: then this reads files.
        """
        if (model := self.model.value) is not None:
            return list(model.manifests)
        try:
            return [artifact.manifest for artifact in self._registry.serving(self.app.name, self.app.models)]
        except InvalidInputError as refusal:
            log.warning("%s: %s", self.app.name, refusal)
            return []

    def check_room(self) -> None:
        """Raises ``Busy`` (503), counted as a rejected request, where a request would not be admitted."""
        model = self.model.value
        with nullcontext() if model is None else model.metrics.failures():
            self._limit.check()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Counts one request while it is answered, from before its body is read. Raises ``Busy`` (503)."""
        with ExitStack() as stack:
            model = self.model.value
            with nullcontext() if model is None else model.metrics.failures():
                stack.enter_context(self._limit.admit())
            yield

    async def submit(self, request: Request, interface: str, *, arrived: float | None = None) -> Case:
        """Answers a request that was admitted, and keeps the case. When cancelled, nothing is kept.

        The deadline counts from ``arrived`` (of ``time.monotonic``), now by default, until the case is kept.
        Raises ``InvalidInputError``: for the input, or ``DeadlinePassed`` (504).
        """
        arrived = time.monotonic() if arrived is None else arrived
        deadline = arrived + self.settings.deadline_s
        async with until(deadline, self.app.title):
            model = await self.model.get()
        with model.metrics.failures(), self._without_personal_names(), self._limit.computing():
            began = time.monotonic()
            async with until(deadline, self.app.title):
                decoded = await self.decoding.run(model.codec.decode, request)
                read = time.monotonic()
                outputs = await model.queue.answer(decoded, deadline)
                computed = time.monotonic()
                response = await self._encoding.run(model.codec.encode, decoded, outputs)
                keep = partial(self._keep, request, interface, response, model.manifest(response.model))
                case = await self._storing.run_or_undo(keep, self.store.remove)
        done = time.monotonic()
        model.metrics.answered(request_s=done - arrived, input_s=read - began, output_s=done - computed)
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

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A folder for the files of one request, removed afterwards."""
        home = self.settings.store / "incoming"
        with full_disk_named("the upload cannot be taken"):
            home.mkdir(mode=0o700, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{self.app.name}-", dir=home))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def expire(self) -> None:
        """Deletes the cases that the settings do not let stay."""
        try:
            number = self.store.expire(self.app.name, days=self.settings.keep_days, number=self.settings.keep_cases)
        except Exception:
            log.exception("cases of %s that are too old could not be deleted", self.app.name)
        else:
            if number:
                log.info("deleted %d cases of %s (TRIVIUM_KEEP_DAYS, TRIVIUM_KEEP_CASES)", number, self.app.name)

    def close(self) -> None:
        """Refuses what waits, and waits for nothing."""
        self.model.close()
        for workers in (self._loading, self.decoding, self._encoding, self._storing):
            workers.close()

    @contextmanager
    def _without_personal_names(self) -> Iterator[None]:
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

    def _keep(self, request: Request, interface: str, response: Response, manifest: Manifest) -> Case:
        case = self.store.add(
            app=self.app.name,
            interface=interface,
            inputs=describe_inputs(request.files, self.app.kinds),
            options=request.options,
            artifact=(manifest.name, manifest.version),
            response=response,
        )
        if self.settings.keep_cases is not None:
            self.expire()
        return case

    def _load(self) -> Model:
        artifacts = self._registry.serving(self.app.name, self.app.models)
        device = choose_device(None if self.settings.device == "auto" else self.settings.device)
        with asked_program(self.settings.program):
            predictor = self.app.predictor(artifacts, device)
        manifests = tuple(artifact.manifest for artifact in artifacts)
        metrics = self._metrics.of(self.app.name, str(manifests[0].version))
        queue: BatchQueue[Decoded[Any], list[Any]] = BatchQueue(
            lambda batch: _predict_together(predictor, batch),
            name=self.app.title,
            capacity=self.settings.request_limit,
            max_batch=self.settings.max_batch,
            max_delay_s=self.settings.max_delay_ms / 1e3,
            metrics=metrics,
            kind=lambda decoded: decoded.options,
            size=lambda decoded: max(1, len(decoded.inputs)),
        )
        return Model(self.app.codec(predictor), queue, metrics, manifests)


def _predict_together(predictor: Predictor[Any, Any], batch: Sequence[Decoded[Any]]) -> list[list[Any]]:
    """The outputs of requests with equal options, those of each request by themselves."""
    inputs = [item for decoded in batch for item in decoded.inputs]
    outputs = predictor.predict(inputs, batch[0].options)
    if len(outputs) != len(inputs):
        raise RuntimeError(f"the predictor gave {len(outputs)} outputs to {len(inputs)} inputs")
    remaining = iter(outputs)
    return [[next(remaining) for _ in decoded.inputs] for decoded in batch]
