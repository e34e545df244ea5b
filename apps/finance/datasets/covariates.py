"""The user's own covariates: what a network takes beside the value, fitted on the rows of the table that train."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from apps.finance.datasets.columns import are_booleans, boolean_word, number_column, word_code, word_column
from apps.finance.datasets.splits import first_validation_row, head
from apps.finance.datasets.windows import fill_missing
from apps.finance.types import (
    DAY_NS,
    QUANTILES,
    WEEK_NS,
    FinanceInput,
    Floats,
    LabelledSeries,
    LibraryTFT,
    Series,
)
from shared.errors import InvalidInputError

MAX_CATEGORIES = 1000
"""So many different words of a column, and names of series, are told apart at most."""
TARGET, GROUP, ROW = "value", "series", "row"
"""What the value, the name of a series and the number of a row are called in a network that is trained here."""
_OTHER_UNIT = 4.0
"""From this ratio of a series' usual deviation to that in training on it is told of."""
_MASKED = -1e4
"""What is added to masked attention scores: the library's -1e9 is no number in half precision."""


def fit_network(
    items: Sequence[LabelledSeries],
    input: FinanceInput,
    *,
    known: Sequence[str],
    observed: Sequence[str],
    groups: bool | None,
    validation_share: float,
) -> FinanceInput:
    """``input`` with the settings of a network over the value, the calendar and these columns.

    Scalers, words and names of series are those of the rows that train, all but the last ``validation_share`` of each
    series. Refuses a column without a value there, and one with more than ``MAX_CATEGORIES`` different words.
    """
    training = [head(one.series, first_validation_row(len(one.series), validation_share)) for one in items]
    columns: dict[str, str] = {}
    for column in (*known, *observed):
        columns[_network_name(column, columns)] = column
    scalers: dict[str, tuple[float, float]] = {}
    categories: dict[str, dict[str, int]] = {}
    for name, column in columns.items():
        numbers = [number_column(series, column) for series in training]
        if all(one is not None for one in numbers):
            scalers[name] = _scaler(np.concatenate([one for one in numbers if one is not None]), column)
        else:
            words = {str(word) for series in training for word in np.unique(word_column(series, column).astype(str))}
            if are_booleans(words):
                words = {boolean_word(word) for word in words}
            categories[name] = _codes(words, f"column {column!r} holds", "words", "leave it out, or put words together")
    names = {one.series.name for one in items}
    if groups is None:
        groups = 1 < len(names) <= MAX_CATEGORIES
    if groups and len(names) > 1:
        categories[GROUP] = _codes(names, "the table has", "series", "leave out --data.groups")
    given = [name for name, column in columns.items() if column in known]
    calendar = _calendar(training)
    reals = [TARGET, "relative_time_idx", *calendar, *scalers]
    words_of = [name for name in categories if name != GROUP]
    static = [f"{TARGET}_center"]
    network: dict[str, Any] = {
        "max_encoder_length": input.context,
        "output_size": len(QUANTILES),
        "static_categoricals": [GROUP] if GROUP in categories else [],
        "static_reals": static,
        "time_varying_categoricals_encoder": words_of,
        "time_varying_categoricals_decoder": [name for name in words_of if name in given],
        "time_varying_reals_encoder": reals,
        "time_varying_reals_decoder": [one for one in reals if one != TARGET and (one not in scalers or one in given)],
        "x_reals": [*static, *reals],
        "x_categoricals": list(categories),
        "embedding_sizes": {name: len(codes) + 1 for name, codes in categories.items()},
        "mask_bias": _MASKED,
    }
    scales = {one.name: _scale(one, input.context) for one in training}
    settings = LibraryTFT(
        network=network,
        target=TARGET,
        time_idx=ROW,
        group=GROUP,
        quantiles=QUANTILES,
        normalizer="context",
        # One series has its file's name, and goes by its scale under any other.
        target_scales=scales if len(scales) > 1 else {"": next(iter(scales.values()))},
        scalers=scalers,
        categories=categories,
        columns={TARGET: items[0].series.column, **columns},
        known=tuple(given),
        trained_here=True,
    )
    return replace(input, library=settings)


def further_network(items: Sequence[LabelledSeries], input: FinanceInput, validation_share: float) -> FinanceInput:
    """``input`` of a network that is trained further, with the scales of series that it does not know yet.

    What it knows stays: its weights were learnt with these scalers, and with these codes of words and series.
    """
    library = input.library
    assert library is not None
    if "" in library.target_scales:
        return input
    new = (item.series for item in items if item.series.name not in library.target_scales)
    heads = (head(one, first_validation_row(len(one), validation_share)) for one in new)
    scales = {one.name: _scale(one, input.context) for one in heads}
    return replace(input, library=replace(library, target_scales={**library.target_scales, **scales}))


def covariate_facts(input: FinanceInput) -> Mapping[str, str]:
    """What is printed of the covariates before training: how numbers are scaled, how many words there are."""
    library = input.library
    if library is None or not library.trained_here:
        return {}
    names = [name for name in library.columns if name != library.target]
    said = {"known ahead": [one for one in names if one in library.known]}
    said["observed until now"] = [one for one in names if one not in library.known]
    facts = {what: ", ".join(_described(one, library) for one in which) for what, which in said.items() if which}
    return facts | {"names of series": "embedded" if library.group in library.categories else "not embedded"}


