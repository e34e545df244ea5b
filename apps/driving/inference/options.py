"""The options of a request, typed, and parsed from text. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from apps.driving.models import IMPORTED, MODELS
from shared.errors import InvalidInputError

_OPTIONS = ("model", "score", "topic")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """``model`` is the model to use, by default the first whose sensor the frame has; ``score`` the minimum score for
    all classes, by default each class's calibrated minimum.

    ``topic`` is the ROS bag's topic with the sweeps; it may be omitted if there is only one.
    """

    model: str | None = None
    score: float | None = None
    topic: str | None = None

    def __post_init__(self) -> None:
        if self.model is not None and self.model not in (*MODELS, *IMPORTED):
            raise InvalidInputError(f"unknown model {self.model!r}; the models are {', '.join((*MODELS, *IMPORTED))}")
        if self.score is not None and not (isinstance(self.score, int | float) and 0 <= self.score <= 1):
            raise InvalidInputError(f"score={self.score!r}: give a number from 0 to 1")


def read_options(options: Mapping[str, str]) -> Options:
    """A request's options, parsed; raises InvalidInputError for unknown options and invalid scores."""
    if unknown := sorted(options.keys() - set(_OPTIONS)):
        raise InvalidInputError(f"unknown option {unknown[0]}; the options are {', '.join(_OPTIONS)}")
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
