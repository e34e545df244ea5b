"""A table of text or numbers with a time column, to ``Series``: bars (OHLCV), quotes and metrics alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from apps.finance.adapters import columns
from apps.finance.adapters.groups import by_column, group
from apps.finance.adapters.numbers import read_column
from apps.finance.adapters.options import NOTHING_SAID, TableOptions
from apps.finance.adapters.times import Lines, join_parts, parse_times, read_times
from apps.finance.types import DAY_NS, Floats, Series, Times, Window, usual_interval_ns
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import polars

TRUTH = "synthetic_truth"
"""The column in which the file of a synthetic series says what is true of it: the kind of anomaly of each row."""
_FOOTER = 10
"""The most rows at the end of a table that may be no rows of the series: a total, where the data come from."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds: series by name as written, one with the file's name where no column tells several apart.

    ``series_column`` is that column. ``notes`` say what reading the file had to do, and what was guessed. ``windows``
    has for each series the stretches that the file marks as anomalous, where it has a column of labels.
    """

    series: tuple[Series, ...]
    series_column: str = ""
    notes: tuple[str, ...] = ()
    windows: tuple[tuple[Window, ...], ...] = ()


def to_contents(
    frame: polars.DataFrame,
    *,
    name: str,
    options: TableOptions = NOTHING_SAID,
    semicolons: bool = False,
    lines: Lines | None = None,
) -> Contents:
    """The series in a table; ``name`` is the file's, for refusals, and ``lines`` (N,) the rows' in it (from 2 on).

    What ``options`` leave open is guessed: the value is a price, the middle of bid and ask, or another value by its
    name, or the first column of numbers that does not name rows. ``semicolons`` is whether they part the cells.
    Rows are sorted by time where they must, of rows with the same time the last is kept, and what follows the last row
    is left out; the notes say so. Refuses a table without times, without numbers, with fewer than two rows, and one
    whose rows of the same time belong to series that no column tells apart.
    """
    import polars as pl

    lines = np.arange(2, frame.height + 2) if lines is None else lines
    frame = frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
    frame, lines = _without_empty(frame, lines)
    if frame.height < 2:
        what = "no rows" if frame.height == 0 else "a single row"
        raise InvalidInputError(f"{name} has {what}; a series needs at least two, and a judgement a few hundred")
    notes: list[str] = []
    if options.time is None:
        frame = join_parts(frame)
        time_column = _time_column(frame, name, notes)
    else:
        time_column = _named(frame, options.time, "time", name)
    frame, lines = _without_footer(frame, lines, time_column, notes)
    times, said = read_times(frame[time_column], f"{name}, column {time_column!r}", lines, options)
    notes += [f"column {time_column!r}: {said}"] if said else []
    labels = TRUTH if TRUTH in frame.columns else None
    if options.labels is not None:
        labels = _named(frame, options.labels, "labels", name)
    rest = frame.drop(time_column, *([labels] if labels else []))
    values, faults = _values(rest, lines, options.decimal, semicolons)
    named = None if options.series is None else _named(rest, options.series, "series", name)
    grouping = group(rest, set(values), times, name) if named is None else by_column(rest, named)
    series_column = grouping[0] if grouping else ""
    quotes = columns.bid_and_ask(values) if options.value is None else None
    if quotes is not None:
        values["mid"] = (values[quotes[0]] + values[quotes[1]]) / 2
    judged = "mid" if quotes else _judged(values, faults, options.value, name, series_column)
    values = {one: found for one, found in values.items() if one == judged or not columns.names_rows(one)}
    if len(values) > 1 and options.value is None:
        what = "one of the file's" if quotes is None else f"the mean of {quotes[0]!r} and {quotes[1]!r}"
        notes.append(f"column {judged!r} was judged, {what}; the option 'value' names another")
    notes += [f"column {label!r} was left out: it {fault}" for label, fault in faults.items() if label != series_column]
    parts = [(name, np.arange(len(times)))] if grouping is None else grouping[1]
    made = [
        _one(part, times[rows], {one: found[rows] for one, found in values.items()}, judged) for part, rows in parts
    ]
    series = tuple(one for one, _, _ in made if one is not None)
    if not series:
        raise InvalidInputError(f"{name}: all rows have the same time; a series needs at least two times")
    if grouping is not None:
        left = f"; {len(parts) - len(series)} with a single time were left out" if len(series) < len(parts) else ""
        notes.insert(0, f"the file holds {len(parts)} series, told apart by column {series_column!r}{left}")
    notes += _put_right([(unsorted, dropped) for _, unsorted, dropped in made])
    windows = tuple(
        _windows(times[rows], frame[labels].gather(rows)) if labels else ()
        for (_, rows), (one, _, _) in zip(parts, made, strict=True)
        if one is not None
    )
    return Contents(series, series_column, tuple(notes), windows)


def only(contents: Contents, name: str) -> Series:
    """The one series of a file, with the file's notes; refuses several."""
    if len(contents.series) > 1:
        first = ", ".join(repr(one.name) for one in contents.series[:3])
        more = ", …" if len(contents.series) > 3 else ""
        raise InvalidInputError(
            f"{name} holds {len(contents.series)} series below each other: rows differ in column "
            f"{contents.series_column!r} ({first}{more}); name one of them"
        )
    return replace(contents.series[0], notes=contents.notes)


