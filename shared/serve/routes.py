"""The JSON routes that every application has."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from shared.deploy.predictor import Request as PredictorRequest
from shared.errors import InvalidInputError
from shared.serve.guard import FILE_POLICY
from shared.serve.service import Service
from shared.serve.uploads import Upload, receive
from shared.serve.waiting import patient, while_connected
from shared.store.cases import PICTURE, RESULT, Case, CaseEntry

_TYPES = {".dcm": "application/dicom", ".gz": "application/gzip", ".parquet": "application/vnd.apache.parquet"}
_MOST_CASES = 200


class SampleAnswer(BaseModel):
    """A sample that the application offers."""

    name: str
    title: str
    synthetic: bool
    source: str


class Samples(BaseModel):
    """The samples at hand."""

    samples: list[SampleAnswer]


class CaseSummary(BaseModel):
    """A line in the list of cases."""

    case: str
    created: str
    door: str
    inputs: list[str]
    url: str


class Cases(BaseModel):
    """Kept cases, the newest first."""

    cases: list[CaseSummary]


class CaseAnswer(BaseModel):
    """A case: what was handed in, what came out."""

    case: str
    app: str
    created: str = Field(description="UTC, ISO 8601")
    door: str
    inputs: list[dict[str, Any]] = Field(description="name (or kind), size in bytes and SHA-256 of every file")
    inputs_sha256: str
    options: dict[str, str]
    artifact: dict[str, Any] = Field(description="name and version of the model")
    result: dict[str, Any] = Field(description="the content of result.json")
    picture: str = Field(description="address of a PNG")
    files: dict[str, str] = Field(description="addresses of the files, by name")


class Problem(BaseModel):
    """Why a request was refused, in a sentence."""

    detail: str


_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "sample": {"type": "string", "description": "the name of a sample, instead of files"},
                    },
                    "additionalProperties": {"type": "string", "description": "an option of the application"},
                }
            }
        },
    }
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    408: {"model": Problem, "description": "The upload stopped"},
    413: {"model": Problem, "description": "Too large"},
    415: {"model": Problem, "description": "Not a form"},
    422: {"model": Problem, "description": "The input cannot be used; the sentence says why"},
    503: {"model": Problem, "description": "There is no room, or no model is at hand; see Retry-After"},
    504: {"model": Problem, "description": "The deadline passed"},
}
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such case or file"}}


def routes(service: Service) -> APIRouter:
    """The routes of one application, under /api/<name>."""
    name = service.app.name
    router = APIRouter(prefix=f"/api/{name}", tags=[service.app.title])

    @router.get("/samples", response_model=Samples, operation_id=f"{name}_samples")
    def samples() -> dict[str, Any]:
        """The samples that can be predicted on without a file."""
        found = service.app.samples()
        return {
            "samples": [{"name": s.name, "title": s.title, "synthetic": s.synthetic, "source": s.source} for s in found]
        }

    @router.post(
        "/predict",
        response_model=CaseAnswer,
        operation_id=f"{name}_predict",
        openapi_extra=_FORM,
        responses=_PROBLEMS,
    )
    async def predict(request: Request) -> dict[str, Any]:
        """Predicts on uploaded files (field `files`, repeated) or on a sample (field `sample`), and keeps the case.

        Every other field is an option of the application.
        """
        door = "form" if request.headers.get("trivium-door") == "form" else "json"
        settings = service.settings
        with service.place():
            async with contextmanager_in_threadpool(service.incoming()) as folder:
                upload = await receive(
                    patient(request.stream(), settings.deadline_s),
                    request.headers,
                    folder,
                    max_bytes=settings.max_upload_bytes,
                    max_files=settings.max_files,
                )
                case = await while_connected(request, _submit(service, upload, folder, door))
        return service.describe(case)

    @router.get("/cases", response_model=Cases, operation_id=f"{name}_cases")
    def cases(limit: int = 20) -> dict[str, Any]:
        """The newest cases."""
        found = service.store.recent(name, max(1, min(limit, _MOST_CASES)))
        return {"cases": [_summary(case) for case in found]}

    @router.get("/cases/{case_id}", response_model=CaseAnswer, operation_id=f"{name}_case", responses=_MISSING)
    def case(case_id: str) -> dict[str, Any]:
        """A kept case, as it was answered."""
        return service.describe(service.case(case_id))

    @router.get("/cases/{case_id}/picture.png", operation_id=f"{name}_picture", responses=_MISSING)
    def picture(case_id: str) -> FileResponse:
        """The case's picture."""
        return _send(service, service.case(case_id), PICTURE)

    @router.get("/cases/{case_id}/files/{file}", operation_id=f"{name}_file", responses=_MISSING)
    def file(case_id: str, file: str) -> FileResponse:
        """A file of the case."""
        found = service.case(case_id)
        if file not in (RESULT, *found.files):
            raise InvalidInputError(
                f"the case has no file {file!r}; it has {', '.join((RESULT, *found.files))}", status=404
            )
        return _send(service, found, file)

    return router


async def _submit(service: Service, upload: Upload, folder: Path, door: str) -> Case:
    options = {key: value for key, value in upload.fields.items() if key != "sample"}
    files = await service.decoding.run(_files, service, upload.files, upload.fields, folder)
    return await service.submit(
        PredictorRequest(files=files, options=options, seconds=service.settings.deadline_s), door
    )


def _files(service: Service, files: list[Path], fields: Mapping[str, str], folder: Path) -> tuple[Path, ...]:
    if "sample" in fields and files:
        raise InvalidInputError("send files or the name of a sample, not both")
    if "sample" in fields:
        made = folder / "sample"
        made.mkdir()
        return tuple(service.sample(fields["sample"]).files(made))
    if not files:
        raise InvalidInputError(
            "the request has no files; send them in the field 'files', or name a sample in 'sample'"
        )
    return tuple(files)


def _summary(case: CaseEntry) -> dict[str, Any]:
    return {
        "case": case.id,
        "created": case.created,
        "door": case.door,
        "inputs": [item.name for item in case.inputs],
        "url": f"/api/{case.app}/cases/{case.id}",
    }


def _send(service: Service, case: Case, name: str) -> FileResponse:
    path = service.store.file(case, name)
    if path is None:
        raise InvalidInputError(f"the file {name!r} of case {case.id} is gone from the store", status=404)
    kind = _TYPES.get(path.suffix.lower()) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return FileResponse(path, media_type=kind, headers={"Content-Security-Policy": FILE_POLICY})
