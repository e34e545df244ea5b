"""The options of a request: their types, and parsing from text. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.errors import InvalidInputError

MAX_FINDINGS = 100
READER_OPTIONS = ("series", "patient", "incomplete")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Lists at most ``max_findings`` findings that score at least ``min_score``."""

    min_score: float = 0.05
    max_findings: int = 10


def read_options(options: Mapping[str, str]) -> Options:
    """Parses the options ``score`` and ``most`` of a request; ``READER_OPTIONS`` are left to the reader.

    Raises InvalidInputError for unknown options and invalid values.
    """
    default = Options()
    if unknown := sorted(options.keys() - {"score", "most", *READER_OPTIONS}):
        raise InvalidInputError(
            f"unknown option {unknown[0]}; the options are score, most, {', '.join(READER_OPTIONS)}"
        )
    for name in ("patient", "incomplete"):
        if (options.get(name) or "no") not in ("yes", "no"):
            raise InvalidInputError(f"the option {name} is {options[name]!r}; expected yes or no")
    return Options(
        min_score=_number(options, "score", default.min_score, 0, 1),
        max_findings=_whole_number(options, "most", default.max_findings, 1, MAX_FINDINGS),
    )


def _number(options: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = options.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise InvalidInputError(f"the option {name} is {text!r}; expected a number from {low:g} to {high:g}")
    return value


def _whole_number(options: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    value = _number(options, name, default, low, high)
    if value % 1:
        raise InvalidInputError(f"the option {name} is {options[name]!r}; expected a whole number from {low} to {high}")
    return int(value)
