"""A series' columns of covariates, as numbers or as words."""

from __future__ import annotations

import numpy as np

from apps.finance.types import Floats, Series, Words
from shared.errors import InvalidInputError


def number_column(series: Series, column: str) -> Floats | None:
    """(N,) a covariate of numbers, NaN where missing; None of one of words. A column without any entry can be either.

    Refuses a series without that column.
    """
    if column in series.values:
        return series.values[column]
    return None if (_words_of(series, column) != "").any() else np.full(len(series), np.nan)


def word_column(series: Series, column: str) -> Words:
    """(N,) a covariate of words, numbers among them as they are written; an empty text where nothing is."""
    if column not in series.values:
        return _words_of(series, column)
    numbers = series.values[column].tolist()
    return np.array(["" if number != number else f"{number:.15g}" for number in numbers], dtype=object)


def _words_of(series: Series, column: str) -> Words:
    if column not in series.words:
        there = ", ".join([*series.values, *series.words])
        raise InvalidInputError(
            f"{series.name} has no column {column!r}, which the network takes as a covariate; it has {there}"
        )
    return series.words[column]
