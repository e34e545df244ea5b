"""Jobs: predictions that take longer than a client wants to wait. Accepted with 202, followed by events, kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from shared.errors import InvalidInputError
from shared.serve.api.deps import BeforeDep, JobFolderDep, JobUploadDep, LimitDep, OriginDep, ServiceDep
from shared.serve.api.predict import check_upload
from shared.serve.api.schemas import JobAnswer, Jobs, PredictForm, Problem
from shared.serve.known_keys import GroupDep
from shared.serve.middleware.draining import Drain
from shared.serve.openapi import content, header, request_body
from shared.serve.service import Service
from shared.store.disk import full_disk_named
from shared.store.jobs import Job, NewJob
from shared.store.records import Origin

_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such job"}}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: content("text/event-stream"),
    429: {"model": Problem, "description": "This client follows as many jobs as it may; see Retry-After"},
    503: {"model": Problem, "description": "As many jobs are followed as can be; see Retry-After"},
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    202: {"headers": header("Location", "the address of the job, as `url` in the answer")},
    400: {"model": Problem, "description": "The form cannot be read"},
    408: {"model": Problem, "description": "The upload stopped"},
    409: {"model": Problem, "description": "The same job is being handed in under this key"},
    413: {"model": Problem, "description": "Too large"},
    415: {"model": Problem, "description": "Not a form"},
    503: {"model": Problem, "description": "There are too many jobs already; see Retry-After"},
    507: {"model": Problem, "description": "The disk is full"},
}
_KEY = "the same key with the same form answers with the job that is there already, so that a client may ask again"
router = APIRouter(prefix="/jobs")


def get_job(service: ServiceDep, job_id: str, group: GroupDep) -> Job:
    """The job that the path names; 404 where there is none that who asks may see."""
    job = service.jobs.get(service.app.name, job_id, group)
    if job is None:
        raise InvalidInputError(f"{service.app.name} has no job {job_id!r}", status=404)
    return job


JobDep = Annotated[Job, Depends(get_job)]


async def get_stream_place(request: Request, group: GroupDep) -> AsyncIterator[None]:
    """The place of a stream of events until it ends; refuses (429, 503) where there is none."""
    client = request.client.host if request.client is not None else "local"
    with request.app.state.event_streams.take(client, group):
        yield


@router.post(
    "",
    status_code=202,
    responses=_PROBLEMS,
    openapi_extra=request_body("multipart/form-data", PredictForm),
)
async def add_job(
    response: Response,
    service: ServiceDep,
    upload: JobUploadDep,
    folder: JobFolderDep,
    origin: OriginDep,
    idempotency_key: Annotated[str | None, Header(description=_KEY)] = None,
) -> JobAnswer:
    """Accepts a prediction, as `predict` takes it, and answers at once; its address says how far it is.

    Options that `predict` refuses whatever the files, models that are not loaded, and unknown samples are refused here
    as well.
    """
    check_upload(upload)
    job = await run_in_threadpool(_add, service, upload.files, upload.fields, folder, origin, idempotency_key)
    service.runner.wake()
    answer = JobAnswer.of(job, service.settings.root)
    response.headers["Location"] = answer.url
    return answer


def _add(
    service: Service, files: list[Path], fields: dict[str, str], folder: Path, origin: Origin, key: str | None
) -> Job:
    options, app = {name: value for name, value in fields.items() if name != "sample"}, service.app.name
    job = NewJob(app=app, origin=origin, files=files, options=options, sample=fields.get("sample"))
    identifier = job.identifier(key) if key else None
    if identifier is not None and (known := service.jobs.get(app, identifier)) is not None:
        return known
    service.check_room_for_jobs(origin.group)
    if service.app.read_options is not None:
        service.app.read_options(options)
    service.check_model(options.get("model"))
    if job.sample is not None:
        service.samples.get(job.sample)
    with full_disk_named("the job cannot be taken"):
        return service.jobs.add(job, folder, identifier)


@router.get("", responses=_MISSING)
def jobs(service: ServiceDep, group: GroupDep, limit: LimitDep = 20, before: BeforeDep = None) -> Jobs:
    """The newest jobs, or those that came before one."""
    found = service.jobs.recent(service.app.name, limit, before, group)
    return Jobs(jobs=[JobAnswer.of(job, service.settings.root) for job in found])


@router.get("/{job_id}", responses=_MISSING)
def job(service: ServiceDep, job: JobDep) -> JobAnswer:
    """How far a job is; `case` is the address of its answer once it is done."""
    return JobAnswer.of(job, service.settings.root)


@router.delete("/{job_id}", responses=_MISSING)
async def cancel_job(service: ServiceDep, job: JobDep) -> JobAnswer:
    """Cancels a job, and stops what computes it; one that has ended stays as it is."""
    await service.runner.cancel(job)
    return JobAnswer.of(await run_in_threadpool(get_job, service, job.id, job.group), service.settings.root)


@router.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses=_MISSING | _EVENTS,
    dependencies=[Depends(get_stream_place)],
)
async def job_events(request: Request, service: ServiceDep, job: JobDep) -> StreamingResponse:
    """Server-sent events: the job now and whenever it has changed, until it has ended; comments in between.

    They end where the server does: ask again.
    """

    drain: Drain = request.app.state.drain

    async def events() -> AsyncIterator[str]:
        async for now in service.runner.follow(job, lambda: drain.begun):
            if now is None:
                yield ": it goes on\n\n"
            else:
                yield f"event: {now.state}\ndata: {JobAnswer.of(now, service.settings.root).model_dump_json()}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
