"""One application as it is served: its predictor behind a queue, and its cases. Domain routes use this."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
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
from shared.serve.runtime.limits import Busy, RequestLimit, Spread, loaded, too_late, until
from shared.serve.runtime.loading import LoadOnce
from shared.serve.runtime.models import application_workers
from shared.serve.runtime.places import Place
from shared.serve.runtime.pool import WorkerPool
from shared.serve.runtime.threads import Threads
from shared.serve.samples import OfferedSamples
from shared.serve.settings import Settings
from shared.serve.worker.messages import Message
from shared.store.cases import CaseStore
from shared.store.disk import full_disk_named
from shared.store.inputs import describe_inputs
from shared.store.jobs import Job, JobStore
from shared.store.records import Case, Origin, Outputs

log = logging.getLogger("trivium.serve")
_UPLOADS_LEFT_S = 86_400.0
_JOBS_RETRY_S = 60
_SPACE_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Model:
    """The workers that predict, and the manifests of what they were loaded from, the default first."""

    workers: WorkerPool
    metrics: ModelMetrics
    manifests: tuple[Manifest, ...]

    def manifest(self, name: str | None) -> Manifest:
        """That of the model that answered, the default where the answer names none."""
        return self.manifests[0] if name is None else next(m for m in self.manifests if m.name == name)


INCOMING = f"incoming-{secrets.token_hex(4)}"
"""The folder of this server's uploads in its store, which others may share."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A kept case, and ``result.json`` as its bytes."""

    case: Case
    result: bytes


