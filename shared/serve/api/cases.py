"""Routes for kept cases and their files."""

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

_MEDIA_TYPES = {".dcm": "application/dicom", ".gz": "application/gzip", ".parquet": "application/vnd.apache.parquet"}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such case or file"}}
_RANGES: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The header Range cannot be read"},
    416: {
        "model": Problem,
        "description": "The file has no such range",
        "headers": header("Content-Range", "the size of the file, as `bytes */1234`"),
    },
}
_ETAG = header("ETag", "of a stored file; a file that was generated for this request has none")
_PART = {
    "description": "The part of a stored file that the header Range asks for",
    "headers": _ETAG | header("Content-Range", "the part that is sent, as `bytes 0-99/1234`"),
}
_WHOLE = {"headers": _ETAG}
_RANGE_HEADERS = {
    "parameters": [
        header_parameter("Range", "the part of a stored file to send, as `bytes=0-99`; other files are sent whole"),
        header_parameter("If-Range", "the ETag that the file must have for a part; otherwise it is sent whole"),
    ]
}
_PNG, _BYTES, _ANY = (file_content(kind) for kind in ("image/png", "application/octet-stream", "*/*"))
_PICTURE: dict[int | str, dict[str, Any]] = {200: _WHOLE | _PNG, 206: _PART | _PNG, **_RANGES}
_CONTENT = {"content": {**_BYTES["content"], **_ANY["content"]}}
_FILE: dict[int | str, dict[str, Any]] = {200: _WHOLE | _CONTENT, 206: _PART | _CONTENT, **_RANGES}
"""The file may have any media type; client generators use the first one listed."""
GENERATED_FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    **_NOT_FOUND,
    503: {"model": Problem, "description": "The file is not generated yet, and there is no capacity; see Retry-After"},
    504: {"model": Problem, "description": "The file could not be generated before the deadline"},
    507: {"model": Problem, "description": "The disk is full"},
}
router = APIRouter(prefix="/cases")


@router.get("", responses=_NOT_FOUND)
def cases(service: ServiceDep, group: GroupDep, limit: LimitDep = 20, before: BeforeDep = None) -> Cases:
    """The newest cases, or the newest ones before a given case."""
    recent = service.store.recent(service.app.name, limit, before, group)
    reviews = service.store.reviews.lines(case.id for case in recent)
    root = service.settings.root
    return Cases(cases=[CaseLine.of(case, case_line(service, case), reviews.get(case.id, ()), root) for case in recent])


@router.head("/{case_id}", include_in_schema=False)
@router.get("/{case_id}", response_model=CaseAnswer, responses=_NOT_FOUND)
async def case(service: ServiceDep, case: CaseDep) -> Response:
    """A kept case, in the form in which it was answered."""
    content_or_path = await service.file(case, RESULT)
    try:
        result = (
            content_or_path
            if isinstance(content_or_path, bytes)
            else await run_in_threadpool(content_or_path.read_bytes)
        )
    except FileNotFoundError:
        raise _deleted(case) from None
    return Response(case_document(case, result, service.settings.root), media_type="application/json")


@router.delete("/{case_id}", status_code=204, response_class=Response, responses=_NOT_FOUND)
def delete_case(service: ServiceDep, case: CaseDep) -> None:
    """Deletes a kept case, its files and its reviews."""
    service.store.remove(case)


@router.head("/{case_id}/picture.png", include_in_schema=False)
@router.get(
    "/{case_id}/picture.png",
    response_class=FileResponse,
    responses=GENERATED_FILE_RESPONSES | _PICTURE,
    openapi_extra=_RANGE_HEADERS,
)
async def picture(service: ServiceDep, case: CaseDep, group: GroupDep) -> Response:
    """The picture of a case. Some applications generate it on the first request."""
    return await _send(service, case, PICTURE, group)


@router.head("/{case_id}/files/{file}", include_in_schema=False)
@router.get(
    "/{case_id}/files/{file}",
    response_class=FileResponse,
    responses=GENERATED_FILE_RESPONSES | _FILE,
    openapi_extra=_RANGE_HEADERS,
)
async def file(service: ServiceDep, case: CaseDep, file: str, group: GroupDep) -> Response:
    """A file of a case. Some applications generate it on the first request."""
    if file not in (RESULT, *case.files):
        raise InvalidInputError(f"the case has no file {file!r}; it has {', '.join((RESULT, *case.files))}", status=404)
    return await _send(service, case, file, group)


async def _send(service: Service, case: Case, name: str, group: str | None) -> Response:
    content_or_path = await service.file(case, name, group)
    media_type = (
        _MEDIA_TYPES.get(Path(name).suffix.lower()) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    )
    headers = {"Content-Security-Policy": FILE_POLICY}
    if isinstance(content_or_path, bytes):
        return Response(content_or_path, media_type=media_type, headers=headers)
    try:
        file_status = await run_in_threadpool(content_or_path.stat)
    except FileNotFoundError:
        raise _deleted(case) from None
    return _StoredFile(content_or_path, media_type=media_type, headers=headers, stat_result=file_status)


class _StoredFile(FileResponse):
    """A file response that supports ranges, and that refuses invalid ones in JSON, like every other error."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response.

        Before anything is sent, it raises ``InvalidInputError`` for an invalid range (400) or a file that no longer
        exists (404), and ``HTTPException`` (416) for a range that the file does not have.
        """
        if not Headers(scope=scope).get("range", "").strip().lower().startswith("bytes="):
            # A server must ignore a Range header with another unit (RFC 9110, section 14.2).
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}

        start: Message | None = None

        async def send_or_refuse(message: Message) -> None:
            nonlocal start
            status = message.get("status")
            if status == 400:
                raise InvalidInputError("the header Range is not valid; write it as bytes=0-99", status=400)
            if status == 416:
                size = self.headers["content-length"]
                detail = f"the file has only {size} bytes; request a range within them, such as bytes=0-99"
                raise HTTPException(416, detail, {"Content-Range": f"bytes */{size}"})
            if message["type"] == "http.response.start":
                start = message  # sent with the first part of the file: starlette opens the file after this message
                return
            if start is not None:
                await send(start)
                start = None
            await send(message)

        try:
            await super().__call__(scope, receive, send_or_refuse)
        except FileNotFoundError:
            raise InvalidInputError(f"the file {Path(self.path).name!r} is gone from the store", status=404) from None


def _deleted(case: Case) -> InvalidInputError:
    """The error for a case that was deleted after it had been found."""
    return InvalidInputError(f"the case {case.id} is gone from the store", status=404)
