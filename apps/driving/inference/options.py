"""What a request may ask for: as typed options, and read from text. It needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from apps.driving.models import IMPORTED, MODELS
from shared.errors import InvalidInputError

_OPTIONS = ("model", "score", "topic")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """``model`` to be used, by default the first that has what it needs; ``score``, the least for every class.

    Without ``score`` the least of each class is what the model's calibration found. ``topic`` is that of the sweeps in
    a ROS bag; it may be left out where there is one alone.
    """

    model: str | None = None
    score: float | None = None
    topic: str | None = None

    def __post_init__(self) -> None:
        if self.model is not None and self.model not in (*MODELS, *IMPORTED):
            raise InvalidInputError(f"there is no model {self.model!r}; there may be {', '.join((*MODELS, *IMPORTED))}")
        if self.score is not None and not (isinstance(self.score, int | float) and 0 <= self.score <= 1):
            raise InvalidInputError(f"score={self.score!r}: give a number from 0 to 1")


def read_options(options: Mapping[str, str]) -> Options:
    """A request's options, in their types; refuses unknown ones and scores that are none."""
    if unknown := sorted(options.keys() - set(_OPTIONS)):
        raise InvalidInputError(f"there is no option {unknown[0]}; there are {', '.join(_OPTIONS)}")
    return Options(
        model=options.get("model") or None,
        score=_score(options.get("score") or None),
        topic=options.get("topic") or None,
    )


def _score(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InvalidInputError(f"score={text}: give a number from 0 to 1")
    return value