def unknown_notes(series: Sequence[Series], library: LibraryTFT) -> tuple[str, ...]:
    """A note of each word and of the names of series that training has not seen; those have a place of their own."""
    notes = []
    for name, codes in library.categories.items():
        if name == library.group:
            found, what = {one.name for one in series}, "series"
        else:
            column = library.columns[name]
            cells = {cell for one in series for cell in np.unique(word_column(one, column).astype(str)).tolist()}
            cells = {cell for cell in cells if word_code(cell, codes) == 0}
            found, what = {cell or "(empty)" for cell in cells}, f"words of column {column!r}"
        new = sorted(found - codes.keys())
        if new:
            which = ", ".join(map(repr, new[:5])) + (", …" if len(new) > 5 else "")
            notes.append(f"the network was not trained on {len(new)} {what}, which it takes as unknown: {which}")
    return tuple(notes)


def unit_notes(series: Sequence[Series], library: LibraryTFT, context: int) -> tuple[str, ...]:
    """A note of series that vary far more or less within ``context`` rows than they did in training.

    They are forecast in the deviation that they had there: other units, or names that have gone to others, show so.
    Of series that mostly stand still, as counts of rare things do and feeds that have stopped, nothing is told: they
    vary by how often they move, whatever their unit.
    """
    scales = library.target_scales
    known = [(one, scales.get(one.name, scales.get(""))) for one in series if not _mostly_still(one)]
    times = {one.name: _scale(one, context)[1] / scale[1] for one, scale in known if scale is not None}
    other = {name: ratio for name, ratio in times.items() if not 1 / _OTHER_UNIT < ratio < _OTHER_UNIT}
    if not other:
        return ()
    which = ", ".join(f"{name!r} {ratio:.3g} times as much" for name, ratio in list(other.items())[:5])
    return (
        f"{len(other)} series vary more than {_OTHER_UNIT:g} times as much or as little as in training, so that their "
        f"forecasts are rough: {which}{', …' * (len(other) > 5)}; hand them in by the unit of the training, or "
        "train on them",
    )


def _mostly_still(series: Series) -> bool:
    """Whether at least half of the values are those before them."""
    values = series.target[np.isfinite(series.target)]
    return len(values) < 2 or float(np.median(np.abs(np.diff(values)))) == 0


def horizon_notes(series: Sequence[Series], library: LibraryTFT, horizon: int) -> tuple[str, ...]:
    """A note where rows at the end have known covariates and no value, as rows that are still to come are handed in."""
    empty = [int(np.argmax(np.isfinite(one.target)[::-1])) for one in series]
    if not library.known or not any(empty):
        return ()
    return (
        f"the last {max(empty)} rows have no value, and are scored as a feed that has stopped; leave out rows that "
        f"are still to come. Beyond {horizon} rows their forecast rests on values that are filled in",
    )


def _described(name: str, library: LibraryTFT) -> str:
    if name in library.categories:
        return f"{library.columns[name]} ({len(library.categories[name])} words)"
    mean, deviation = library.scalers[name]
    return f"{library.columns[name]} (mean {mean:.4g}, deviation {deviation:.4g})"


def _network_name(column: str, taken: Mapping[str, str]) -> str:
    """What a column is called in the network, whose layers' names hold no point and must not be those of methods."""
    name = f"of_{re.sub(r'[^0-9A-Za-z]+', '_', column)}"
    while name in taken:
        name = f"{name}_{len(taken)}"
    return name


def _codes(words: Iterable[str], what: str, kind: str, remedy: str) -> dict[str, int]:
    """A code from 1 on for each word; 0 is that of all others."""
    ordered = sorted(words)
    if len(ordered) > MAX_CATEGORIES:
        raise InvalidInputError(
            f"{what} {len(ordered)} different {kind} in the rows that train, and at most {MAX_CATEGORIES} are told "
            f"apart; {remedy}"
        )
    return {word: code for code, word in enumerate(ordered, 1)}


def _scaler(numbers: Floats, column: str) -> tuple[float, float]:
    if not np.isfinite(numbers).any():
        raise InvalidInputError(
            f"column {column!r} has no value in the rows that train, so that nothing is learnt of it"
        )
    return _mean_and_deviation(numbers)


def _mean_and_deviation(values: Floats) -> tuple[float, float]:
    """Of the values that there are; the deviation is 1 where they are all the same."""
    seen = values[np.isfinite(values)]
    if not len(seen):
        return 0.0, 1.0
    deviation = float(seen.std())
    return float(seen.mean()), deviation if deviation > 1e-9 * max(1.0, float(np.abs(seen).max())) else 1.0


def _scale(series: Series, context: int) -> tuple[float, float]:
    """The mean of a series, and its usual deviation within ``context`` rows: the unit in which it is forecast.

    One for all windows of a series, so that what a covariate adds is always as much; and of a price, which wanders, not
    that of all it has been.
    """
    values = fill_missing(series.target)
    mean, whole = _mean_and_deviation(values)
    rows = min(context, len(values))
    windows = np.lib.stride_tricks.sliding_window_view(values, rows)[:: max(rows // 4, 1)]
    usual = float(np.median(windows.std(axis=1)))
    return mean, usual if usual > 1e-3 * whole else whole


def _calendar(training: Sequence[Series]) -> list[str]:
    """What is taken of the times: the time of day and the values at it before, of rows less than a day apart, ..."""
    interval = min(one.interval_ns for one in training)
    day = ("time_of_day_sin", "time_of_day_cos", "day_before", "day_before_known") if interval < DAY_NS else ()
    week = ("day_of_week_sin", "day_of_week_cos", "week_before", "week_before_known") if interval < WEEK_NS else ()
    return [*day, *week]
