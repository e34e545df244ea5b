"""The request bodies and responses of the JSON routes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema
from typing_extensions import TypeAliasType

from shared.review import Review, Verdict
from shared.store.cases import PICTURE, RESULT
from shared.store.jobs import Job, JobState
from shared.store.records import Case, CaseSummary, InputFile
from shared.store.reviews import ReviewLine

UploadedFile = Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]
_FormText = Annotated[str | None, WithJsonSchema({"type": "string", "minLength": 1})]
"""A form has no null: a field without a value is omitted."""


class PredictForm(BaseModel):
    """Either files or the name of a sample; every other field is an option of the application."""

    __pydantic_extra__: dict[str, str] = Field(init=False)
    model_config = ConfigDict(extra="allow")

    files: list[UploadedFile] = Field(default=[], description="repeated for several files")
    sample: _FormText = Field(default=None, description="the name of a sample, instead of files")


class SampleAnswer(BaseModel):
    """A sample that the application offers."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    title: str
    synthetic: bool
    source: str


class Samples(BaseModel):
    """The available samples."""

    samples: list[SampleAnswer]


class ArtifactVersion(BaseModel):
    """Name and version of a model."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    version: int


class CaseReviewer(BaseModel):
    """Who reviewed a case, and when."""

    model_config = ConfigDict(from_attributes=True)

    reviewer: str | None = Field(description="null if no name was given")
    reviewed: str = Field(description="UTC, ISO 8601")


class CaseLine(BaseModel):
    """A line in the list of cases."""

    case: str
    created: str
    interface: str
    inputs: list[str]
    label: str = Field(description="the inputs and, if the application provides a label, the result")
    reviews: list[CaseReviewer] = Field(description="who reviewed it, the newest review first")
    url: str

    @classmethod
    def of(cls, case: CaseSummary, label: str, reviews: Iterable[ReviewLine], root: str) -> CaseLine:
        """The answer for a case in a list; ``root`` is the path under which the server is reached."""
        return cls(
            case=case.id,
            created=case.created,
            interface=case.interface,
            inputs=case.names,
            label=label,
            reviews=[CaseReviewer.model_validate(review) for review in reviews],
            url=_address(case, root),
        )


class Cases(BaseModel):
    """Kept cases, the newest first."""

    cases: list[CaseLine]


class CaseAnswer(BaseModel):
    """A case: the inputs and the result."""

    case: str = Field(description="its identifier")
    url: str
    app: str
    created: str = Field(description="UTC, ISO 8601")
    interface: str = Field(description="the interface of the request: form, json, or the name of a protocol")
    inputs: list[InputFile] = Field(description="name (or kind), size in bytes and SHA-256 of every file")
    inputs_sha256: str
    options: dict[str, str]
    artifact: ArtifactVersion = Field(description="the model that answered")
    remark: str | None = Field(
        description="why the case is not kept, if it is too large or the disk of the store is full; else null"
    )
    result: dict[str, JsonValue] = Field(description="the content of result.json")
    picture: str = Field(description="address of a PNG")
    files: dict[str, str] = Field(description="addresses of the files, by name")


def case_document(case: Case, result: bytes, root: str) -> bytes:
    """A ``CaseAnswer`` as JSON; ``root`` is the path under which the server is reached.

    ``result.json`` is inserted without parsing it, because it may be large.
    """
    address = _address(case, root)
    head = {
        "case": case.id,
        "url": address,
        "app": case.app,
        "created": case.created,
        "interface": case.interface,
        "inputs": [item.model_dump() for item in case.inputs],
        "inputs_sha256": case.inputs_sha256,
        "options": case.options,
        "artifact": {"name": case.artifact_name, "version": case.artifact_version},
        "remark": case.remark,
        "picture": f"{address}/{PICTURE}",
        "files": {name: f"{address}/files/{quote(name)}" for name in (RESULT, *case.files)},
    }
    return json.dumps(head).encode()[:-1] + b', "result": ' + result.strip() + b"}"


MAX_MISSED = 1000
Reviewer = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]
Number = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]


class ReviewBody(BaseModel):
    """A review of a case; it replaces an earlier review by the same reviewer."""

    model_config = ConfigDict(extra="forbid")

    reviewer: Reviewer | None = Field(
        default=None, description="the reviewer's name; if the server requires keys, this is the name of the key"
    )
    verdicts: dict[Number, Verdict] = Field(
        default={}, description="by the finding's number in `result`, from 1; findings left out are undecided"
    )
    missed: list[dict[str, JsonValue]] = Field(
        default=[], max_length=MAX_MISSED, description="findings that the model missed"
    )
    note: str = Field(default="", max_length=2000, pattern=r"^[^\x00]*$")
    replaces: str | None = Field(
        default=None,
        max_length=64,
        description="`reviewed` of the reviewer's review that the client has read, null if there was none; if the "
        "current review is another one, this one is refused (412). If left out, it replaces any current review",
    )


class ReviewAnswer(BaseModel):
    """A reviewer's review of a case."""

    reviewer: str | None = Field(description="null if no name was given")
    reviewed: str = Field(description="UTC, ISO 8601")
    verdicts: dict[str, Verdict] = Field(description="by the finding's number in `result`, from 1")
    missed: list[dict[str, JsonValue]]
    note: str

    @classmethod
    def of(cls, review: Review) -> ReviewAnswer:
        """The answer for a review."""
        return cls(
            reviewer=review.reviewer,
            reviewed=review.reviewed,
            verdicts={str(number): verdict for number, verdict in review.verdicts.items()},
            missed=[dict(finding) for finding in review.missed],
            note=review.note,
        )


