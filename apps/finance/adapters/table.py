"""A table of text or numbers with a time column, to ``Series``: bars (OHLCV), quotes and metrics alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from apps.finance.adapters import columns
from apps.finance.adapters.clock import Lines, parse_times, read_times
from apps.finance.adapters.groups import group
from apps.finance.adapters.joined import join_parts
from apps.finance.adapters.numbers import Marks, find_marks, read_column
from apps.finance.types import DAY_NS, Floats, Series, Times, Window, usual_interval_ns
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import polars

TRUTH = "synthetic_truth"
"""The column in which the file of a synthetic series says what is true of it: the kind of anomaly of each row."""
_FOOTER = 10
"""The most rows at the end of a table that may be no rows of the series: totals, where the data come from."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds: series by name as written, one with the file's name where no column tells several apart.

    ``series_column`` is that column. ``notes`` say what reading the file had to do. ``truth`` are the windows of a
    single synthetic series whose file has them.
    """

    series: tuple[Series, ...]
    series_column: str = ""
    notes: tuple[str, ...] = ()
    truth: tuple[Window, ...] = ()


def to_contents(
    frame: polars.DataFrame,
    *,
    name: str,
    column: str | None = None,
    semicolons: bool = False,
    lines: Lines | None = None,
) -> Contents:
    """The series in a table; ``name`` is the file's, for refusals, and ``lines`` (N,) the rows' in it (from 2 on).

    ``column`` names the value that is judged; without it that is a price, the middle of bid and ask, or another value
    by its name, or the first column of numbers that counts or names nothing. ``semicolons`` is whether they part the
    cells. Rows are sorted by time where they must, of rows with the same time the last is kept, and what follows the
    last row is left out; the notes say so. Refuses a table without times, without numbers, with fewer than two rows,
    and one whose rows of the same time belong to series that no column tells apart.
    """
    import polars as pl

    lines = np.arange(2, frame.height + 2) if lines is None else lines
    frame = frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
    frame, lines = _without_empty(frame, lines)
    if frame.height < 2:
        what = "no rows" if frame.height == 0 else "a single row"
        raise InvalidInputError(f"{name} has {what}; a series needs at least two, and a judgement a few hundred")
    frame = join_parts(frame)
    time_column = _time_column(frame, name)
    notes: list[str] = []
    frame, lines = _without_footer(frame, lines, time_column, notes)
    times, said = read_times(frame[time_column], f"{name}, column {time_column!r}", lines)
    notes += [f"column {time_column!r}: {said}"] if said else []
    rest = frame.drop(time_column, *([TRUTH] if TRUTH in frame.columns else []))
    values, faults = _values(rest, lines, find_marks(rest, semicolons=semicolons))
    grouping = group(rest, set(values), times, name)
    series_column = grouping[0] if grouping else ""
    quotes = columns.bid_and_ask(values)
    if quotes is not None:
        values["mid"] = (values[quotes[0]] + values[quotes[1]]) / 2
    judged = "mid" if quotes and column is None else _judged(values, faults, column, name, series_column)
    values = {
        label: numbers for label, numbers in values.items() if label == judged or not columns.names_rows(label, numbers)
    }
    if len(values) > 1:
        what = (
            "one of the file's" if quotes is None or judged != "mid" else f"the mean of {quotes[0]!r} and {quotes[1]!r}"
        )
        notes.append(f"column {judged!r} was judged, {what}; the option 'column' names another")
    notes += [f"column {label!r} was left out: it {fault}" for label, fault in faults.items() if label != series_column]
    parts = [(name, np.arange(len(times)))] if grouping is None else grouping[1]
    series, fine = [], []
    for called, rows in parts:
        one, said_of = _one(called, times[rows], {label: numbers[rows] for label, numbers in values.items()}, judged)
        if one is not None:
            series.append(one)
        fine += said_of
    if not series:
        raise InvalidInputError(f"{name}: all rows have the same time; a series needs at least two times")
    if grouping is not None:
        left = f"; {len(parts) - len(series)} with a single time were left out" if len(series) < len(parts) else ""
        notes.insert(0, f"the file holds {len(parts)} series, told apart by column {series_column!r}{left}")
        fine = _summed(fine, len(parts))
    truth = _windows(times, frame[TRUTH]) if TRUTH in frame.columns and grouping is None else ()
    return Contents(tuple(series), series_column, tuple(notes + fine), truth)


def _windows(times: Times, kinds: polars.Series) -> tuple[Window, ...]:
    """The stretches in which a column of words says the same, in the order of time; empty cells are ordinary rows."""
    import polars as pl

    words = kinds.cast(pl.String).fill_null("").str.strip_chars().to_list()
    found: list[Window] = []
    before = ""
    for row in np.argsort(times, kind="stable").tolist():
        word, time = words[row], int(times[row])
        if word and word == before:
            found[-1] = replace(found[-1], end_ns=time)
        elif word:
            found.append(Window(start_ns=time, end_ns=time, kind=word))
        before = word
    return tuple(found)


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


def _one(name: str, times: Times, values: dict[str, Floats], judged: str) -> tuple[Series | None, list[str]]:
    notes = []
    order = np.argsort(times, kind="stable")
    if not (np.diff(times) >= 0).all():
        notes.append("rows were not in the order of time and have been sorted")
    times = times[order]
    last = np.append(np.diff(times) != 0, True)
    if not last.all():
        notes.append(f"{int((~last).sum())} rows had the time of another; the last of each was kept")
    if last.sum() < 2:
        return None, notes
    if last.sum() < len(last) / 2 and not (times % DAY_NS).any():
        raise InvalidInputError(
            f"{name}: most of the {len(last)} rows have a day in common with another, and there are {int(last.sum())} "
            "days; sum or average them to one row a day, give their time of day, or name their series in a column "
            "'ticker'"
        )
    kept = order[last]
    series = Series(
        name=name,
        times_ns=np.ascontiguousarray(times[last]),
        values={label: np.ascontiguousarray(numbers[kept]) for label, numbers in values.items()},
        column=judged,
        interval_ns=usual_interval_ns(times[last]),
    )
    return series, notes


def _summed(notes: list[str], parts: int) -> list[str]:
    """The notes of many series as notes of their file: sorted ones by their number, dropped rows by their sum."""
    unsorted = sum(note.startswith("rows were") for note in notes)
    dropped = sum(int(note.split(" ", 1)[0]) for note in notes if not note.startswith("rows were"))
    found = [f"{unsorted} of the {parts} series were not in the order of time and have been sorted"] if unsorted else []
    same = f"{dropped} rows had the time of another of their series; the last of each was kept"
    return [*found, same] if dropped else found


def _without_empty(frame: polars.DataFrame, lines: Lines) -> tuple[polars.DataFrame, Lines]:
    """A table without rows that have no cell with anything in it, and without nameless columns of the kind."""
    import polars as pl

    if frame.width == 0 or frame.height == 0:
        return frame, lines
    bare = [pl.col(label).str.strip_chars() for label in frame.columns if frame[label].dtype == pl.String]
    cells = [*bare, *(pl.col(label) for label in frame.columns if frame[label].dtype != pl.String)]
    empty = frame.select(pl.all_horizontal(cell.is_null() for cell in cells)).to_series()
    if bare:
        nothing = [(cell == "").fill_null(True) for cell in bare]
        empty |= frame.select(pl.all_horizontal(nothing)).to_series() & (len(bare) == frame.width)
    if empty.any():
        frame, lines = frame.filter(~empty), lines[~empty.to_numpy()]
    nameless = [label for label in frame.columns if columns.plain(label) == "" and frame[label].dtype == pl.String]
    unused = [label for label in nameless if bool((frame[label].fill_null("").str.strip_chars() == "").all())]
    return frame.drop(unused), lines


def _without_footer(
    frame: polars.DataFrame, lines: Lines, time_column: str, notes: list[str]
) -> tuple[polars.DataFrame, Lines]:
    """A table without the rows at its end that have words or nothing for a time, such as a total."""
    import polars as pl

    if frame[time_column].dtype != pl.String or frame.height < 3:
        return frame, lines
    end = frame[time_column].tail(_FOOTER + 1).fill_null("").str.strip_chars()
    # A torn date is no footer: what has four digits in a row may have been one.
    words = [not cell or (not any(mark.isdigit() for mark in cell[:4]) and "20" not in cell[:12]) for cell in end]
    number = next((count for count, word in enumerate(reversed(words)) if not word), len(words))
    if number == 0 or number > _FOOTER or number >= frame.height:
        return frame, lines
    if not any(end[-count] for count in range(1, number + 1)) and number == 1 and frame.width == 2:
        return frame, lines  # a value whose time is missing
    first = int(lines[frame.height - number])
    cells = [str(cell).strip() for cell in frame.row(frame.height - number) if cell is not None]
    what = next((cell for cell in [*end.tail(number), *cells] if cell), "nothing")
    notes.append(
        f"line {first} was left out: it has no time, and {what!r}"
        if number == 1
        else f"the last {number} lines from line {first} on were left out: they have no time, and {what!r}"
    )
    return frame.head(frame.height - number), lines[: frame.height - number]


def _time_column(frame: polars.DataFrame, name: str) -> str:
    import polars as pl

    called = columns.first_called(columns.TIMES, frame.columns)
    if called is not None:
        return called
    for label in frame.columns:
        kind = frame[label].dtype
        if kind == pl.Date or isinstance(kind, pl.Datetime):
            return label
    called = columns.with_time_word(frame.columns)
    if called is not None:
        return called
    for label in frame.columns:
        if frame[label].dtype == pl.String:
            head = frame[label].head(5)
            try:
                parse_times(head, name)
            except InvalidInputError as refusal:
                if "ambiguous" not in str(refusal):
                    continue
            if read_column(head, np.arange(len(head)))[0] is None:
                return label
    raise InvalidInputError(
        f"{name} has no column of times (its columns: {', '.join(map(repr, frame.columns))}); "
        "call one of them 'timestamp' and write times as 2024-01-31 09:30:00 or as seconds since 1970"
    )


def _values(frame: polars.DataFrame, lines: Lines, marks: Marks) -> tuple[dict[str, Floats], dict[str, str]]:
    """The columns of numbers, and what is wrong with those that might be; columns of words are neither."""
    values: dict[str, Floats] = {}
    faults: dict[str, str] = {}
    for label in frame.columns:
        numbers, fault = read_column(frame[label], lines, marks)
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
    values: dict[str, Floats], faults: dict[str, str], column: str | None, name: str, series_column: str
) -> str:
    """The label of the column that is judged, as it is asked for or by its name and numbers."""
    labels = [label for label in [*values, *faults] if label != series_column]
    if column is not None:
        wanted = column.strip().casefold()
        chinese = {columns.CHINESE.get(columns.plain(label), ""): label for label in reversed(labels)}
        plain = {columns.plain(label): label for label in reversed(labels)}
        exact = {label.strip().casefold(): label for label in reversed(labels)}
        match = {**chinese, **plain, **exact}.get(wanted)
        if match is None or not wanted:
            there = ", ".join(map(repr, values)) or "none"
            raise InvalidInputError(f"{name} has no column of numbers called {column!r}; there are: {there}")
    else:
        match = columns.value_column(labels)
    if match is not None:
        if match in faults:
            raise InvalidInputError(
                f"{name}: column {match!r} {faults[match]}; correct the file, or leave the cell empty"
            )
        return match
    first = columns.first_value({label: numbers for label, numbers in values.items() if label != series_column})
    if first is not None:
        return first
    if faults:
        label, fault = next(iter(faults.items()))
        raise InvalidInputError(f"{name}: column {label!r} {fault}; correct the file, or leave the cell empty")
    if values:
        raise InvalidInputError(
            f"{name}: column {next(iter(values))!r} numbers or names the rows and is no value; if it is what is to be "
            "judged, give it as the option 'column'"
        )
    raise InvalidInputError(
        f"{name} has a time column and no column of numbers; a series needs at least one value a row"
    )
