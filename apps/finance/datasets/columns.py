"""A series' covariate columns, as numbers or as words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from apps.finance.types import Floats, Series, Words
from shared.errors import InvalidInputError

_BOOLEANS = {"true": "true", "1": "true", "1.0": "true", "false": "false", "0": "false", "0.0": "false"}
"""How programs write booleans, in lower case: pandas True, Parquet and JSON true, spreadsheets TRUE, databases 1."""
_MISSING_WORDS = ("nan", "None", "<NA>")
"""What pandas writes for a missing cell that is converted to text, as the library's users do."""


def are_booleans(words: Iterable[str]) -> bool:
    """Whether the words are booleans in any notation. If there are only 0 and 1, they are numbers."""
    present = {word.lower() for word in words} - {""}
    return present <= _BOOLEANS.keys() and not present.isdisjoint(("true", "false"))


def boolean_word(word: str) -> str:
    """``true`` or ``false`` for a boolean in any notation; other words unchanged."""
    return _BOOLEANS.get(word.lower(), word)


def boolean_numbers(words: Words) -> Floats | None:
    """(N,) a column of booleans as 1 and 0, NaN for empty cells; None if the words are not booleans."""
    distinct, positions = np.unique(words.astype(str), return_inverse=True)
    if not are_booleans(distinct.tolist()):
        return None
    values = {"true": 1.0, "false": 0.0, "": np.nan}
    return np.array([values[boolean_word(word)] for word in distinct.tolist()])[positions]


def word_code(word: str, codes: Mapping[str, int]) -> int:
    """The code of a word; 0 if it has none. Booleans match in any notation."""
    if word in codes or not are_booleans(codes):
        return codes.get(word, 0)
    matches = (code for known, code in codes.items() if boolean_word(known) == boolean_word(word))
    return next(matches, 0)


def imported_code(word: str, known: Mapping[str, int], unknown: int | None = None) -> int | None:
    """The code of a table's word in an encoder of the library; ``unknown`` if it has none.

    Files write some words otherwise than pandas does: an empty cell is nan, 1 is 1.0, and true is True.
    """
    if word in known:
        return known[word]
    if not word:
        return next((known[missing] for missing in _MISSING_WORDS if missing in known), unknown)
    labels = [label for label in known if label not in _MISSING_WORDS]
    if are_booleans(labels):
        return next((known[label] for label in labels if boolean_word(label) == boolean_word(word)), unknown)
    number = _number(word)
    same = [label for label in labels if number is not None and _number(label) == number]
    return known[same[0]] if len(same) == 1 else unknown


def _number(word: str) -> float | None:
    """The number that a word is in digits, else None."""
    digits = word.removeprefix("-").replace(".", "", 1)
    return float(word) if digits.isascii() and digits.isdigit() else None


def number_column(series: Series, column: str) -> Floats | None:
    """(N,) a numeric covariate, NaN where missing; None if the column holds words. A column without any entry can be
    either.

    Raises InvalidInputError if the series has no such column.
    """
    if column in series.values:
        return series.values[column]
    return None if (_words_of(series, column) != "").any() else np.full(len(series), np.nan)


def numbers_of(series: Series, column: str) -> Floats:
    """(N,) a covariate as numbers, NaN where missing; booleans are 1 and 0. Raises InvalidInputError if it holds other
    words."""
    numbers = number_column(series, column)
    if numbers is None:
        numbers = boolean_numbers(series.words[column])
    if numbers is None:
        word = next(cell for cell in series.words[column] if cell)
        raise InvalidInputError(
            f"{series.name}: column {column!r} holds {word!r}, but the network was trained on numbers in this column"
        )
    return numbers


def word_column(series: Series, column: str) -> Words:
    """(N,) a covariate as words; numbers are formatted as text, missing values are empty texts."""
    if column not in series.values:
        return _words_of(series, column)
    numbers = series.values[column].tolist()
    return np.array(["" if number != number else f"{number:.15g}" for number in numbers], dtype=object)


def _words_of(series: Series, column: str) -> Words:
    if column not in series.words:
        available = ", ".join([*series.values, *series.words])
        raise InvalidInputError(
            f"{series.name} has no column {column!r}, which the network needs as a covariate; it has {available}"
        )
    return series.words[column]
