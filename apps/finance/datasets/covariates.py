"""The user's own covariates: which columns a network takes besides the value, fitted on the table's training rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from apps.finance.datasets.columns import (
    are_booleans,
    boolean_word,
    imported_code,
    number_column,
    word_code,
    word_column,
)
from apps.finance.datasets.splits import training_part
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
"""The maximum number of different words in a column, and of series names."""
TARGET, GROUP, ROW = "value", "series", "row"
"""The names of the value, of the series' name and of the row number in a network that is trained here."""
_MAX_SCALE_RATIO = 4.0
"""A series whose typical deviation differs from that in training by at least this factor gets a note."""
_MASK_BIAS = -1e4
"""The value added to masked attention scores; the library's -1e9 overflows in half precision."""


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

    Scalers, words and series names come from the training rows: all but the last ``validation_share`` of each series.
    Raises InvalidInputError for a column without a value there, and for one with more than ``MAX_CATEGORIES`` words.
    """
    training = [training_part(item.series, validation_share) for item in items]
    columns: dict[str, str] = {}
    for column in (*known, *observed):
        columns[_network_name(column, columns)] = column
    scalers: dict[str, tuple[float, float]] = {}
    categories: dict[str, dict[str, int]] = {}
    for name, column in columns.items():
        columns_of_numbers = [number_column(series, column) for series in training]
        if all(numbers is not None for numbers in columns_of_numbers):
            scalers[name] = _scaler(
                np.concatenate([numbers for numbers in columns_of_numbers if numbers is not None]), column
            )
        else:
            words = {str(word) for series in training for word in np.unique(word_column(series, column).astype(str))}
            if are_booleans(words):
                words = {boolean_word(word) for word in words}
            categories[name] = _codes(words, f"column {column!r} holds", "words", "leave it out, or merge words")
    names = {item.series.name for item in items}
    if groups is None:
        groups = 1 < len(names) <= MAX_CATEGORIES
    if groups and len(names) > 1:
        categories[GROUP] = _codes(names, "the table has", "series", "leave out --data.groups")
    known_names = [name for name, column in columns.items() if column in known]
    calendar = _calendar_covariates(training)
    reals = [TARGET, "relative_time_idx", *calendar, *scalers]
    word_names = [name for name in categories if name != GROUP]
    static = [f"{TARGET}_center"]
    network: dict[str, Any] = {
        "max_encoder_length": input.context,
        "output_size": len(QUANTILES),
        "static_categoricals": [GROUP] if GROUP in categories else [],
        "static_reals": static,
        "time_varying_categoricals_encoder": word_names,
        "time_varying_categoricals_decoder": [name for name in word_names if name in known_names],
        "time_varying_reals_encoder": reals,
        "time_varying_reals_decoder": [
            name for name in reals if name != TARGET and (name not in scalers or name in known_names)
        ],
        "x_reals": [*static, *reals],
        "x_categoricals": list(categories),
        "embedding_sizes": {name: len(codes) + 1 for name, codes in categories.items()},
        "mask_bias": _MASK_BIAS,
    }
    scales = {series.name: _scale(series, input.context) for series in training}
    settings = LibraryTFT(
        network=network,
        target=TARGET,
        time_idx=ROW,
        group=GROUP,
        quantiles=QUANTILES,
        normalizer="context",
        # A single series is named after its file; its scale applies under any name.
        target_scales=scales if len(scales) > 1 else {"": next(iter(scales.values()))},
        scalers=scalers,
        categories=categories,
        columns={TARGET: items[0].series.column, **columns},
        known=tuple(known_names),
        trained_here=True,
    )
    return replace(input, library=settings)


def further_network(items: Sequence[LabelledSeries], input: FinanceInput, validation_share: float) -> FinanceInput:
    """``input`` of a network that is trained further, with the scales of series that it does not know yet.

    Existing scalers and codes stay, because the weights were learnt with them.
    """
    library = input.library
    assert library is not None
    if "" in library.target_scales:
        return input
    new = (item.series for item in items if item.series.name not in library.target_scales)
    heads = (training_part(series, validation_share) for series in new)
    scales = {series.name: _scale(series, input.context) for series in heads}
    return replace(input, library=replace(library, target_scales={**library.target_scales, **scales}))


def covariate_facts(input: FinanceInput) -> Mapping[str, str]:
    """The facts about covariates printed before training: how numbers are scaled, and how many words there are."""
    library = input.library
    if library is None or not library.trained_here:
        return {}
    names = [name for name in library.columns if name != library.target]
    groups = {"known ahead": [name for name in names if name in library.known]}
    groups["observed until now"] = [name for name in names if name not in library.known]
    facts = {
        kind: ", ".join(_describe_covariate(name, library) for name in group) for kind, group in groups.items() if group
    }
    return facts | {"names of series": "embedded" if library.group in library.categories else "not embedded"}


def unknown_notes(series: Sequence[Series], library: LibraryTFT) -> tuple[str, ...]:
    """A note for each category with words or series names that the training data did not contain; they share code 0."""
    notes = []
    for name in library.categories if library.trained_here else library.unknown_words:
        codes = library.categories[name]
        if name == library.group:
            present, kind = {item.name for item in series}, "series"
        elif library.trained_here or all(name in {**item.values, **item.words} for item in series):
            column = library.columns.get(name, name)
            cells = {cell for item in series for cell in np.unique(word_column(item, column).astype(str)).tolist()}
            if library.trained_here:
                cells = {cell for cell in cells if word_code(cell, codes) == 0}
            else:
                cells = {cell for cell in cells if cell and imported_code(cell, codes) is None}
            present, kind = {cell or "(empty)" for cell in cells}, f"words of column {column!r}"
        else:
            continue  # a part of the times
        new = sorted(present - codes.keys())
        if new:
            listed = ", ".join(map(repr, new[:5])) + (", …" if len(new) > 5 else "")
            notes.append(f"the network was not trained on {len(new)} {kind} and treats them as unknown: {listed}")
    return tuple(notes)


def unit_notes(series: Sequence[Series], library: LibraryTFT, context: int) -> tuple[str, ...]:
    """A note about series that vary far more or less within ``context`` rows than they did in training.

    They are forecast in units of their deviation in training, so a large difference suggests other units, or names that
    now belong to other series. Mostly constant series, such as counts of rare events and stopped feeds, are skipped:
    how much they vary depends on how often they move, whatever their unit.
    """
    scales = library.target_scales
    known = [(item, scales.get(item.name, scales.get(""))) for item in series if not _mostly_constant(item)]
    ratios = {item.name: _scale(item, context)[1] / scale[1] for item, scale in known if scale is not None}
    outside = {name: ratio for name, ratio in ratios.items() if not 1 / _MAX_SCALE_RATIO < ratio < _MAX_SCALE_RATIO}
    if not outside:
        return ()
    listed = ", ".join(f"{name!r} {ratio:.3g} times as much" for name, ratio in list(outside.items())[:5])
    return (
        f"{len(outside)} series vary more than {_MAX_SCALE_RATIO:g} times as much or as little as in training, so that "
        f"their forecasts are rough: {listed}{', …' * (len(outside) > 5)}; use the unit of the training data, or train "
        "on these series",
    )


def _mostly_constant(series: Series) -> bool:
    """Whether at least half of the values equal the value before them."""
    values = series.target[np.isfinite(series.target)]
    return len(values) < 2 or float(np.median(np.abs(np.diff(values)))) == 0


def horizon_notes(series: Sequence[Series], library: LibraryTFT, horizon: int) -> tuple[str, ...]:
    """A note if rows at the end have known covariates but no value, as users add them for rows still to come."""
    empty = [int(np.argmax(np.isfinite(item.target)[::-1])) for item in series]
    if not library.known or not any(empty):
        return ()
    return (
        f"the last {max(empty)} rows have no value and are scored as a stopped feed; leave out rows that are still to "
        f"come. Beyond {horizon} rows their forecast rests on filled-in values",
    )


def _describe_covariate(name: str, library: LibraryTFT) -> str:
    if name in library.categories:
        return f"{library.columns[name]} ({len(library.categories[name])} words)"
    mean, deviation = library.scalers[name]
    return f"{library.columns[name]} (mean {mean:.4g}, deviation {deviation:.4g})"


def _network_name(column: str, taken: Mapping[str, str]) -> str:
    """The column's name in the network. The network's layers are named after it, and such names must not contain a dot
    or equal a method's name."""
    name = f"of_{re.sub(r'[^0-9A-Za-z]+', '_', column)}"
    while name in taken:
        name = f"{name}_{len(taken)}"
    return name


