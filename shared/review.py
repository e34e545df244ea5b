"""Reviews of cases: a reader's verdicts on the findings, and how an application has its cases reviewed.

A finding is identified by its number in ``result.json``, counted from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypeAliasType

from shared.errors import InvalidInputError
from shared.utc_time import iso_utc

Verdict = TypeAliasType("Verdict", Literal["accepted", "rejected"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """One reader's review of a case. A later review by the same reader replaces it.

    reviewer     name of the reader; None if no name was given
    reviewed_ns  time of the review, UTC nanoseconds
    verdicts     by the number of the finding; a finding without a verdict is undecided
    missed       findings that the model missed, in the type of the application's ``Schemas.missed``
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
    """A case with the review to use, for export as training data.

    ``result`` is the content of ``result.json``. ``file`` returns a file of the case or, if it has not been generated
    yet, its sources by name; None if there is neither. ``input`` returns the whole input that was analysed, by its name
    in ``DeferredFiles.inputs``; None if it was not kept.
    """

    id: str
    created_ns: int
    artifact: tuple[str, int]
    review: Review
    result: Mapping[str, Any]
    file: Callable[[str], bytes | Mapping[str, bytes] | None]
    input: Callable[[str], bytes | None]

    @property
    def is_empty_review(self) -> bool:
        """Whether the review neither judges a finding nor adds one."""
        return not (self.review.verdicts or self.review.missed)

    def numbers(self, verdict: Verdict) -> list[int]:
        """The numbers of the findings that have this verdict, in ascending order."""
        return sorted(number for number, own_verdict in self.review.verdicts.items() if own_verdict == verdict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reviewing:
    """How an application's cases are reviewed.

    count    returns the number of findings in a ``result.json``
    check    raises ``InvalidInputError`` for missed findings (``Schemas.missed``) that do not fit a ``result.json``,
             such as a frame that it does not have
    export   writes reviewed cases, the oldest first, as training data into an empty folder; returns sentences for the
             person who trains on it: what was skipped, and the command to train. None if the application has no export
    """

    count: Callable[[Mapping[str, Any]], int]
    check: Callable[[Sequence[Any], Mapping[str, Any]], None] | None = None
    export: Callable[[Sequence[ReviewedCase], Path], Sequence[str]] | None = None


def _count_findings(result: Mapping[str, Any]) -> int:
    findings = result.get("findings")
    return len(findings) if isinstance(findings, list) else 1


IN_GENERAL = Reviewing(count=_count_findings)
"""For an application without ``reviewing``: its findings are ``result["findings"]``, or the whole result."""


def check_review(
    reviewing: Reviewing, result: Mapping[str, Any], verdicts: Mapping[int, Verdict], missed: Sequence[Any]
) -> None:
    """Raises ``InvalidInputError`` for verdicts on findings that do not exist, or missed findings that do not fit."""
    count = reviewing.count(result)
    if unknown := sorted(number for number in verdicts if not 1 <= number <= count):
        available = {0: "no findings", 1: "one finding, number 1"}.get(count, f"findings 1 to {count}")
        raise InvalidInputError(f"the case has no finding {unknown[0]}; it has {available}")
    if missed and reviewing.check is not None:
        reviewing.check(missed, result)