def _windows(times: Times, labels: polars.Series) -> tuple[Window, ...]:
    """The stretches that labels mark, in the order of time: words, or anything but nothing, 0 and false."""
    import polars as pl

    text = labels.cast(pl.String).fill_null("").str.strip_chars()
    words = text.str.replace(r"(?i)^(0|0\.0|false|normal)$", "").to_list()
    found: list[Window] = []
    before = ""
    for row in np.argsort(times, kind="stable").tolist():
        word, time = words[row], int(times[row])
        if word and word == before:
            found[-1] = replace(found[-1], end_ns=time)
        elif word:
            kind = "" if word.casefold() in ("1", "1.0", "true") else word
            found.append(Window(start_ns=time, end_ns=time, kind=kind))
        before = word
    return tuple(found)


def _one(name: str, times: Times, values: Mapping[str, Floats], judged: str) -> tuple[Series | None, bool, int]:
    """A series in the order of time; whether it was not, and how many rows had the time of another."""
    order = np.argsort(times, kind="stable")
    unsorted = not bool((np.diff(times) >= 0).all())
    times = times[order]
    last = np.append(np.diff(times) != 0, True)
    number, dropped = int(last.sum()), int((~last).sum())
    if number < 2:
        return None, unsorted, dropped
    if number <= len(last) / 2 and not (times % DAY_NS).any():
        raise InvalidInputError(
            f"{name}: the {len(last)} rows have {number} days; sum or average them to one row a day, give their time "
            "of day, or name the column that tells their series apart with the option 'series'"
        )
    kept, times = order[last], np.ascontiguousarray(times[last])
    numbers = {label: np.ascontiguousarray(found[kept]) for label, found in values.items()}
    series = Series(name=name, times_ns=times, values=numbers, column=judged, interval_ns=usual_interval_ns(times))
    return series, unsorted, dropped


def _put_right(faults: list[tuple[bool, int]]) -> list[str]:
    """The notes of what was put right in each series: whether it was not sorted, and how many rows were dropped."""
    unsorted, dropped = sum(one for one, _ in faults), sum(number for _, number in faults)
    if len(faults) == 1:
        sort, same = "rows were not in the order of time and have been sorted", "rows had the time of another"
    else:
        sort = f"{unsorted} of the {len(faults)} series were not in the order of time and have been sorted"
        same = "rows had the time of another of their series"
    return ([sort] if unsorted else []) + ([f"{dropped} {same}; the last of each was kept"] if dropped else [])


def _without_empty(frame: polars.DataFrame, lines: Lines) -> tuple[polars.DataFrame, Lines]:
    """A table without rows that have no cell with anything in it, and without nameless columns of the kind."""
    import polars as pl

    bare = frame.with_columns(pl.col(pl.String).str.strip_chars().replace("", None))
    unused = [one for one in frame.columns if not columns.plain(one) and bare[one].null_count() == bare.height]
    filled = (
        bare.select(~pl.all_horizontal(pl.all().is_null())).to_series()
        if frame.width
        else pl.Series([], dtype=pl.Boolean)
    )
    return frame.drop(unused).filter(filled), lines[filled.to_numpy()]


