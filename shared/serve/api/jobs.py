"""Routes for jobs: predictions that run in the background, are accepted with 202, and can be followed by events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from shared.errors import InvalidInputError
from shared.serve.api.deps import BeforeDep, JobUploadDep, LimitDep, OriginDep, ServiceDep
from shared.serve.api.predict import check_upload
from shared.serve.api.schemas import JobAnswer, Jobs, PredictForm, Problem
from shared.serve.api.uploads import Upload
from shared.serve.known_keys import GroupDep
from shared.serve.middleware.draining import Drain
from shared.serve.openapi import content, header, request_body
from shared.serve.service import Service
from shared.store.disk import raising_disk_full
from shared.store.jobs import Job, NewJob
from shared.store.records import Origin

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such job"}}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: content("text/event-stream"),
    429: {"model": Problem, "description": "This client already follows the maximum number of jobs; see Retry-After"},
    503: {"model": Problem, "description": "Too many jobs are being followed; see Retry-After"},
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    202: {"headers": header("Location", "the address of the job, as `url` in the answer")},
    400: {"model": Problem, "description": "The form cannot be read"},
    408: {"model": Problem, "description": "The upload stopped"},
    409: {"model": Problem, "description": "The same job is being submitted with this key"},
    413: {"model": Problem, "description": "Too large"},
    415: {"model": Problem, "description": "Not a form"},
    503: {"model": Problem, "description": "There are too many jobs already; see Retry-After"},
    507: {"model": Problem, "description": "The disk is full"},
}
_KEY_DESCRIPTION = "a repeated request with the same key and form returns the existing job, so that a client can retry"
router = APIRouter(prefix="/jobs")


def get_job(service: ServiceDep, job_id: str, group: GroupDep) -> Job:
    """The job that the path names. Refuses (404) a job that does not exist or that the client's key may not see."""
    job = service.jobs.get(service.app.name, job_id, group)
    if job is None:
        raise InvalidInputError(f"{service.app.name} has no job {job_id!r}", status=404)
    return job


JobDep = Annotated[Job, Depends(get_job)]


async def get_stream_place(request: Request, group: GroupDep) -> AsyncIterator[None]:
    """A place for a stream of events, until the stream ends; refuses (429, 503) if there is none."""
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
    origin: OriginDep,
    idempotency_key: Annotated[str | None, Header(description=_KEY_DESCRIPTION)] = None,
) -> JobAnswer:
    """Accepts the same form as `predict` and answers at once; the address of the job returns its progress.

    It refuses options that `predict` refuses for any files, models that are not loaded, and unknown samples.
    """
    check_upload(upload)
    job = await run_in_threadpool(_add, service, upload, origin, idempotency_key)
    service.runner.wake()
    answer = JobAnswer.of(job, service.settings.root)
    response.headers["Location"] = answer.url
    return answer


def _add(service: Service, upload: Upload, origin: Origin, key: str | None) -> Job:
    options, app = {name: value for name, value in upload.fields.items() if name != "sample"}, service.app.name
    job = NewJob(app=app, origin=origin, files=upload.files, options=options, sample=upload.fields.get("sample"))
    identifier = job.identifier(key) if key else None
    if identifier is not None and (known := service.jobs.get(app, identifier)) is not None:
        return known
    service.check_room_for_jobs(origin.group)
    if service.app.read_options is not None:
        service.app.read_options(options)
    service.check_model(options.get("model"))
    if job.sample is not None:
        service.samples.get(job.sample, options.get("model"))
    with raising_disk_full("the job cannot be stored"):
        return service.jobs.add(job, upload.folder, identifier)


@router.get("", responses=_NOT_FOUND)
def jobs(service: ServiceDep, group: GroupDep, limit: LimitDep = 20, before: BeforeDep = None) -> Jobs:
    """The newest jobs, or the newest ones before a given job."""
    recent = service.jobs.recent(service.app.name, limit, before, group)
    return Jobs(jobs=[JobAnswer.of(job, service.settings.root) for job in recent])


@router.get("/{job_id}", responses=_NOT_FOUND)
def job(service: ServiceDep, job: JobDep) -> JobAnswer:
    """The state of a job; `case` is the address of its answer once the job is done."""
    return JobAnswer.of(job, service.settings.root)


@router.delete("/{job_id}", responses=_NOT_FOUND)
async def cancel_job(service: ServiceDep, job: JobDep) -> JobAnswer:
    """Cancels a job and stops its computation; a job that has ended does not change."""
    await service.runner.cancel(job)
    return JobAnswer.of(await run_in_threadpool(get_job, service, job.id, job.group), service.settings.root)


@router.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses=_NOT_FOUND | _EVENTS,
    dependencies=[Depends(get_stream_place)],
)
async def job_events(request: Request, service: ServiceDep, job: JobDep) -> StreamingResponse:
    """Server-sent events: the job now and after each change until it has ended, with keep-alive comments in between.

    The stream also ends when the server shuts down; then request it again.
    """

    drain: Drain = request.app.state.drain

    async def events() -> AsyncIterator[str]:
        async for current in service.runner.follow(job, lambda: drain.is_draining):
            if current is None:
                yield ": keep-alive\n\n"
            else:
                yield (
                    f"event: {current.state}\n"
                    f"data: {JobAnswer.of(current, service.settings.root).model_dump_json()}\n\n"
                )

    return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
