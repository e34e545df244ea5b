"""Reviews of kept cases: what readers say of the findings."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import JsonValue, TypeAdapter, ValidationError

from shared.app import App
from shared.errors import InvalidInputError
from shared.review import IN_GENERAL, Review, check_review
from shared.secure.access import Key
from shared.serve.api.deps import CaseDep, ServiceDep
from shared.serve.api.schemas import Problem, ReviewAnswer, ReviewBody, Reviewer, Reviews
from shared.store.cases import RESULT

_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such case"}}
_REFUSED: dict[int | str, dict[str, Any]] = {
    **_MISSING,
    409: {"model": Problem, "description": "The case could not be kept, and is only held for a while"},
    412: {"model": Problem, "description": "The reviewer's review is not the one that `replaces` names"},
    507: {"model": Problem, "description": "The disk is full"},
}
router = APIRouter(prefix="/cases/{case_id}/review")


async def get_key_name(request: Request) -> str | None:
    """The name of the key of who asks; None where the server requires none."""
    key: Key | None = getattr(request.state, "key", None)
    return None if key is None else key.name


KeyNameDep = Annotated[str | None, Depends(get_key_name)]


@router.get("", responses=_MISSING)
def reviews(service: ServiceDep, case: CaseDep, key_name: KeyNameDep) -> Reviews:
    """The reviews of a case, one of each reviewer."""
    found = service.store.reviews.of_case(case.id)
    return Reviews(case=case.id, reviewer=key_name, reviews=[ReviewAnswer.of(review) for review in found])


@router.put("", responses=_REFUSED)
async def review(service: ServiceDep, case: CaseDep, key_name: KeyNameDep, body: ReviewBody) -> ReviewAnswer:
    """Reviews a case, in place of the same reviewer's earlier review.

    Findings are named by their number in `result`: medical's `rank`, the place in driving's `boxes` or in finance's
    `events`, from 1.
    """
    if case.remark is not None:
        raise InvalidInputError(f"the case cannot be reviewed: {case.remark}", status=409)
    reviewer, found = _reviewer(key_name, body.reviewer), await service.file(case, RESULT)
    given = await run_in_threadpool(_checked, body, service.app, found, reviewer)
    if "replaces" in body.model_fields_set:
        await run_in_threadpool(service.store.reviews.put_over, case.id, given, body.replaces)
    else:
        await run_in_threadpool(service.store.reviews.put, case.id, given)
    return ReviewAnswer.of(given)


@router.delete("", status_code=204, responses=_MISSING)
def delete_review(
    service: ServiceDep,
    case: CaseDep,
    key_name: KeyNameDep,
    reviewer: Annotated[Reviewer | None, Query(description="whose, where the server requires no keys")] = None,
) -> None:
    """Deletes the own review of a case."""
    service.store.reviews.remove(case.id, _reviewer(key_name, reviewer))


def _reviewer(key_name: str | None, given: str | None) -> str | None:
    """Who reviews: the key's name where there is a key. Refuses another name beside it."""
    name = given.strip() if given is not None else None
    if key_name is not None and name not in (None, "", key_name):
        raise InvalidInputError(f"the reviewer is the name of the key, {key_name!r}; leave reviewer out")
    return key_name or name or None


def _checked(body: ReviewBody, app: App, result: Path | bytes, reviewer: str | None) -> Review:
    """The review that a body states. Raises ``InvalidInputError`` where it does not fit the case's result."""
    try:
        content = json.loads(result if isinstance(result, bytes) else result.read_bytes())
    except FileNotFoundError:
        raise InvalidInputError("the case is gone from the store", status=404) from None
    verdicts = {int(number): verdict for number, verdict in body.verdicts.items()}
    missed = _missed(body.missed, app)
    check_review(IN_GENERAL if app.reviewing is None else app.reviewing(), content, verdicts, missed)
    return Review(reviewer=reviewer, reviewed_ns=time.time_ns(), verdicts=verdicts, missed=missed, note=body.note)


def _missed(given: list[dict[str, JsonValue]], app: App) -> list[Any]:
    """Missed findings in the application's types."""
    kind = None if app.schemas is None else app.schemas().missed
    if kind is None:
        if given:
            raise InvalidInputError(f"{app.name} takes verdicts and a note, and no missed findings")
        return []
    try:
        return [TypeAdapter(kind).validate_python(one) for one in given]
    except ValidationError as error:
        fault = error.errors()[0]
        where = "".join(f".{part}" for part in fault["loc"])
        raise InvalidInputError(f"the request cannot be read: missed{where}: {fault['msg']}") from error
