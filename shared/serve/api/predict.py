"""From a form to a case: the routes that predict."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from shared.deploy.predictor import Request as PredictorRequest
from shared.errors import InvalidInputError
from shared.serve.api.deps import FolderDep, InterfaceDep, ServiceDep, UploadDep
from shared.serve.api.schemas import CaseAnswer, PredictForm, Problem, SampleAnswer, Samples
from shared.serve.api.uploads import Upload
from shared.serve.openapi import request_body
from shared.serve.runtime.connection import while_connected
from shared.serve.runtime.limits import until
from shared.serve.service import Service
from shared.store.records import Case

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    408: {"model": Problem, "description": "The upload stopped"},
    413: {"model": Problem, "description": "Too large"},
    415: {"model": Problem, "description": "Not a form"},
    503: {"model": Problem, "description": "There is no room, or no model is at hand; see Retry-After"},
    504: {"model": Problem, "description": "The deadline passed"},
    507: {"model": Problem, "description": "The disk is full"},
}
router = APIRouter()


@router.get("/samples")
def samples(service: ServiceDep) -> Samples:
    """The samples that can be predicted on without a file."""
    return Samples(samples=[SampleAnswer.of(sample) for sample in service.app.samples()])


@router.post("/predict", responses=_PROBLEMS, openapi_extra=request_body("multipart/form-data", PredictForm))
async def predict(
    request: Request, service: ServiceDep, upload: UploadDep, folder: FolderDep, interface: InterfaceDep
) -> CaseAnswer:
    """Predicts on uploaded files (field `files`, repeated) or on a sample (field `sample`), and keeps the case.

    Every other field is an option of the application.
    """
    return CaseAnswer.of(await while_connected(request, _submit(service, upload, folder, interface)))


async def _submit(service: Service, upload: Upload, folder: Path, interface: str) -> Case:
    arrived, seconds = time.monotonic(), service.settings.deadline_s
    options = {key: value for key, value in upload.fields.items() if key != "sample"}
    async with until(arrived + seconds, service.app.title):
        files = await service.decoding.run(_files, service, upload.files, upload.fields, folder)
    return await service.submit(
        PredictorRequest(files=files, options=options, seconds=seconds), interface, arrived=arrived
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