def _without_footer(
    frame: polars.DataFrame, lines: Lines, time_column: str, notes: list[str]
) -> tuple[polars.DataFrame, Lines]:
    """A table without the rows at its end that have words without a digit for a time, such as a total or a source."""
    import polars as pl

    if frame[time_column].dtype != pl.String or frame.height < 3:
        return frame, lines
    end = frame[time_column].tail(_FOOTER + 1).fill_null("").to_list()
    number = next((count for count, cell in enumerate(reversed(end)) if not cell.strip() or re.search(r"\d", cell)), 0)
    if number == 0:
        return frame, lines
    last = frame.height - number
    notes.append(
        f"what follows from line {lines[last]} on was left out: {frame[time_column][last].strip()!r} is no time"
    )
    return frame.head(last), lines[:last]


def _named(frame: polars.DataFrame, wanted: str, option: str, name: str) -> str:
    label = columns.called(wanted, frame.columns)
    if label is None:
        there = ", ".join(map(repr, frame.columns[:50]))
        raise InvalidInputError(
            f"{name} has no column {wanted!r}, which the option '{option}' names; there are: {there}"
        )
    return label


def _time_column(frame: polars.DataFrame, name: str, notes: list[str]) -> str:
    import polars as pl

    called = columns.first_called(columns.TIMES, frame.columns)
    if called is not None:
        return called
    dated = (one for one in frame.columns if frame[one].dtype == pl.Date or isinstance(frame[one].dtype, pl.Datetime))
    guessed = next(dated, None) or columns.with_word(("date", "time", "timestamp"), frame.columns)
    if guessed is None and frame[frame.columns[0]].dtype == pl.String:
        try:  # an index without a name, as pandas writes it
            parse_times(frame[frame.columns[0]].head(5), name)
            guessed = frame.columns[0]
        except InvalidInputError:
            pass
    if guessed is None:
        raise InvalidInputError(
            f"{name} has no column of times (its columns: {', '.join(map(repr, frame.columns[:50]))}); name it with "
            "the option 'time', and write times as 2024-01-31 09:30:00 or as a timestamp: seconds since 1970"
        )
    notes.append(f"column {guessed!r} was taken for the times; the option 'time' names another")
    return guessed


def _values(
    frame: polars.DataFrame, lines: Lines, decimal: str | None, semicolons: bool
) -> tuple[dict[str, Floats], dict[str, str]]:
    """The columns of numbers, and what is wrong with those that might be; columns of words are neither."""
    values: dict[str, Floats] = {}
    faults: dict[str, str] = {}
    for label in frame.columns:
        numbers, fault = read_column(frame[label], lines, decimal=decimal, semicolons=semicolons)
        if numbers is None and not fault and columns.is_value(label):
            fault = f"holds {next((cell for cell in frame[label] if cell), None)!r}, which is no number"
        if fault:
            faults[label] = fault
        elif numbers is not None and np.isfinite(numbers).any():
            values[label] = numbers
        elif numbers is not None:
            faults[label] = "holds no number"
    return values, faults


def _judged(
    values: Mapping[str, Floats], faults: Mapping[str, str], wanted: str | None, name: str, series_column: str
) -> str:
    """The label of the column that is judged, as it is asked for or by its name and numbers."""
    labels = [label for label in [*values, *faults] if label != series_column]
    label = columns.called(wanted, labels) if wanted is not None else columns.value_column(labels)
    if wanted is not None and label is None:
        there = ", ".join(map(repr, values)) or "none"
        raise InvalidInputError(f"{name} has no column of numbers called {wanted!r}; there are: {there}")
    if label is None:
        label = columns.first_value(one for one in labels if one in values) or next(iter(faults), None)
    if label is not None and label in faults:
        raise InvalidInputError(f"{name}: column {label!r} {faults[label]}; correct the file, or leave the cell empty")
    if label is not None:
        return label
    if values:
        raise InvalidInputError(
            f"{name}: column {next(iter(values))!r} numbers or names the rows and is no value; if it is what is to be "
            "judged, give it as the option 'value'"
        )
    raise InvalidInputError(
        f"{name} has a time column and no column of numbers; a series needs at least one value a row"
    )