class Service:
    """One application: ``submit`` takes a request through its workers and keeps what they answer.

    ``model`` is loaded by the first request that needs it, with the artifacts that the registry has then;
    ``job_model``, whose workers leave the processor to others, by the first job.
    """

    def __init__(self, app: App, registry: Registry, settings: Settings, store: CaseStore, metrics: Metrics) -> None:
        self.app, self.settings, self.store = app, settings, store
        self._registry, self._metrics = registry, metrics
        self.samples = OfferedSamples(app, registry)
        self._limit = RequestLimit(app.title, settings.request_limit, settings.deadline_s)
        self._jobs_limit = RequestLimit(f"{app.title} (jobs)", settings.request_limit)
        self._loading, self._storing = Threads(f"load-{app.name}", 1), Threads(f"store-{app.name}")
        self._kept, self._age_limit = Spread(), AgeLimit(app.name, settings.keep_days)
        self._ending: set[asyncio.Task[None]] = set()
        self.model: LoadOnce[Model] = LoadOnce(
            app.title,
            load=self._load,
            check=lambda: registry.serving(app),
            close=lambda model: model.workers.close(),
            usable=lambda model: model.workers.usable,
        )
        self.job_model: LoadOnce[Model] = LoadOnce(
            f"{app.title} (jobs)",
            load=partial(self._load, alone=True),
            check=lambda: registry.serving(app),
            close=lambda model: model.workers.close(),
        )
        self.jobs = JobStore(store.engine, store.folder, server=INCOMING, told=settings.webhook_url is not None)
        self.runner = JobRunner(app.name, self.jobs, self.run_job, alone=not store.shared)

    @property
    def manifests(self) -> list[Manifest]:
        """The manifests of the models that it predicts with, the default first; empty where one cannot be used.

        Until the predictor is loaded, those that it would be loaded with: then this reads files.
        """
        if (model := self.model.value) is not None:
            return list(model.manifests)
        try:
            return [artifact.manifest for artifact in self._registry.serving(self.app)]
        except InvalidInputError as refusal:
            log.warning("%s: %s", self.app.name, refusal)
            return []

    def check_room(self, group: str | None) -> None:
        """Raises ``Busy`` (503), counted as a rejected request, where a request of the group would not be admitted."""
        model = self.model.value
        with nullcontext() if model is None else model.metrics.failures():
            self._limit.check(group)

    @contextmanager
    def admit(self, group: str | None) -> Iterator[Place]:
        """Gives a request of a group its place, from before its body is read to its answer. Raises ``Busy`` (503)."""
        with ExitStack() as stack:
            model = self.model.value
            with nullcontext() if model is None else model.metrics.failures():
                place = stack.enter_context(self._limit.admit(group))
            yield place

    @contextmanager
    def admit_job(self, group: str | None) -> Iterator[Place]:
        """Gives a group's job its place while it is handed in, whoever waits for an answer. Raises ``Busy`` (503)."""
        with self._jobs_limit.admit(group) as place:
            yield place

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
        """Answers a request that was admitted, and keeps the case. When cancelled, nothing is kept.

        ``sample`` names what to predict on instead of files; it is made in ``folder``. The deadline counts from
        ``arrived`` (of ``time.monotonic``), now by default, until the case is kept. ``stage`` is told what is done.
        Raises ``InvalidInputError``: for the input, or ``DeadlinePassed`` (504).
        """
        arrived = time.monotonic() if arrived is None else arrived
        deadline = arrived + self.settings.deadline_s
        model = await loaded(self.model, deadline)
        if model.workers.closed and self.model.value is not None:
            model = self.model.value  # it was replaced while this waited for it
        with model.metrics.failures(), self._limit.computing(origin.group):
            return await self._answer(model, request, origin, sample, folder, arrived, deadline, stage)

    async def run_job(self, job: Job, stage: Callable[[str], None]) -> str:
        """Answers a job in a worker of its own, and returns its case's id. Raises as ``submit`` does."""
        arrived, folder = time.monotonic(), self.jobs.folder(job)
        seconds = self.settings.job_deadline_s
        files = tuple(folder / name for name in job.files)
        request = Request(files=files, options=job.options, seconds=seconds)
        if self.job_model.value is None:
            stage("loading the model")
        model = await self.job_model.get()
        with model.metrics.failures():
            origin = Origin(job.interface, job.group)
            answer = await self._answer(model, request, origin, job.sample, folder, arrived, arrived + seconds, stage)
        await self._wait_for_space(answer.case, arrived + seconds, stage)
        return answer.case.id

    async def _wait_for_space(self, case: Case, deadline: float, stage: Callable[[str], None]) -> None:
        """Keeps the answer of a job as soon as the disk has space for it: nobody may have read it before."""
        most = self.settings.keep_bytes
        held: Case | None = case
        while held is not None and held.remark is not None and (most is None or held.bytes <= most):
            if time.monotonic() >= deadline:
                return
            stage("waiting for space on the disk")
            await asyncio.sleep(_SPACE_AGAIN_S)
            held = await run_in_threadpool(self.store.keep_held, held)

    async def reload(self) -> None:
        """Has new workers take the place of those that are loaded, with the artifacts that the registry has now.

        The old ones answer what they were given first. Where the new cannot be loaded, the old go on; raises why.
        """
        for loading in (self.model, self.job_model):
            if (old := await loading.replace()) is not None:
                ending = asyncio.create_task(old.workers.end())
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

    def loaded_versions(self, model: str) -> list[int] | None:
        """The versions of a model that it predicts with, none where it does without; None where it is not loaded."""
        if (loaded := self.model.value) is None:
            return None
        return [manifest.version for manifest in loaded.manifests if manifest.name == model]

    def needs(self, model: str) -> bool:
        """Whether it cannot predict without a version of the model."""
        return model not in self.app.partners

    def check_room_for_jobs(self, group: str | None) -> None:
        """Raises ``Busy`` where as many jobs of a group wait as may; of None those without a group."""
        if self.jobs.number_waiting(self.app.name, group) >= self.settings.max_jobs:
            whose = "" if group is None else f" of the group {group}"
            raise Busy(self.app.title, f"as many jobs{whose} as it may keep (TRIVIUM_MAX_JOBS)", _JOBS_RETRY_S)

    def check_model(self, asked: str | None) -> None:
        """Refuses a model of the application that it does not predict with here, as an imported one that is not there.

        What else an option ``model`` may say is the application's matter.
        """
        there = [manifest.name for manifest in self.manifests if manifest.name not in self.app.partners]
        if there and asked in self.app.models and asked not in there:
            raise InvalidInputError(f"the model {asked} is not loaded; loaded: {', '.join(there)}")

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
        finish_s = self._kept.bound_s
        reply = await model.workers.answer(message, deadline, stage, finish_s=finish_s, group=origin.group)
        computed, waited_s = time.monotonic(), reply.head["waited_s"]
        async with until(deadline, lambda: too_late(self.app.title, waited_s, deadline - arrived - waited_s)):
            keep = partial(self._keep, request, origin, reply, model)
            case = await self._storing.run_or_undo(keep, self.store.remove)
        done, head = time.monotonic(), reply.head
        self._kept.add(done - computed)
        model.metrics.answered(
            request_s=done - arrived, input_s=head["input_s"], output_s=head["output_s"] + done - computed
        )
        return Answer(case, bytes(reply.blobs[0]))

    def case(self, case_id: str, group: str | None) -> Case:
        """The case, of a ``group`` (that of who asks, as ``get_group`` has it) one of its own; refuses others (404)."""
        case = self.store.get(self.app.name, case_id, group)
        if case is None:
            raise InvalidInputError(f"{self.app.name} has no case {case_id!r}", status=404)
        return case

    async def file(self, case: Case, name: str, group: str | None = None) -> Path | bytes:
        """A file of a case: where it lies, or its bytes. One that is asked for the first time is made, and kept.

        It is made in a place of the ``group`` of who asks, which may be none though the case is of one.

        Raises ``InvalidInputError``: 404 where it is gone, or as ``submit`` does.
        """
        found: Path | bytes | None = self.store.unkept.content(case.id, name)
        if found is None:
            found = await run_in_threadpool(self.store.file, case, name)
        if found is not None:
            return found
        sources = await run_in_threadpool(self.store.sources, case, name)
        if sources is None:
            raise InvalidInputError(f"the file {name!r} of case {case.id} is gone from the store", status=404)
        made = await self.make(name, sources, group)
        await run_in_threadpool(self.store.keep, case, name, made)
        return made

    async def make(self, name: str, sources: Mapping[str, Path | bytes], group: str | None) -> bytes:
        """What the application's codec makes of ``sources`` in a worker, for a group. Raises as ``submit`` does."""
        deadline = time.monotonic() + self.settings.deadline_s
        with self.admit(group):
            there = self.model.value or self.job_model.value  # the one that is loaded draws at once
            model = await loaded(self.model, deadline) if there is None else there
            paths = {one: str(place) for one, place in sources.items() if isinstance(place, Path)}
            inline = {one: content for one, content in sources.items() if not isinstance(content, Path)}
            head = {"make": name, "paths": paths, "inline": list(inline)}
            reply = await model.workers.answer(Message(head, list(inline.values())), deadline, group=group)
        return bytes(reply.blobs[0])

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A folder for the files of one request, removed afterwards."""
        home = self.settings.store / INCOMING
        with full_disk_named("the upload cannot be taken"):
            home.mkdir(mode=0o700, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{self.app.name}-", dir=home))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def expire(self) -> None:
        """Deletes the cases that the settings do not let stay."""
        days, settings = self._age_limit.days(), self.settings
        try:
            number = self.store.expire(
                self.app.name, days=days, number=settings.keep_cases, most_bytes=settings.keep_bytes
            )
            if days is not None:
                self.jobs.expire(self.app.name, days)
        except Exception:
            log.exception("cases of %s that are too old could not be deleted", self.app.name)
        else:
            if number:
                why = "TRIVIUM_KEEP_DAYS, TRIVIUM_KEEP_CASES, TRIVIUM_KEEP_BYTES"
                log.info("deleted %d cases of %s (%s)", number, self.app.name, why)

    def close(self) -> None:
        """Refuses what waits, and waits for nothing."""
        self.model.close()
        self.job_model.close()
        for ending in self._ending:
            ending.cancel()
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
            most_bytes=self.settings.keep_bytes,
        )
        if self.settings.keep_cases is not None or self.settings.keep_bytes is not None:
            self.expire()
        return case

    def pools(self) -> list[WorkerPool]:
        """The workers that are loaded: those that answer, and those of jobs."""
        return [model.workers for model in (self.model.value, self.job_model.value) if model is not None]

    async def _load(self, alone: bool = False) -> Model:
        settings = self.settings
        if alone:
            settings = settings.with_one_worker()
        artifacts: list[Artifact] = await self._loading.run(self._registry.serving, self.app)
        manifests = tuple(artifact.manifest for artifact in artifacts)
        # Jobs are counted apart: their hours say nothing of how long a request takes, nor their queue of who waits.
        name = f"{self.app.name} jobs" if alone else self.app.name
        metrics = self._metrics.of(name, str(manifests[0].version))
        pool = WorkerPool(
            self.app.title,
            application_workers(self.app, [artifact.path for artifact in artifacts], settings, background=alone),
            capacity=self.settings.request_limit,
            longest_batch_s=settings.max_batch_s,
            metrics=metrics,
        )
        await pool.start()
        return Model(pool, metrics, manifests)


def remove_uploads_left(store: Path, alone: bool) -> None:
    """Removes what servers that were killed had not finished receiving: all of it, or where others share it the old."""
    for left in store.glob("incoming*"):
        with suppress(FileNotFoundError):
            if alone or time.time() - left.stat().st_mtime > _UPLOADS_LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
