"""The covariates of a series' rows by their names in a network of pytorch-forecasting, and the codes of its categories.

A network trained here takes words that it does not know as code 0. An imported one takes the codes of its checkpoint's
encoders, and refuses a word without a code, as its library does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from apps.finance.datasets.columns import imported_code, numbers_of, word_code, word_column
from apps.finance.datasets.windows import fill_missing, last_seen, same_time_before
from apps.finance.models.calendar import CALENDAR, columns_taken, is_of_calendar
from apps.finance.types import WEEK_NS, Floats, LibraryTFT, Series, iso_utc
from shared.errors import InvalidInputError

LAGGED_VALUES = {"day_before": "day_before_known", "week_before": "week_before_known"}
"""Lagged values of the target that a network trained here takes, in the target's units, and whether they exist."""


def values_before(series: Series, horizon: int, first: int = 0) -> dict[str, Floats]:
    """By covariate name (N - first,): the median of the values at the same time on earlier days and in earlier weeks,
    and the share of these that exist.

    Each uses only rows at least ``horizon`` earlier.
    """
    days = same_time_before(series, horizon=horizon, first=first)
    weeks = same_time_before(series, horizon=horizon, lag_ns=WEEK_NS, count=2, first=first)
    names = (*LAGGED_VALUES.items(),)
    return {
        name: values
        for pair, lagged in zip(names, (days, weeks), strict=True)
        for name, values in zip(pair, lagged, strict=True)
    }


def refuse_missing(series: Series, name: str, settings: LibraryTFT, context: int, horizon: int, first: int = 0) -> None:
    """Raises InvalidInputError if a known numeric covariate has no value in all rows of some forecast after row
    ``first``."""
    column = settings.columns[name]
    begin = max(first - horizon, 0)
    series, context = series.from_row(begin), max(context - begin, 0)
    missing = ~np.isfinite(numbers_of(series, column))
    missing[:context] = False  # rows that are not forecast
    rows_without_value = np.arange(len(missing)) - np.maximum.accumulate(np.where(missing, -1, np.arange(len(missing))))
    if (rows_without_value >= horizon).any():
        row = int(np.argmax(rows_without_value >= horizon))
        start, end = (iso_utc(int(series.times_ns[edge])) for edge in (row - horizon + 1, row))
        raise InvalidInputError(
            f"{series.name}: column {column!r} is known ahead of time to the network, but has no value in the "
            f"{horizon} rows from {start} to {end}, which are forecast at once; fill it in (with 0 if an empty cell "
            "means none)"
        )


def typed_covariates(series: Series, settings: LibraryTFT) -> Series:
    """The series with the network's columns as the network takes them: numbers, or words.

    A file in which a column is empty, or has only booleans or numbers, leaves open which. Raises InvalidInputError if
    the series lacks a column, and if it holds words where the network takes numbers.
    """
    values, words = dict(series.values), dict(series.words)
    reals, categories = settings.network["x_reals"], settings.network.get("x_categoricals") or []
    for column in columns_taken(settings):
        covariate_name = next((name for name, taken in settings.columns.items() if taken == column), column)
        if covariate_name in reals and column in words:
            values[column] = numbers_of(series, column)
            del words[column]
        elif covariate_name in categories:
            words[column] = word_column(series, column)
            values.pop(column, None)
        elif column not in values:
            covariate(series, covariate_name, settings)  # raises the error that names the column
    return replace(series, values=values, words=words)


def covariate(series: Series, name: str, settings: LibraryTFT) -> Floats:
    """(N,) a real covariate: the row's number, a column of the series, or a function of its times.

    Missing values take the value before them; leading ones take the training mean if the network is trained here.
    Raises InvalidInputError if the series has no such column.
    """
    if name in settings.columns:
        values = last_seen(numbers_of(series, settings.columns[name]))
        return np.where(np.isnan(values), settings.scalers[name][0], values)
    if name == settings.time_idx:
        return np.arange(len(series), dtype=np.float64)
    if name in series.values:
        return fill_missing(series.values[name])
    if name in CALENDAR:
        return CALENDAR[name](series.times_ns).astype(np.float64)
    if name in series.words:
        return fill_missing(numbers_of(series, name))
    raise InvalidInputError(
        f"{series.name} has no column {name!r}, which the model needs as a covariate; it has {', '.join(series.values)}"
    )


def category_codes(series: Series, name: str, settings: LibraryTFT) -> np.ndarray:
    """(N,) the codes of a categorical covariate: the name of the series, a part of its times, or a column of words.

    Raises InvalidInputError if an imported network has no code for a word.
    """
    known = settings.categories[name]
    if settings.trained_here:
        if name == settings.group:
            return np.full(len(series), known.get(series.name, 0), np.int64)
        words, positions = np.unique(word_column(series, settings.columns[name]).astype(str), return_inverse=True)
        return np.array([word_code(str(word), known) for word in words], np.int64)[positions]
    unknown = 0 if name in settings.unknown_words else None
    if name == settings.group:
        code = next(iter(known.values())) if len(known) == 1 else known.get(series.name, unknown)
        if code is not None:
            return np.full(len(series), code, np.int64)
        raise InvalidInputError(
            f"the model knows the series {', '.join(list(known)[:10])}, but not {series.name!r}; use a table whose "
            "series column names one of them (the option 'series')"
        )
    if is_of_calendar(name, known):
        words, positions = np.unique(CALENDAR[name](series.times_ns).astype(np.int64), return_inverse=True)
    else:
        words, positions = np.unique(word_column(series, name).astype(str), return_inverse=True)
    codes = [imported_code(str(word), known, unknown) for word in words.tolist()]
    if None in codes:
        word = str(words[codes.index(None)])
        text = f"the {name} {word}" if is_of_calendar(name, known) else f"the word {word!r} in column {name!r}"
        raise InvalidInputError(
            f"the model was not trained on {text}, which {series.name} has; it knows {', '.join(list(known)[:10])}"
            f"{', …' * (len(known) > 10)}"
        )
    return np.array(codes, np.int64)[positions]
