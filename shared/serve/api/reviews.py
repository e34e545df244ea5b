"""Routes for reviews of kept cases: readers' verdicts on the findings."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import JsonValue, TypeAdapter, ValidationError

from shared.app import App
from shared.errors import InvalidInputError
from shared.review import IN_GENERAL, Review, check_review
from shared.secure.access import Key
from shared.serve.api.deps import CaseDep, ServiceDep
from shared.serve.api.schemas import Problem, ReviewAnswer, ReviewBody, Reviewer, Reviews
from shared.store.cases import RESULT

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such case"}}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    **_NOT_FOUND,
    409: {"model": Problem, "description": "The case could not be kept, and is only held in memory for a while"},
    412: {"model": Problem, "description": "The reviewer's current review is not the one that `replaces` names"},
    507: {"model": Problem, "description": "The disk is full"},
}
router = APIRouter(prefix="/cases/{case_id}/review")


async def get_key_name(request: Request) -> str | None:
    """The name of the client's key; None if the server does not require keys."""
    key: Key | None = getattr(request.state, "key", None)
    return None if key is None else key.name


KeyNameDep = Annotated[str | None, Depends(get_key_name)]


@router.get("", responses=_NOT_FOUND)
def reviews(service: ServiceDep, case: CaseDep, key_name: KeyNameDep) -> Reviews:
    """The reviews of a case, one per reviewer."""
    stored = service.store.reviews.of_case(case.id)
    return Reviews(case=case.id, reviewer=key_name, reviews=[ReviewAnswer.of(review) for review in stored])


@router.put("", responses=_PROBLEMS)
async def review(service: ServiceDep, case: CaseDep, key_name: KeyNameDep, body: ReviewBody) -> ReviewAnswer:
    """Reviews a case, replacing an earlier review by the same reviewer.

    A finding is identified by its number in `result`, from 1: medical's `rank`, or the position in driving's `boxes` or
    finance's `events`.
    """
    if case.remark is not None:
        raise InvalidInputError(f"the case cannot be reviewed: {case.remark}", status=409)
    reviewer, result = _reviewer(key_name, body.reviewer), await service.file(case, RESULT)
    new_review = await run_in_threadpool(_checked_review, body, service.app, result, reviewer)
    if "replaces" in body.model_fields_set:
        await run_in_threadpool(service.store.reviews.put_if_unchanged, case.id, new_review, body.replaces)
    else:
        await run_in_threadpool(service.store.reviews.put, case.id, new_review)
    return ReviewAnswer.of(new_review)


@router.delete("", status_code=204, response_class=Response, responses=_NOT_FOUND)
def delete_review(
    service: ServiceDep,
    case: CaseDep,
    key_name: KeyNameDep,
    reviewer: Annotated[Reviewer | None, Query(description="the reviewer, if the server does not require keys")] = None,
) -> None:
    """Deletes the client's own review of a case."""
    service.store.reviews.remove(case.id, _reviewer(key_name, reviewer))


def _reviewer(key_name: str | None, reviewer: str | None) -> str | None:
    """The name of the reviewer: that of the key if there is one. Refuses a different name in the request."""
    name = reviewer.strip() if reviewer is not None else None
    if key_name is not None and name not in (None, "", key_name):
        raise InvalidInputError(f"the name of the key, {key_name!r}, is the reviewer; leave reviewer out")
    return key_name or name or None


def _checked_review(body: ReviewBody, app: App, result: Path | bytes, reviewer: str | None) -> Review:
    """The review in a request body. Raises ``InvalidInputError`` if it does not fit the result of the case."""
    try:
        content = json.loads(result if isinstance(result, bytes) else result.read_bytes())
    except FileNotFoundError:
        raise InvalidInputError("the case is gone from the store", status=404) from None
    verdicts = {int(number): verdict for number, verdict in body.verdicts.items()}
    missed = _read_missed(body.missed, app)
    check_review(IN_GENERAL if app.reviewing is None else app.reviewing(), content, verdicts, missed)
    return Review(reviewer=reviewer, reviewed_ns=time.time_ns(), verdicts=verdicts, missed=missed, note=body.note)


def _read_missed(findings: list[dict[str, JsonValue]], app: App) -> list[Any]:
    """Validates the missed findings and returns them in the application's type."""
    finding_type = None if app.schemas is None else app.schemas().missed
    if finding_type is None:
        if findings:
            raise InvalidInputError(f"reviews of {app.name} take only verdicts and a note, no missed findings")
        return []
    try:
        return [TypeAdapter(finding_type).validate_python(finding) for finding in findings]
    except ValidationError as error:
        fault = error.errors()[0]
        location = "".join(f".{part}" for part in fault["loc"])
        raise InvalidInputError(f"the request cannot be read: missed{location}: {fault['msg']}") from error
