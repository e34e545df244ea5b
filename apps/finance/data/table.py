"""A table of text or numbers with a time column, to a ``Series``: bars (OHLCV) and metrics alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from apps.finance.data.clock import NAMES, parse_times
from apps.finance.types import Floats, Series, Times, usual_interval_ns
from shared.refusal import Refusal

if TYPE_CHECKING:
    import polars

_VALUES = (
    *("value", "close", "收盘价", "收盘", "adj close", "adj_close", "price", "last", "mid", "y", "count"),
    *("volume", "成交量"),
)
_CHINESE = {
    "开盘": "open",
    "开盘价": "open",
    "最高": "high",
    "最高价": "high",
    "最低": "low",
    "最低价": "low",
    "收盘": "close",
    "收盘价": "close",
    "成交量": "volume",
}
"""What bars are called in Chinese, so that ``column`` may be given in English."""
_MISSING = ("", "na", "n/a", "nan", "null", "none", "-", "?", "#n/a", ".")


def to_series(frame: polars.DataFrame, *, name: str, column: str | None = None, decimal_comma: bool = False) -> Series:
    """The series in a table; ``name`` is the file's, for refusals. Its first row is line 2 of the file.

    ``column`` names the value that is judged; without it that is ``value``, ``close`` or the like, or the first
    column of numbers. ``decimal_comma`` says how to read 1,234 where the column does not. Rows are sorted by time
    where they must, and of rows with the same time the last is kept; the series' notes say so. Refuses a table without
    times, without numbers, with fewer than two rows, or with several series below each other.
    """
    if frame.height < 2:
        what = "no rows" if frame.height == 0 else "a single row"
        raise Refusal(f"{name} has {what}; a series needs at least two, and a judgement a few hundred")
    frame = _joined(frame)
    time_column = _time_column(frame, name)
    times = parse_times(frame[time_column], f"{name}, column {time_column!r}")
    values: dict[str, Floats] = {}
    notes: list[str] = []
    faults: dict[str, str] = {}
    words: list[str] = []
    for label in frame.columns:
        if label == time_column:
            continue
        numbers, fault = _numbers(frame[label], decimal_comma)
        if numbers is None and not fault:
            words.append(label)
        if fault:
            faults[label] = fault
        elif numbers is not None and np.isfinite(numbers).any():
            values[label] = numbers
        elif numbers is not None:
            faults[label] = "holds no number"
    _refuse_several(frame.select(words), times, name)
    judged = _judged(values, faults, column, name)
    order = np.argsort(times, kind="stable")
    if not (np.diff(times) >= 0).all():
        notes.append("rows were not in the order of time and have been sorted")
    times = times[order]
    last = np.append(np.diff(times) != 0, True)
    if not last.all():
        notes.append(f"{int((~last).sum())} rows had the time of another; the last of each was kept")
    notes += [f"column {label!r} was left out: it {fault}" for label, fault in faults.items()]
    if last.sum() < 2:
        raise Refusal(f"{name}: all rows have the same time; a series needs at least two times")
    kept = order[last]
    return Series(
        name=name,
        times_ns=np.ascontiguousarray(times[last]),
        values={label: np.ascontiguousarray(numbers[kept]) for label, numbers in values.items()},
        column=judged,
        interval_ns=usual_interval_ns(times[last]),
        notes=tuple(notes),
    )


def _refuse_several(words: polars.DataFrame, times: Times, name: str) -> None:
    """Refuses a table in which a column of words, such as a ticker, tells rows with the same time apart.

    Words that never come twice, such as a row's own id, are no series; neither are empty cells.
    """
    import polars as pl

    if len(np.unique(times)) == len(times):
        return
    for label in words.select(pl.col(pl.String, pl.Categorical, pl.Enum)).columns:
        told = pl.DataFrame({"time": times, "word": words[label].cast(pl.String).str.strip_chars()})
        told = told.filter(pl.col("word").fill_null("") != "")
        kinds = told["word"].unique(maintain_order=True)
        most = told.group_by("time").agg(pl.col("word").n_unique())["word"].max()
        if len(kinds) < len(told) and isinstance(most, int) and most > 1:
            first = ", ".join(map(repr, kinds.head(3)))
            more = ", …" if len(kinds) > 3 else ""
            raise Refusal(
                f"{name} holds {len(kinds)} series below each other: rows with the same time differ in column "
                f"{label!r} ({first}{more}); hand in a file with one series, the rows of one {label!r}"
            )


def _joined(frame: polars.DataFrame) -> polars.DataFrame:
    """A table whose date and time of day are two columns of text, with the two made one."""
    import polars as pl

    lower = {label.strip().lower(): label for label in frame.columns}
    for day, clock in (("date", "time"), ("日期", "时间")):
        if day not in lower or clock not in lower:
            continue
        date, time = lower[day], lower[clock]
        if frame[date].dtype == pl.String and frame[time].dtype == pl.String and ":" in str(frame[time][0]):
            joined = (frame[date] + " " + frame[time]).alias("date time")
            return frame.drop(date, time).insert_column(0, joined)
    return frame


def _time_column(frame: polars.DataFrame, name: str) -> str:
    import polars as pl

    lower = {label.strip().lower(): label for label in reversed(frame.columns)}
    for wanted in NAMES:
        if wanted in lower:
            return lower[wanted]
    for label in frame.columns:
        kind = frame[label].dtype
        if kind == pl.Date or isinstance(kind, pl.Datetime):
            return label
    for label in frame.columns:
        if frame[label].dtype == pl.String:
            try:
                parse_times(frame[label].head(5), name)
            except Refusal:
                continue
            if _numbers(frame[label].head(5))[0] is None:
                return label
    raise Refusal(
        f"{name} has no column of times (its columns: {', '.join(map(repr, frame.columns))}); "
        "call one of them 'timestamp' and write times as 2024-01-31 09:30:00 or as seconds since 1970"
    )


def _numbers(column: polars.Series, decimal_comma: bool = False) -> tuple[Floats | None, str]:
    """The numbers in a column, NaN where missing; None for a column of text; and what is wrong with it, if anything."""
    import polars as pl

    if column.dtype.is_numeric():
        numbers = column.cast(pl.Float64).to_numpy().astype(np.float64)
        return np.where(np.isinf(numbers), np.nan, numbers), ""
    if column.dtype != pl.String:
        return None, ""
    text = column.fill_null("").str.strip_chars()
    missing = text.str.to_lowercase().is_in(list(_MISSING))
    if missing.all():
        return np.full(len(text), np.nan), ""
    text, fault = _points(text.str.replace(r"^([+-]?)[$€£¥]\s?|\s?[%$€£¥]$", "${1}"), decimal_comma)
    if fault:
        return None, fault
    parsed = text.cast(pl.Float64, strict=False)
    bad = parsed.is_null() & ~missing
    if int(bad.sum()) > 0.5 * int((~missing).sum()):
        return None, ""
    if bad.any():
        row = int(bad.arg_max() or 0)
        return None, f"holds {column[row]!r} in line {row + 2}, which is no number"
    numbers = parsed.to_numpy().astype(np.float64)
    numbers[missing.to_numpy()] = np.nan
    return np.where(np.isinf(numbers), np.nan, numbers), ""


def _points(text: polars.Series, decimal_comma: bool) -> tuple[polars.Series, str]:
    """Numbers as text with a decimal point and nothing between the thousands; and what cannot be told, if anything.

    10,003.77 and 1,234,567 say that commas part the thousands, 10.003,77 and 0,5 that a comma is the decimal mark;
    1,234 alone says neither.
    """
    comma = text.str.contains(",", literal=True)
    parted = text.str.contains(r"^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$")
    if not comma.any():
        return text, ""
    if (parted | ~comma).all():
        if text.str.contains(r",.*[.,]|^[+-]?\d+\.(\d{1,2}|\d{4,})$|^[+-]?(0|\d{4,})\.\d+$").any():
            return text.str.replace_all(",", "", literal=True), ""
        if not decimal_comma:
            row = int(comma.arg_max() or 0)
            either = f"{text[row].replace(',', '')} or {text[row].replace(',', '.')}"
            return text, f"holds {text[row]!r} in line {row + 2}, which can be {either} (write it without the comma)"
    german = text.str.contains(r"^[+-]?\d{1,3}([. ]?\d{3})*,\d+$|^[+-]?\d+,\d+$").any()
    english = text.str.contains(r"^[+-]?\d+\.\d+$|,.*\.").any()
    if german and not english:
        return text.str.replace_all(r"[. ]", "").str.replace(",", ".", literal=True), ""
    return text, ""


def _judged(values: dict[str, Floats], faults: dict[str, str], column: str | None, name: str) -> str:
    there = ", ".join(map(repr, values)) or "none"
    if column is not None:
        wanted = column.strip().lower()
        known = {_CHINESE.get(label.strip(), ""): label for label in [*reversed(faults), *reversed(values)]}
        match = {**known, **{label.strip().lower(): label for label in [*faults, *values]}}.get(wanted)
        if match is None:
            raise Refusal(f"{name} has no column of numbers called {column!r}; there are: {there}")
        if match in faults:
            raise Refusal(f"{name}: column {match!r} {faults[match]}; correct the file, or leave the cell empty")
        return match
    lower = {label.strip().lower(): label for label in [*reversed(faults), *reversed(values)]}
    for wanted in _VALUES:
        if wanted in lower:
            label = lower[wanted]
            if label in faults:
                raise Refusal(f"{name}: column {label!r} {faults[label]}; correct the file, or leave the cell empty")
            return label
    if values:
        return next(iter(values))
    if faults:
        label, fault = next(iter(faults.items()))
        raise Refusal(f"{name}: column {label!r} {fault}; correct the file, or leave the cell empty")
    raise Refusal(f"{name} has a time column and no column of numbers; a series needs at least one value a row")
