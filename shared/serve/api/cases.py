"""Kept cases and their files."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from shared.errors import InvalidInputError
from shared.serve.api.deps import BeforeDep, CaseDep, LimitDep, ServiceDep
from shared.serve.api.schemas import CaseAnswer, CaseLine, Cases, Problem, case_document
from shared.serve.case_line import case_line
from shared.serve.known_keys import GroupDep
from shared.serve.middleware.security_headers import FILE_POLICY
from shared.serve.openapi import file_content, header, header_parameter
from shared.serve.service import Service
from shared.store.cases import PICTURE, RESULT
from shared.store.records import Case

_TYPES = {".dcm": "application/dicom", ".gz": "application/gzip", ".parquet": "application/vnd.apache.parquet"}
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such case or file"}}
_RANGES: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The header Range cannot be read"},
    416: {
        "model": Problem,
        "description": "The file has no such range",
        "headers": header("Content-Range", "the size of the file, as `bytes */1234`"),
    },
}
_ETAG = header("ETag", "of a file that is kept; one that was made for this request has none")
_PART = {
    "description": "The part that the header Range asks for, of a file that is kept",
    "headers": _ETAG | header("Content-Range", "which part, as `bytes 0-99/1234`"),
}
_WHOLE = {"headers": _ETAG}
_ASKED = {
    "parameters": [
        header_parameter("Range", "a part of a file that is kept, as `bytes=0-99`; of others all is answered"),
        header_parameter("If-Range", "the ETag of the file that a part is wanted of; of another all is answered"),
    ]
}
_PNG, _BYTES, _ANY = (file_content(kind) for kind in ("image/png", "application/octet-stream", "*/*"))
_PICTURE: dict[int | str, dict[str, Any]] = {200: _WHOLE | _PNG, 206: _PART | _PNG, **_RANGES}
_CONTENT = {"content": {**_BYTES["content"], **_ANY["content"]}}
_FILE: dict[int | str, dict[str, Any]] = {200: _WHOLE | _CONTENT, 206: _PART | _CONTENT, **_RANGES}
"""Of any type; generators of clients know what to do with the first."""
MADE: dict[int | str, dict[str, Any]] = {
    **_MISSING,
    503: {"model": Problem, "description": "It is not made yet, and there is no room to make it; see Retry-After"},
    504: {"model": Problem, "description": "It could not be made before the deadline"},
    507: {"model": Problem, "description": "The disk is full"},
}
router = APIRouter(prefix="/cases")


@router.get("", responses=_MISSING)
def cases(service: ServiceDep, group: GroupDep, limit: LimitDep = 20, before: BeforeDep = None) -> Cases:
    """The newest cases, or those that came before one."""
    found = service.store.recent(service.app.name, limit, before, group)
    reviews = service.store.reviews.lines(case.id for case in found)
    root = service.settings.root
    return Cases(cases=[CaseLine.of(case, case_line(service, case), reviews.get(case.id, ()), root) for case in found])


@router.head("/{case_id}", include_in_schema=False)
@router.get("/{case_id}", response_model=CaseAnswer, responses=_MISSING)
async def case(service: ServiceDep, case: CaseDep) -> Response:
    """A kept case, as it was answered."""
    found = await service.file(case, RESULT)
    try:
        result = found if isinstance(found, bytes) else await run_in_threadpool(found.read_bytes)
    except FileNotFoundError:
        raise _gone(case) from None
    return Response(case_document(case, result, service.settings.root), media_type="application/json")


@router.delete("/{case_id}", status_code=204, responses=_MISSING)
def delete_case(service: ServiceDep, case: CaseDep) -> None:
    """Deletes a kept case, its files and its reviews."""
    service.store.remove(case)


@router.head("/{case_id}/picture.png", include_in_schema=False)
@router.get("/{case_id}/picture.png", response_class=FileResponse, responses=MADE | _PICTURE, openapi_extra=_ASKED)
async def picture(service: ServiceDep, case: CaseDep, group: GroupDep) -> Response:
    """The case's picture, made when it is first asked for where the application leaves it until then."""
    return await _send(service, case, PICTURE, group)


@router.head("/{case_id}/files/{file}", include_in_schema=False)
@router.get("/{case_id}/files/{file}", response_class=FileResponse, responses=MADE | _FILE, openapi_extra=_ASKED)
async def file(service: ServiceDep, case: CaseDep, file: str, group: GroupDep) -> Response:
    """A file of the case, made when it is first asked for where the application leaves it until then."""
    if file not in (RESULT, *case.files):
        raise InvalidInputError(f"the case has no file {file!r}; it has {', '.join((RESULT, *case.files))}", status=404)
    return await _send(service, case, file, group)


async def _send(service: Service, case: Case, name: str, group: str | None) -> Response:
    found = await service.file(case, name, group)
    kind = _TYPES.get(Path(name).suffix.lower()) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    headers = {"Content-Security-Policy": FILE_POLICY}
    if isinstance(found, bytes):
        return Response(found, media_type=kind, headers=headers)
    try:
        status = await run_in_threadpool(found.stat)
    except FileNotFoundError:
        raise _gone(case) from None
    return _KeptFile(found, media_type=kind, headers=headers, stat_result=status)


class _KeptFile(FileResponse):
    """A file of which ranges may be asked for; one that cannot be had is refused as all else is, in JSON."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers. Raises ``InvalidInputError`` (400) or ``HTTPException`` (416) before anything is sent."""
        if not Headers(scope=scope).get("range", "").strip().lower().startswith("bytes="):
            # Other units are to be passed over (RFC 9110, section 14.2).
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}

        async def send_or_refuse(message: Message) -> None:
            status = message.get("status")
            if status == 400:
                raise InvalidInputError("the header Range cannot be read; write it as bytes=0-99", status=400)
            if status == 416:
                size = self.headers["content-length"]
                words = f"the file has {size} bytes, and no such range; ask for one within them, as bytes=0-99"
                raise HTTPException(416, words, {"Content-Range": f"bytes */{size}"})
            await send(message)

        await super().__call__(scope, receive, send_or_refuse)


def _gone(case: Case) -> InvalidInputError:
    """It was deleted after it had been found."""
    return InvalidInputError(f"the case {case.id} is gone from the store", status=404)