class Reviews(BaseModel):
    """The reviews of a case, one per reviewer."""

    case: str
    reviewer: str | None = Field(
        description="the client's own name as reviewer, if the server requires keys; else null"
    )
    reviews: list[ReviewAnswer] = Field(description="the newest first")


class JobAnswer(BaseModel):
    """The state of a job. While it runs, ``stage`` describes the current step: ``reading``, ``frame 3 of 8``."""

    job: str
    app: str
    created: str = Field(description="UTC, ISO 8601")
    state: JobState
    stage: str
    attempts: int = Field(description="how often it was started; it is restarted if its server or worker ends")
    problem: str | None = Field(description="why it failed")
    status: int | None = Field(description="if it failed, the status that `predict` would have answered with")
    case: str | None = Field(description="address of the case, once the job is done")
    case_id: str | None = Field(description="the identifier of the case, which is `case` in the case's answer")
    url: str
    events: str = Field(description="address of its server-sent events")

    @classmethod
    def of(cls, job: Job, root: str) -> JobAnswer:
        """The answer for a job; ``root`` is the path under which the server is reached."""
        address = f"{root}/api/{job.app}/jobs/{job.id}"
        return cls(
            job=job.id,
            app=job.app,
            created=job.created,
            state=job.state,
            stage=job.stage,
            attempts=job.attempts,
            problem=job.problem,
            status=job.status,
            case=None if job.case_id is None else f"{root}/api/{job.app}/cases/{job.case_id}",
            case_id=job.case_id,
            url=address,
            events=f"{address}/events",
        )


class Jobs(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobAnswer]


class Problem(BaseModel):
    """Why a request was refused, in a sentence."""

    detail: str


INVALID_INPUT_RESPONSE: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "The input cannot be used; the sentence says why"}
}
"""Responses that every route of an application may return."""


WorkerState = TypeAliasType("WorkerState", Literal["loading", "idle", "busy", "failed"])
PredictorState = TypeAliasType("PredictorState", Literal["loaded", "failed", "not loaded"])


class WorkerHealth(BaseModel):
    """A worker: a process with its own memory, or, if ``pid`` is null, a thread of the server."""

    state: WorkerState
    pid: int | None
    memory_bytes: int | None = Field(description="resident set")
    restarts: int = Field(description="how often it was replaced")
    failure: str | None = Field(description="why it cannot compute")
    programs: dict[str, str] = Field(description="the program that runs each network, and why it was chosen")


class AppHealth(BaseModel):
    """The state of an application's predictor, its artifacts and its workers."""

    predictor: PredictorState
    failure: str | None
    artifacts: list[ArtifactVersion]
    workers: list[WorkerHealth]


class LoadingState(BaseModel):
    """Whether an application's models are loaded. The first request loads them, if the server has not yet."""

    predictor: PredictorState
    stage: str | None = Field(description="what their loading does now; null if nothing is loaded now")


class Alive(BaseModel):
    """The answer that the server runs."""

    status: Literal["ok"]


class Health(Alive):
    """Whether the server runs, and the state of each predictor."""

    version: str
    apps: dict[str, AppHealth]
    networks: dict[str, list[WorkerHealth]] = Field(description="the workers of the loaded dense networks")


def _address(case: CaseSummary, root: str) -> str:
    return f"{root}/api/{case.app}/cases/{case.id}"
