"""One served application: its predictor behind a queue, its jobs, and its cases. Domain routes use this."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastapi.concurrency import run_in_threadpool

from shared.app import App
from shared.deploy.artifact import Artifact, Manifest
from shared.deploy.predictor import Request
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.serve.metrics import Metrics, ModelMetrics
from shared.serve.runtime.clock import AgeLimit
from shared.serve.runtime.job_runner import JobRunner
from shared.serve.runtime.limits import (
    Busy,
    DurationEstimate,
    RequestLimit,
    deadline_error,
    wait_until_loaded,
    within_deadline,
)
from shared.serve.runtime.loading import LoadOnce
from shared.serve.runtime.models import application_workers
from shared.serve.runtime.places import Place
from shared.serve.runtime.pool import WorkerPool
from shared.serve.runtime.threads import Threads
from shared.serve.samples import OfferedSamples
from shared.serve.settings import Settings
from shared.serve.upload_folders import INCOMING
from shared.serve.worker.messages import Message
from shared.store.cases import CaseStore
from shared.store.inputs import describe_inputs
from shared.store.jobs import Job, JobStore
from shared.store.records import Case, Origin, Outputs

log = logging.getLogger("trivium.serve")
_JOBS_RETRY_AFTER_S = 60
_DISK_SPACE_POLL_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class Model:
    """The workers that predict, and the manifests of the artifacts that they loaded, the default first."""

    workers: WorkerPool
    metrics: ModelMetrics
    manifests: tuple[Manifest, ...]

    def manifest(self, name: str | None) -> Manifest:
        """The manifest of the model that answered; the default if the answer names none."""
        return self.manifests[0] if name is None else next(m for m in self.manifests if m.name == name)


@dataclass(frozen=True, slots=True)
class Answer:
    """A stored case, and the bytes of its ``result.json``."""

    case: Case
    result: bytes


class Service:
    """One application: ``submit`` has its workers answer a request, and stores the answer as a case.

    The first request loads ``model``, with the artifacts that the registry has at that time. The first job loads
    ``job_model``, whose workers run at a lower CPU priority.
    """

    def __init__(self, app: App, registry: Registry, settings: Settings, store: CaseStore, metrics: Metrics) -> None:
        self.app, self.settings, self.store = app, settings, store
        self._registry, self._metrics = registry, metrics
        self.samples = OfferedSamples(app, registry)
        self._limit = RequestLimit(app.title, settings.request_limit, settings.deadline_s)
        self._jobs_limit = RequestLimit(f"{app.title} (jobs)", settings.request_limit)
        self._loading, self._storing = Threads(f"load-{app.name}", 1), Threads(f"store-{app.name}")
        self._storing_time, self._age_limit = DurationEstimate(), AgeLimit(app.name, settings.keep_days)
        self._closing_pools: set[asyncio.Task[None]] = set()
        self.model: LoadOnce[Model] = LoadOnce(
            app.title,
            load=self._load,
            check=lambda: registry.serving(app),
            close=lambda model: model.workers.close(),
            usable=lambda model: model.workers.usable,
        )
        self.job_model: LoadOnce[Model] = LoadOnce(
            f"{app.title} (jobs)",
            load=partial(self._load, for_jobs=True),
            check=lambda: registry.serving(app),
            close=lambda model: model.workers.close(),
        )
        self.jobs = JobStore(store.engine, store.folder, server=INCOMING, has_webhook=settings.webhook_url is not None)
        self.runner = JobRunner(app.name, self.jobs, self.run_job, exclusive=not store.shared)

    @property
    def manifests(self) -> list[Manifest]:
        """The manifests of the models that it predicts with, the default first; empty if one of them cannot be used.

        Until the predictor is loaded, these are the manifests that it would load, and this reads them from disk.
        """
        if (model := self.model.value) is not None:
            return list(model.manifests)
        try:
            return [artifact.manifest for artifact in self._registry.serving(self.app)]
        except InvalidInputError as refusal:
            log.warning("%s: %s", self.app.name, refusal)
            return []

    def check_room(self, group: str | None) -> None:
        """Raises ``Busy`` (503), counted as a rejected request, if a request of the group would not be admitted."""
        model = self.model.value
        with nullcontext() if model is None else model.metrics.failures():
            self._limit.check(group)

    @contextmanager
    def admit(self, group: str | None) -> Iterator[Place]:
        """Holds a place for a request of a group, from before its body is read to its answer. Raises ``Busy`` (503)."""
        with ExitStack() as stack:
            model = self.model.value
            with nullcontext() if model is None else model.metrics.failures():
                place = stack.enter_context(self._limit.admit(group))
            yield place

    def admit_job(self, group: str | None) -> AbstractContextManager[Place]:
        """Holds a place for a job of a group while it is submitted. Raises ``Busy`` (503).

        These places are separate from those of requests.
        """
        return self._jobs_limit.admit(group)

    async def submit(
        self,
        request: Request,
        origin: Origin,
        *,
        sample: str | None = None,
        folder: Path | None = None,
        arrived: float | None = None,
        stage: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answers an admitted request, and stores the case. If cancelled, it stores nothing.

        ``sample`` names a sample to predict on instead of files; its files are written to ``folder``. The deadline runs
        from ``arrived`` (of ``time.monotonic``; now by default) until the case is stored. ``stage`` is called with
        the name of each processing stage. Raises ``InvalidInputError`` for the input, and ``DeadlinePassed`` (504).
        """
        arrived = time.monotonic() if arrived is None else arrived
        deadline = arrived + self.settings.deadline_s
        model = await wait_until_loaded(self.model, deadline)
        if model.workers.closed and self.model.value is not None:
            model = self.model.value  # the model was replaced while this request waited for it
        with model.metrics.failures(), self._limit.computing(origin.group):
            return await self._answer(model, request, origin, sample, folder, arrived, deadline, stage)

    async def run_job(self, job: Job, stage: Callable[[str], None]) -> str:
        """Answers a job in the workers for jobs, and returns the id of its case. Raises as ``submit`` does."""
        arrived, folder = time.monotonic(), self.jobs.folder(job)
        seconds = self.settings.job_deadline_s
        files = tuple(folder / name for name in job.files)
        request = Request(files=files, options=job.options, seconds=seconds)
        self.job_model.on_stage = stage
        if self.job_model.stage is not None:
            stage(self.job_model.stage)  # of a load that an earlier job began
        model = await self.job_model.get()
        with model.metrics.failures():
            origin = Origin(job.interface, job.group)
            answer = await self._answer(model, request, origin, job.sample, folder, arrived, arrived + seconds, stage)
        await self._wait_for_space(answer.case, arrived + seconds, stage)
        return answer.case.id

    async def _wait_for_space(self, case: Case, deadline: float, stage: Callable[[str], None]) -> None:
        """Stores the answer of a job as soon as the disk has space: its client may not have read it yet."""
        max_bytes = self.settings.keep_bytes
        held: Case | None = case
        while held is not None and held.remark is not None and (max_bytes is None or held.bytes <= max_bytes):
            if time.monotonic() >= deadline:
                return
            stage("waiting for space on the disk")
            await asyncio.sleep(_DISK_SPACE_POLL_INTERVAL_S)
            held = await run_in_threadpool(self.store.keep_held, held)

    async def reload(self) -> None:
        """Replaces the loaded workers by new ones, with the artifacts that the registry has now.

        The old workers first answer the requests that they have. If the new ones cannot be loaded, the old ones stay,
        and the reason is raised.
        """
        for loading in (self.model, self.job_model):
            if (old := await loading.replace()) is not None:
                closing = asyncio.create_task(old.workers.drain_and_close())
                self._closing_pools.add(closing)
                closing.add_done_callback(self._closing_pools.discard)

    def loaded_versions(self, model: str) -> list[int] | None:
        """The versions of a model that it predicts with (may be empty); None if the application is not loaded."""
        if (loaded := self.model.value) is None:
            return None
        return [manifest.version for manifest in loaded.manifests if manifest.name == model]

    def needs(self, model: str) -> bool:
        """Whether it cannot predict without the model."""
        return model not in self.app.partners

    def check_room_for_jobs(self, group: str | None) -> None:
        """Raises ``Busy`` if the group has the maximum number of waiting jobs; None stands for jobs without a group."""
        if self.jobs.number_waiting(self.app.name, group) >= self.settings.max_jobs:
            of_group = "" if group is None else f" of the group {group}"
            raise Busy(self.app.title, f"the maximum number of jobs{of_group} (TRIVIUM_MAX_JOBS)", _JOBS_RETRY_AFTER_S)

    def check_model(self, model_name: str | None) -> None:
        """Raises ``InvalidInputError`` for a model of the application that this server does not predict with.

        The application itself checks any other value of its option ``model``.
        """
        loaded_names = [manifest.name for manifest in self.manifests if manifest.name not in self.app.partners]
        if loaded_names and model_name in self.app.models and model_name not in loaded_names:
            raise InvalidInputError(f"the model {model_name} is not loaded; loaded: {', '.join(loaded_names)}")

    async def _answer(
        self,
        model: Model,
        request: Request,
        origin: Origin,
        sample: str | None,
        folder: Path | None,
        arrived: float,
        deadline: float,
        stage: Callable[[str], None] | None,
    ) -> Answer:
        message = Message(
            {
                "files": [str(path) for path in request.files],
                "options": dict(request.options),
                "seconds": request.seconds,
                "sample": sample,
                "folder": None if folder is None else str(folder),
            }
        )
        finish_s = self._storing_time.upper_bound_s
        reply = await model.workers.answer(message, deadline, stage, finish_s=finish_s, group=origin.group)
        computed, waited_s = time.monotonic(), reply.head["waited_s"]
        async with within_deadline(
            deadline, lambda: deadline_error(self.app.title, waited_s, deadline - arrived - waited_s)
        ):
            keep = partial(self._keep, request, origin, reply, model)
            case = await self._storing.run_or_undo(keep, self.store.remove)
        done, head = time.monotonic(), reply.head
        self._storing_time.add(done - computed)
        model.metrics.observe_answer(
            request_s=done - arrived, input_s=head["input_s"], output_s=head["output_s"] + done - computed
        )
        return Answer(case, bytes(reply.blobs[0]))

    def case(self, case_id: str, group: str | None) -> Case:
        """The case, if the caller's ``group`` (as ``get_group`` returns it) may see it; raises 404 otherwise."""
        case = self.store.get(self.app.name, case_id, group)
        if case is None:
            raise InvalidInputError(f"{self.app.name} has no case {case_id!r}", status=404)
        return case

    async def file(self, case: Case, name: str, group: str | None = None) -> Path | bytes:
        """A file of a case: its path, or its bytes. A file that is generated on request is then stored.

        Generating it takes a place of the caller's ``group``, which may be None even if the case belongs to a group.

        Raises ``InvalidInputError``: 404 if the file is gone, or as ``submit`` does.
        """
        existing: Path | bytes | None = self.store.held_file(case, name)
        if existing is None:
            existing = await run_in_threadpool(self.store.file, case, name)
        if existing is not None:
            return existing
        try:
            sources = await run_in_threadpool(self.store.sources, case, name)
            if sources is None:
                raise InvalidInputError(f"the file {name!r} of case {case.id} is gone from the store", status=404)
            content = await self.make(name, sources, group)
        except InvalidInputError as error:
            # Another request may have stored the file meanwhile, which deletes the sources that no other file needs.
            stored = await run_in_threadpool(self.store.file, case, name) if error.status == 404 else None
            if stored is None:
                raise
            return stored
        await run_in_threadpool(self.store.keep, case, name, content)
        return content

    async def make(self, name: str, sources: Mapping[str, Path | bytes], group: str | None) -> bytes:
        """The file ``name`` that the codec generates from ``sources`` in a worker. Raises as ``submit`` does."""
        deadline = time.monotonic() + self.settings.deadline_s
        with self.admit(group):
            loaded_model = self.model.value or self.job_model.value  # either can generate files: avoid a load
            model = await wait_until_loaded(self.model, deadline) if loaded_model is None else loaded_model
            paths = {source: str(path) for source, path in sources.items() if isinstance(path, Path)}
            inline = {source: content for source, content in sources.items() if not isinstance(content, Path)}
            head = {"make": name, "paths": paths, "inline": list(inline)}
            reply = await model.workers.answer(Message(head, list(inline.values())), deadline, group=group)
        return bytes(reply.blobs[0])

    def expire(self) -> None:
        """Deletes the cases and jobs that exceed the retention limits in the settings."""
        app, days, settings = self.app.name, self._age_limit.days(), self.settings
        try:
            deleted = self.store.expire(app, days=days, number=settings.keep_cases, max_bytes=settings.keep_bytes)
            if days is not None:
                self.jobs.expire(app, days)
        except Exception:
            log.exception("cases and jobs of %s beyond the retention limits could not be deleted", app)
        else:
            if deleted:
                limits = "TRIVIUM_KEEP_DAYS, TRIVIUM_KEEP_CASES, TRIVIUM_KEEP_BYTES"
                log.info("deleted %d cases of %s (%s)", deleted, app, limits)

    def close(self) -> None:
        """Refuses the waiting requests and ends the workers, without waiting for either."""
        self.model.close()
        self.job_model.close()
        for closing in self._closing_pools:
            closing.cancel()
        self._loading.close()
        self._storing.close()

    def _keep(self, request: Request, origin: Origin, reply: Message, model: Model) -> Case:
        head, (result, picture, *rest) = reply.head, reply.blobs
        blobs = iter(rest)
        files, sources, inputs = ({name: next(blobs) for name in head[part]} for part in ("files", "sources", "inputs"))
        manifest = model.manifest(head["model"])
        case = self.store.add(
            app=self.app.name,
            interface=origin.interface,
            group=origin.group,
            inputs=describe_inputs([Path(path) for path in head["paths"]], self.app.kinds),
            options=request.options,
            artifact=(manifest.name, manifest.version),
            outputs=Outputs(
                result=result,
                picture=picture,
                files=files,
                later=head["later"],
                sources=sources,
                lasting=head["lasting"],
                inputs=inputs,
            ),
            max_bytes=self.settings.keep_bytes,
        )
        if self.settings.keep_cases is not None or self.settings.keep_bytes is not None:
            self.expire()
        return case

    def pools(self) -> list[WorkerPool]:
        """The loaded worker pools: the one for requests, and the one for jobs."""
        return [model.workers for model in (self.model.value, self.job_model.value) if model is not None]

    async def _load(self, for_jobs: bool = False) -> Model:
        settings = self.settings.with_one_worker() if for_jobs else self.settings
        artifacts: list[Artifact] = await self._loading.run(self._registry.serving, self.app)
        manifests = tuple(artifact.manifest for artifact in artifacts)
        # Jobs have their own metrics: they take hours, which would distort the latency and queue length of requests.
        name = f"{self.app.name} jobs" if for_jobs else self.app.name
        metrics = self._metrics.of(name, str(manifests[0].version))
        pool = WorkerPool(
            self.app.title,
            application_workers(self.app, [artifact.path for artifact in artifacts], settings, background=for_jobs),
            capacity=self.settings.request_limit,
            max_batch_s=settings.max_batch_s,
            metrics=metrics,
            on_loading=(self.job_model if for_jobs else self.model).report_stage,
        )
        await pool.start()
        return Model(pool, metrics, manifests)
