"""A series' columns of covariates, as numbers or as words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from apps.finance.types import Floats, Series, Words
from shared.errors import InvalidInputError

_BOOLEANS = {"true": "true", "1": "true", "1.0": "true", "false": "false", "0": "false", "0.0": "false"}
"""How programs write booleans, in lower case: pandas True, Parquet and JSON true, spreadsheets TRUE, data bases 1."""


def are_booleans(words: Iterable[str]) -> bool:
    """Whether words are booleans, however they are written. 0 and 1 alone are numbers."""
    there = {word.lower() for word in words} - {""}
    return there <= _BOOLEANS.keys() and not there.isdisjoint(("true", "false"))


def boolean_word(word: str) -> str:
    """A boolean as one word whatever wrote it, true or false; other words as they are."""
    return _BOOLEANS.get(word.lower(), word)


def boolean_numbers(words: Words) -> Floats | None:
    """(N,) a column of booleans as 1 and 0, NaN where the cell is empty; None of other words."""
    different, places = np.unique(words.astype(str), return_inverse=True)
    if not are_booleans(different.tolist()):
        return None
    values = {"true": 1.0, "false": 0.0, "": np.nan}
    return np.array([values[boolean_word(word)] for word in different.tolist()])[places]


def word_code(word: str, codes: Mapping[str, int]) -> int:
    """The code of a word, 0 where there is none. Of booleans it is that of the same one, however either is written."""
    if word in codes or not are_booleans(codes):
        return codes.get(word, 0)
    same = (code for other, code in codes.items() if boolean_word(other) == boolean_word(word))
    return next(same, 0)


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
