"""Real series in two splits: the later part of each series validates, and none of its rows is a target in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.finance.types import FinanceInput, LabelledSeries, Series, iso_utc
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from shared.data.dataset import Dataset

MIN_ROWS = 60


def first_validation_row(length: int, validation_share: float) -> int:
    """The first validation row of a series of ``length`` rows."""
    return length - round(validation_share * length)


def training_part(series: Series, validation_share: float) -> Series:
    """The rows of a series before those for validation."""
    return series.from_row(0, first_validation_row(len(series), validation_share))


def training_windows(
    items: Sequence[LabelledSeries], input: FinanceInput, *, validation_share: float, stride: int
) -> Dataset:
    """Windows that lie entirely in the earlier part of their series; rows labelled anomalous are not targets."""
    from apps.finance.datasets.labels import window_rows
    from apps.finance.datasets.windows import Windows, covariate_table

    if input.library is not None:
        spans = [(0, first_validation_row(len(item.series), validation_share)) for item in items]
        return _not_empty(_library_windows(items, spans, input, stride), input)
    tables = []
    for item in items:
        series = training_part(item.series, validation_share)
        table = covariate_table(series, context=input.context, horizon=input.horizon)
        for first, last in window_rows(item.series.times_ns, item.windows).tolist():
            # Marked as missing, so that it is neither an input nor a target.
            table.rows[input.context + first : input.context + min(last + 1, len(series)), 1] = 1
        tables.append(table)
    return _not_empty(Windows(tables, context=input.context, horizon=input.horizon, stride=stride), input)


def _library_windows(
    items: Sequence[LabelledSeries], rows: Sequence[tuple[int, int]], input: FinanceInput, stride: int
) -> Dataset:
    """Windows for a pytorch-forecasting network, whose covariates and normalizer are defined beside the model."""
    from apps.finance.models.library_tft import LibraryTrainingWindows

    return LibraryTrainingWindows(items, rows, input, stride)


def _not_empty(windows: Dataset, input: FinanceInput) -> Dataset:
    """``windows``; raises InvalidInputError if there are none."""
    if not len(windows):
        raise InvalidInputError(
            f"no series is long enough to train on: a window takes {input.context + input.horizon} rows "
            "(--input.context and --input.horizon), and the earlier part of at least one series must hold a window"
        )
    return windows


def validation_windows(items: Sequence[LabelledSeries], input: FinanceInput, *, validation_share: float) -> Dataset:
    """Windows whose forecasts lie in the later part of their series; their context may begin before it."""
    from apps.finance.datasets.windows import Windows, covariate_table

    if input.library is not None:
        spans = [(first_validation_row(len(item.series), validation_share), len(item.series)) for item in items]
        return _not_empty(_library_windows(items, spans, input, 2 * input.horizon), input)
    tables = [covariate_table(item.series, context=input.context, horizon=input.horizon) for item in items]
    first_rows = [first_validation_row(len(item.series), validation_share) for item in items]
    windows = Windows(
        tables, context=input.context, horizon=input.horizon, stride=2 * input.horizon, first_rows=first_rows
    )
    if not len(windows):
        raise InvalidInputError(
            f"no series is long enough to validate on: the later part of at least one must hold {input.horizon} rows "
            "(--input.horizon, --data.validation-share)"
        )
    return windows


def series_facts(items: Sequence[LabelledSeries], input: FinanceInput, *, validation_share: float) -> Mapping[str, Any]:
    """The facts printed before training: counts, times, interval, missing values, and the number of series in both
    splits."""
    series = [item.series for item in items]
    intervals = np.unique([item.interval_ns for item in series])
    rows = sum(map(len, series))
    validation_rows = sum(len(item) - first_validation_row(len(item), validation_share) for item in series)
    span = (
        f"{iso_utc(min(int(item.times_ns[0]) for item in series))} to "
        f"{iso_utc(max(int(item.times_ns[-1]) for item in series))}"
    )
    interval = f"{intervals[0] / 1e9:g} s"
    return {
        "series": len(series),
        "rows": rows,
        "training rows": rows - validation_rows,
        "validation rows": validation_rows,
        "time": span,
        "interval": interval if len(intervals) == 1 else f"{interval} to {intervals[-1] / 1e9:g} s",
        "missing values": sum(int((~np.isfinite(item.target)).sum()) for item in series),
        "labelled windows": sum(len(item.windows) for item in items),
        "series in both splits": len(series) if validation_rows and validation_rows < rows else 0,
        "splits": f"the last {validation_share:.0%} of each series' rows are for validation, those before for training",
    }