def _codes(words: Iterable[str], subject: str, kind: str, remedy: str) -> dict[str, int]:
    """A code from 1 on for each word; 0 stands for all others. Raises InvalidInputError if there are too many."""
    ordered = sorted(words)
    if len(ordered) > MAX_CATEGORIES:
        raise InvalidInputError(
            f"{subject} {len(ordered)} different {kind} in the training rows, and at most {MAX_CATEGORIES} are "
            f"supported; {remedy}"
        )
    return {word: code for code, word in enumerate(ordered, 1)}


def _scaler(numbers: Floats, column: str) -> tuple[float, float]:
    if not np.isfinite(numbers).any():
        raise InvalidInputError(
            f"column {column!r} has no value in the training rows, so the network cannot learn from it; leave it out"
        )
    return _mean_and_deviation(numbers)


def _mean_and_deviation(values: Floats) -> tuple[float, float]:
    """The mean and standard deviation of the finite values; the deviation is 1 if all values are equal."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    deviation = float(finite.std())
    return float(finite.mean()), deviation if deviation > 1e-9 * float(np.abs(finite).max()) else 1.0


def _scale(series: Series, context: int) -> tuple[float, float]:
    """The mean of a series, and its typical standard deviation within ``context`` rows: the unit in which it is
    forecast.

    All windows of a series share one unit, so that a covariate's effect is constant. The deviation is taken within
    windows because that of a whole wandering price would be too large.
    """
    values = fill_missing(series.target)
    mean, overall = _mean_and_deviation(values)
    rows = min(context, len(values))
    windows = np.lib.stride_tricks.sliding_window_view(values, rows)[:: max(rows // 4, 1)]
    typical = float(np.median(windows.std(axis=1)))
    return mean, typical if typical > 1e-3 * overall else overall


def _calendar_covariates(training: Sequence[Series]) -> list[str]:
    """The covariates derived from the times: for rows less than a day apart the time of day and earlier values at that
    time; for rows less than a week apart the day of the week and earlier values at that time."""
    interval = min(series.interval_ns for series in training)
    day = ("time_of_day_sin", "time_of_day_cos", "day_before", "day_before_known") if interval < DAY_NS else ()
    week = ("day_of_week_sin", "day_of_week_cos", "week_before", "week_before_known") if interval < WEEK_NS else ()
    return [*day, *week]
