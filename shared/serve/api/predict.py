"""The routes that predict: they turn a form into a case."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from shared.deploy.predictor import Request as PredictorRequest
from shared.errors import InvalidInputError
from shared.serve.api.deps import OriginDep, ServiceDep, UploadDep
from shared.serve.api.schemas import (
    CaseAnswer,
    LoadingState,
    PredictForm,
    Problem,
    SampleAnswer,
    Samples,
    case_document,
)
from shared.serve.api.uploads import Upload
from shared.serve.openapi import request_body
from shared.serve.runtime.connection import while_connected
from shared.serve.service import Answer, Service
from shared.store.records import Origin

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The form cannot be read"},
    408: {"model": Problem, "description": "The upload stopped"},
    413: {"model": Problem, "description": "Too large"},
    415: {"model": Problem, "description": "Not a form"},
    503: {"model": Problem, "description": "The server is at capacity, or no model is available; see Retry-After"},
    504: {"model": Problem, "description": "The deadline passed"},
    507: {"model": Problem, "description": "The disk is full"},
}
router = APIRouter()


@router.get("/samples")
def samples(service: ServiceDep) -> Samples:
    """The samples that can be predicted on without uploading a file."""
    return Samples(samples=[SampleAnswer.model_validate(sample) for sample in service.samples.available()])


@router.get("/model")
async def model(service: ServiceDep) -> LoadingState:
    """Whether the models are loaded, so that a client can say what its first prediction waits for."""
    loaded, failed = service.model.value is not None, service.model.failure is not None
    return LoadingState(
        predictor="loaded" if loaded else "failed" if failed else "not loaded", stage=service.model.stage
    )


@router.post(
    "/predict",
    response_model=CaseAnswer,
    responses=_PROBLEMS,
    openapi_extra=request_body("multipart/form-data", PredictForm),
)
async def predict(request: Request, service: ServiceDep, upload: UploadDep, origin: OriginDep) -> Response:
    """Predicts on uploaded files (field `files`, may be repeated) or on a sample (field `sample`), and keeps the case.

    Every other field is an option of the application.
    """
    answer = await while_connected(request, _submit(service, upload, origin))
    return Response(case_document(answer.case, answer.result, service.settings.root), media_type="application/json")


async def _submit(service: Service, upload: Upload, origin: Origin) -> Answer:
    check_upload(upload)
    sample, files = upload.fields.get("sample"), tuple(upload.files)
    options = {key: value for key, value in upload.fields.items() if key != "sample"}
    if sample is not None:
        await run_in_threadpool(service.samples.get, sample, options.get("model"))
    predictor_request = PredictorRequest(files=files, options=options, seconds=service.settings.deadline_s)
    return await service.submit(predictor_request, origin, sample=sample, folder=upload.folder, arrived=upload.arrived)


def check_upload(upload: Upload) -> None:
    """Raises ``InvalidInputError`` for a form that has both files and the name of a sample, or neither."""
    if "sample" in upload.fields and upload.files:
        raise InvalidInputError("send either files or the name of a sample, not both")
    if "sample" not in upload.fields and not upload.files:
        raise InvalidInputError(
            "the request has no files; send them in the field 'files', or name a sample in 'sample'"
        )
