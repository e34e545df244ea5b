"""Reviews: what a reader says of a case's findings, and what an application says of how its own are reviewed.

A finding is addressed by its number in ``result.json``, from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from shared.errors import InvalidInputError
from shared.utc_time import iso_utc

Verdict: TypeAlias = Literal["accepted", "rejected"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """What one reader says of a case; a later review of the same reader takes its place.

    reviewer     who; None where nobody was named
    reviewed_ns  when, UTC nanoseconds
    verdicts     by the finding's number; what is not in it is undecided
    missed       findings that should have been made, as the application's ``Schemas.missed`` describes them
    """

    reviewer: str | None
    reviewed_ns: int
    verdicts: Mapping[int, Verdict]
    missed: Sequence[Mapping[str, Any]] = ()
    note: str = ""

    @property
    def reviewed(self) -> str:
        """The time in ISO 8601, UTC, to the millisecond."""
        return iso_utc(self.reviewed_ns / 1e9)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewedCase:
    """A case with the review that counts, as it goes into training data.

    ``result`` is ``result.json``. ``file`` gives a file of the case, or where it was not made yet what it is made from
    by name; None where there is neither. ``input`` gives what was analysed, whole, by the application's name for it in
    ``Later.inputs``; None where it was not kept.
    """

    id: str
    created_ns: int
    artifact: tuple[str, int]
    review: Review
    result: Mapping[str, Any]
    file: Callable[[str], bytes | Mapping[str, bytes] | None]
    input: Callable[[str], bytes | None]

    @property
    def says_nothing(self) -> bool:
        """Whether there are findings to judge, and the review neither judges one nor adds one."""
        return not (self.review.verdicts or self.review.missed)

    def numbers(self, verdict: Verdict) -> list[int]:
        """The numbers of the findings with a verdict, in their order."""
        return sorted(number for number, said in self.review.verdicts.items() if said == verdict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reviewing:
    """How an application's cases are reviewed.

    count    how many findings a ``result.json`` has
    check    refuses findings that were missed, ``Schemas.missed``, for which a ``result.json`` has no place
    export   writes reviewed cases, the oldest first, as training data into an empty folder; returns sentences for who
             trains on it: what was left out, and the command. None where it cannot
    """

    count: Callable[[Mapping[str, Any]], int]
    check: Callable[[Sequence[Any], Mapping[str, Any]], None] | None = None
    export: Callable[[Sequence[ReviewedCase], Path], Sequence[str]] | None = None


def _count_in_general(result: Mapping[str, Any]) -> int:
    findings = result.get("findings")
    return len(findings) if isinstance(findings, list) else 1


IN_GENERAL = Reviewing(count=_count_in_general)
"""Of an application that says nothing of reviews: its list ``findings``, or else its result as one finding."""


def check_review(
    reviewing: Reviewing, result: Mapping[str, Any], verdicts: Mapping[int, Verdict], missed: Sequence[Any]
) -> None:
    """Refuses verdicts on findings that are not there, and missed findings for which there is no place."""
    count = reviewing.count(result)
    if unknown := sorted(number for number in verdicts if not 1 <= number <= count):
        there = {0: "no findings", 1: "one finding, number 1"}.get(count, f"findings 1 to {count}")
        raise InvalidInputError(f"the case has no finding {unknown[0]}; it has {there}")
    if missed and reviewing.check is not None:
        reviewing.check(missed, result)
