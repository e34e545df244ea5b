"""Real series in two splits: the later part of each validates, and no row of it is a target in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.finance.types import FinanceInput, LabelledSeries, Series, iso_utc
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from shared.data.dataset import Dataset

MIN_ROWS = 60


def first_validation_row(length: int, validation_share: float) -> int:
    """The row from which a series of ``length`` rows validates."""
    return length - round(validation_share * length)


def head(series: Series, rows: int) -> Series:
    """The first ``rows`` rows of a series."""
    values = {name: numbers[:rows] for name, numbers in series.values.items()}
    words = {name: cells[:rows] for name, cells in series.words.items()}
    return replace(series, times_ns=series.times_ns[:rows], values=values, words=words)


def training_windows(
    items: Sequence[LabelledSeries], input: FinanceInput, *, validation_share: float, stride: int
) -> Dataset:
    """Windows that lie in the earlier part of their series, whole; what is labelled anomalous is not a target."""
    from apps.finance.datasets.labels import window_rows
    from apps.finance.datasets.windows import Windows, tabulate

    if input.library is not None:
        starts = [(0, first_validation_row(len(item.series), validation_share)) for item in items]
        return _not_empty(_library_windows(items, starts, input, stride), input)
    tables = []
    for item in items:
        rows = first_validation_row(len(item.series), validation_share)
        table = tabulate(head(item.series, rows), context=input.context, horizon=input.horizon)
        for first, last in window_rows(item.series.times_ns, item.windows).tolist():
            # As missing: it is neither seen nor asked for.
            table.rows[input.context + first : input.context + min(last + 1, rows), 1] = 1
        tables.append(table)
    return _not_empty(Windows(tables, context=input.context, horizon=input.horizon, stride=stride), input)


def _library_windows(
    items: Sequence[LabelledSeries], rows: Sequence[tuple[int, int]], input: FinanceInput, stride: int
) -> Dataset:
    """Windows for a network that the library trained: its covariates and its normalizer stand beside its model."""
    from apps.finance.models.library_tft import LibraryTrainingWindows

    return LibraryTrainingWindows(items, rows, input, stride)


def _not_empty(windows: Dataset, input: FinanceInput) -> Dataset:
    if not len(windows):
        raise InvalidInputError(
            f"no series is long enough to train on: a window is {input.context + input.horizon} rows "
            "(--input.context and --input.horizon), and the earlier part of a series must hold one"
        )
    return windows


def validation_windows(items: Sequence[LabelledSeries], input: FinanceInput, *, validation_share: float) -> Dataset:
    """Windows whose forecasts lie in the later part of their series; what they see may begin before it."""
    from apps.finance.datasets.windows import Windows, tabulate

    if input.library is not None:
        ends = [(first_validation_row(len(item.series), validation_share), len(item.series)) for item in items]
        return _not_empty(_library_windows(items, ends, input, 2 * input.horizon), input)
    tables = [tabulate(item.series, context=input.context, horizon=input.horizon) for item in items]
    begins = [first_validation_row(len(item.series), validation_share) for item in items]
    windows = Windows(tables, context=input.context, horizon=input.horizon, stride=2 * input.horizon, first_rows=begins)
    if not len(windows):
        raise InvalidInputError(
            f"no series is long enough to validate on: its later part must hold {input.horizon} rows "
            "(--input.horizon, --data.validation-share)"
        )
    return windows


def series_facts(items: Sequence[LabelledSeries], input: FinanceInput, *, validation_share: float) -> Mapping[str, Any]:
    """What is printed before training: counts, time, interval, what is missing, and which series are in both splits."""
    series = [item.series for item in items]
    intervals = np.unique([one.interval_ns for one in series])
    rows = sum(map(len, series))
    later = sum(len(one) - first_validation_row(len(one), validation_share) for one in series)
    span = (
        f"{iso_utc(min(int(one.times_ns[0]) for one in series))} to "
        f"{iso_utc(max(int(one.times_ns[-1]) for one in series))}"
    )
    interval = f"{intervals[0] / 1e9:g} s"
    return {
        "series": len(series),
        "rows": rows,
        "training rows": rows - later,
        "validation rows": later,
        "time": span,
        "interval": interval if len(intervals) == 1 else f"{interval} to {intervals[-1] / 1e9:g} s",
        "missing values": sum(int((~np.isfinite(one.target)).sum()) for one in series),
        "labelled windows": sum(len(item.windows) for item in items),
        "series in both splits": len(series) if later and later < rows else 0,
        "splits": f"of every series the last {validation_share:.0%} of its rows validate, the rows before them train",
    }
