"""Reviewed cases: what an analyst says of the events is checked against the series."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from apps.finance.types import SECOND_NS
from shared.errors import InvalidInputError
from shared.review import Reviewing

if TYPE_CHECKING:
    from apps.finance.schemas import FinanceMissed

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")


def time_ns(text: str) -> int:
    """A time as events state it, in UTC nanoseconds. Refuses another way of writing."""
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        moment = datetime.strptime(found[1], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidInputError(f"{text!r} is no time as events have it; write 2014-04-01T00:05:00Z") from None
    return int(moment.timestamp()) * SECOND_NS + int((found[2] or "0").ljust(9, "0"))


def _count(result: Mapping[str, Any]) -> int:
    return len(result["events"])


def _check(missed: Sequence[FinanceMissed], result: Mapping[str, Any]) -> None:
    """Refuses a stretch that does not lie in its series."""
    parts = {part["name"]: part for part in result.get("parts", ())}
    for one in missed:
        name = one.get("series")
        if parts and name not in parts:
            raise InvalidInputError(f"the case has no series {name!r}; name that of a missed event as in parts")
        if not parts and name not in (None, result["series"]["name"]):
            raise InvalidInputError(f"the case has one series, and not {name!r}; leave series out")
        series = parts[str(name)] if parts else result["series"]
        start, end = time_ns(one["start"]), time_ns(one["end"])
        if not time_ns(series["start"]) <= start <= end <= time_ns(series["end"]):
            raise InvalidInputError(
                f"the missed event from {one['start']} to {one['end']} does not lie in its series, which goes from "
                f"{series['start']} to {series['end']}"
            )


REVIEWING = Reviewing(count=_count, check=_check)
