"""Kept cases and their files."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from shared.errors import InvalidInputError
from shared.serve.api.deps import CaseDep, ServiceDep
from shared.serve.api.schemas import CaseAnswer, CaseLine, Cases, Problem, case_document
from shared.serve.middleware.security_headers import FILE_POLICY
from shared.serve.service import Service
from shared.store.cases import PICTURE, RESULT
from shared.store.records import Case

_TYPES = {".dcm": "application/dicom", ".gz": "application/gzip", ".parquet": "application/vnd.apache.parquet"}
_MOST_CASES = 200
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such case or file"}}
router = APIRouter(prefix="/cases")


@router.get("")
def cases(service: ServiceDep, limit: int = 20) -> Cases:
    """The newest cases."""
    found = service.store.recent(service.app.name, max(1, min(limit, _MOST_CASES)))
    return Cases(cases=[CaseLine.of(case) for case in found])


@router.get("/{case_id}", response_model=CaseAnswer, responses=_MISSING)
def case(service: ServiceDep, case: CaseDep) -> Response:
    """A kept case, as it was answered."""
    found = _content(service, case, RESULT)
    result = found if isinstance(found, bytes) else found.read_bytes()
    return Response(case_document(case, result), media_type="application/json")


@router.delete("/{case_id}", status_code=204, responses=_MISSING)
def delete_case(service: ServiceDep, case: CaseDep) -> None:
    """Deletes a kept case and its files."""
    service.store.remove(case)


@router.get("/{case_id}/picture.png", response_class=FileResponse, responses=_MISSING)
def picture(service: ServiceDep, case: CaseDep) -> Response:
    """The case's picture."""
    return _send(service, case, PICTURE)


@router.get("/{case_id}/files/{file}", response_class=FileResponse, responses=_MISSING)
def file(service: ServiceDep, case: CaseDep, file: str) -> Response:
    """A file of the case."""
    if file not in (RESULT, *case.files):
        raise InvalidInputError(f"the case has no file {file!r}; it has {', '.join((RESULT, *case.files))}", status=404)
    return _send(service, case, file)


def _send(service: Service, case: Case, name: str) -> Response:
    found = _content(service, case, name)
    kind = _TYPES.get(Path(name).suffix.lower()) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    headers = {"Content-Security-Policy": FILE_POLICY}
    if isinstance(found, bytes):
        return Response(found, media_type=kind, headers=headers)
    return FileResponse(found, media_type=kind, headers=headers)


def _content(service: Service, case: Case, name: str) -> Path | bytes:
    """A file of the case on disk, or its bytes where the disk could not keep it; 404 where it is gone."""
    found = service.store.unkept.content(case.id, name) or service.store.file(case, name)
    if found is None:
        raise InvalidInputError(f"the file {name!r} of case {case.id} is gone from the store", status=404)
    return found
