"""A table of text or numbers with a time column, to ``Series``: bars (OHLCV), quotes and metrics alike."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import polars as pl

from apps.finance.adapters import columns
from apps.finance.adapters.covariates import EMPTY, NO_NUMBER, covariate_labels, take_covariates
from apps.finance.adapters.numbers import has_decimal_commas, nearly_a_number, read_column
from apps.finance.adapters.options import NOTHING_SAID, TableOptions
from apps.finance.adapters.times import Column, Rows, read_times, to_utc, zone_in_header
from apps.finance.types import DAY_NS, TRUTH, Floats, Series, Times, Window, Words, usual_interval_ns
from shared.errors import InvalidInputError

MAX_COLUMNS = 2000
Values = dict[str, Floats]
Faults = dict[str, str]
Cells = dict[str, Floats | Words]
_AS_WRITTEN = f", {NO_NUMBER} as written"
_LOOKED_AT = 200


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds: series by name as written, one with the file's name where no ``series_column`` is.

    ``notes`` say what reading had to do and what was guessed; ``windows`` has what each series' labels mark.
    """

    series: tuple[Series, ...]
    series_column: str = ""
    notes: tuple[str, ...] = ()
    windows: tuple[tuple[Window, ...], ...] = ()


def to_contents(
    frame: pl.DataFrame, name: str, options: TableOptions = NOTHING_SAID, lines: Rows | None = None, mark: str = ","
) -> Contents:
    """The series in a table; ``name`` is the file's, ``lines`` (N,) the rows' in it, ``mark`` what parts its cells.

    What ``options`` leave open is guessed: the value is a price, the middle of bid and ask, or another value by its
    name, or the first column of numbers that does not name rows. Rows are sorted by time where they must, of rows with
    the same time the last is kept, and what follows the last row is left out; the notes say so.
    """
    notes: list[str] = []
    frame, lines = _without_empty(frame, lines, name)
    frame, time = _with_times(frame, options.time, name, notes)
    frame, lines = _without_footer(frame, lines, time, notes)
    frame = _with_one_column_of_times(frame, time, name)
    column = Column(frame[time], f"{name}, column {time!r}", lines)
    clock = read_times(column, options)
    notes += [f"column {time!r}: {clock.said}"] if clock.said else []
    labels = _named(frame, options.labels, "labels", name) if options.labels else TRUTH
    rest = frame.drop(time, labels, strict=False)
    values, faults = _values(rest, lines, options.decimal, _is_european(rest, frame[time], mark), notes)
    named = covariate_labels(options, frame.columns, {"times": time, "labels": labels}, name)
    beside = take_covariates(rest, named, values, faults, name)
    rest = rest.drop(named.values())
    key = _named(rest, options.series, "series", name) if options.series else None
    if key is None and options.series_if_there:
        key = columns.matching_label(options.series_if_there, rest.columns)
    key = key or columns.series_column(rest, values, clock.times_ns, name)
    faults = {label: fault for label, fault in faults.items() if label != key}
    refused = [label for label, fault in faults.items() if fault != EMPTY and not fault.endswith(_AS_WRITTEN)]
    order = [label for label in rest.columns if label in values or label in refused]
    scored = _scored_column(order, values, faults, options, name, notes)
    parts = _rows_by_series(rest, key) if key else [(name, np.arange(frame.height))]
    if options.labels and len(frame) and (_marks(frame[labels]) != "").all():
        raise InvalidInputError(f"labels in {labels!r} mark every row; leave them empty, or 0, where nothing is wrong")
    zone = clock.zone or options.zone or zone_in_header(column, time, clock)
    if zone not in (options.zone, clock.zone, "UTC"):
        notes.append(f"column {time!r}: its times are of {zone}, as its name says; the option 'zone' names another")
    times = to_utc(clock, (rows for _, rows in parts), column, zone, notes)
    series, windows, put_right = [], [], Counter[str]()
    all_cells: Cells = {**values, **beside}
    for part, rows in parts:
        one = _one(part, times[rows], {label: cells[rows] for label, cells in all_cells.items()}, scored, put_right)
        if one is not None:
            series.append(one)
            windows.append(_windows(times[rows], frame[labels].gather(rows)) if labels in frame.columns else ())
    if not series:
        raise InvalidInputError(f"{name}: all rows have the same time; a series needs at least two times")
    if key:
        left = f"; {len(parts) - len(series)} with a single time were left out" if len(series) < len(parts) else ""
        notes.insert(0, f"the file holds {len(parts)} series, told apart by column {key!r}{left}")
    whose, dropped = f"{put_right['sorted']} of the {len(parts)} series" if key else "rows", put_right["dropped"]
    notes += [f"{whose} were not in the order of time and have been sorted"] if put_right["sorted"] else []
    notes += [f"{dropped} rows had the time of another; the last of each was kept"] if dropped else []
    return Contents(tuple(series), key or "", tuple(notes), tuple(windows))


def _without_empty(frame: pl.DataFrame, lines: Rows | None, name: str) -> tuple[pl.DataFrame, Rows]:
    """The table without columns and rows in which nothing is, its text stripped, and the lines of its rows."""
    texts = pl.col(pl.String, pl.Categorical, pl.Enum).cast(pl.String).str.strip_chars().replace("", None)
    frame = frame.with_columns(texts)
    frame = frame[[one for one in frame.columns if columns.plain(one) or frame[one].null_count() < frame.height]]
    filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series() if frame.width else pl.Series([False])
    lines = (np.arange(2, frame.height + 2) if lines is None else lines)[filled.to_numpy()[: frame.height]]
    if len(lines) < 2:
        raise InvalidInputError(f"{name} has {'a single row' if len(lines) else 'no rows'}; a series needs two")
    return frame.filter(filled), lines


def _without_footer(frame: pl.DataFrame, lines: Rows, time: str, notes: list[str]) -> tuple[pl.DataFrame, Rows]:
    """Without up to ten rows that follow the last: a total, where the data come from."""
    end = frame[time].tail(11)
    words = int(end.fill_null("").str.contains(r"\d").reverse().arg_max() or 0) if end.dtype == pl.String else 0
    if not words or frame.height - words <= 1:
        return frame, lines
    first = "an empty cell" if end[-words] is None else repr(end[-words])
    notes.append(f"what follows from line {lines[-words]} on was left out: {first} is no time")
    return frame.head(-words), lines[:-words]


def _with_one_column_of_times(frame: pl.DataFrame, time: str, name: str) -> pl.DataFrame:
    """The table without its further columns of times: a sheet may hold securities side by side, each with its dates."""
    for twin in (one for one in frame.columns if re.fullmatch(re.escape(time) + r" \(\d+\)", one)):
        if not frame[twin].cast(pl.String).eq_missing(frame[time].cast(pl.String)).all():
            raise InvalidInputError(
                f"{name} has two columns of times that differ, {time!r} and {twin!r}, and does not say which values "
                "belong to which; hand in one security at a time, or all with the same dates"
            )
        frame = frame.drop(twin)
    return frame


def _is_european(values: pl.DataFrame, times: pl.Series, mark: str) -> bool:
    """Whether 1,5 has a decimal comma: the table is parted by semicolons, has such numbers, or German dates."""
    if mark == ";" or any(has_decimal_commas(values[one].head(_LOOKED_AT)) for one in values.columns):
        return True
    if mark not in "\t|" or times.dtype != pl.String:  # between commas Dukascopy writes German dates beside 1.234
        return False
    return bool(times.head(_LOOKED_AT).str.contains(r"^\d{1,2}\.\d{1,2}\.\d{4}").all())


def _rows_by_series(frame: pl.DataFrame, key: str) -> list[tuple[str, Rows]]:
    """Each series that the column ``key`` names, and its rows."""
    table = frame.select(pl.col(key).cast(pl.String).fill_null("(no name)"), pl.int_range(pl.len()).alias(" row"))
    table = table.group_by(key, maintain_order=True).agg(" row")
    return [(part, rows.to_numpy()) for part, rows in zip(table[key], table[" row"], strict=True)]


def _marks(labels: pl.Series) -> pl.Series:
    """What labels say of each row, empty where it is usual; refuses those of which that cannot be told."""
    words = labels.cast(pl.String).fill_null("").str.strip_chars()
    if set(words.unique()) == {"1", "-1"}:
        raise InvalidInputError(
            f"labels in {labels.name!r} are 1 and -1, which some write for usual and others for anomalous rows; write "
            "0 for the usual ones"
        )
    return words.str.replace(r"(?i)^(-?0+(\.0*)?|false|f|normal|no|n|none|n/?a|nan|null)$", "")


def _windows(times: Times, labels: pl.Series) -> tuple[Window, ...]:
    """The stretches that labels mark, in the order of time: words, or anything but nothing, 0 and false."""
    order = np.argsort(times, kind="stable")
    words = _marks(labels).gather(order)
    runs = pl.DataFrame({"word": words, "time": times[order], "run": words.rle_id()}).filter(pl.col("word") != "")
    runs = runs.group_by("run", maintain_order=True).agg(pl.first("word", "time"), last=pl.last("time")).drop("run")
    runs = runs.with_columns(pl.col("word").str.replace(r"(?i)^(1(\.0*)?|true|t|yes|y)$", ""))
    return tuple(Window(kind=kind, start_ns=first, end_ns=last) for kind, first, last in runs.iter_rows())


def _one(name: str, times: Times, values: Cells, scored: str, put_right: Counter[str]) -> Series | None:
    """A series in the order of time, None with a single time; ``put_right`` counts what was out of order or dropped."""
    steps = np.diff(times)
    if (steps <= 0).all():
        # The newest first: of rows with the same time the later stands before the earlier.
        times, values = times[::-1], {label: cells[::-1] for label, cells in values.items()}
    # Of rows with the same time the last comes last, of those with a value if there are any.
    order = np.arange(len(times)) if (np.diff(times) > 0).all() else np.lexsort((np.isfinite(values[scored]), times))
    kept = order[np.append(np.diff(times[order]) != 0, True)]
    put_right.update(sorted=int((steps < 0).any()), dropped=len(times) - len(kept))
    if len(kept) < 2:
        return None
    if len(kept) <= len(times) / 2 and not (times % DAY_NS).any():
        how = "sum or average them, or name the column that tells their series apart with the option 'series'"
        raise InvalidInputError(f"{name}: the {len(times)} rows have {len(kept)} days; {how}")
    cells = {label: one[kept] for label, one in values.items()}
    words = {label: one for label, one in cells.items() if one.dtype == object}
    numbers, interval = (
        {label: one for label, one in cells.items() if label not in words},
        usual_interval_ns(times[kept]),
    )
    return Series(name=name, times_ns=times[kept], values=numbers, column=scored, interval_ns=interval, words=words)


def _named(frame: pl.DataFrame, wanted: str, option: str, name: str) -> str:
    label = columns.matching_label(wanted, frame.columns)
    if label is None:
        there = ", ".join(map(repr, frame.columns[:50]))
        raise InvalidInputError(f"{name} has no column {wanted!r}, named by '{option}'; there are: {there}")
    return label


def _with_times(frame: pl.DataFrame, wanted: str | None, name: str, notes: list[str]) -> tuple[pl.DataFrame, str]:
    """The table and its column of times; a date and a time of day in two columns are made one."""
    if wanted is not None:
        both = [wanted] if columns.matching_label(wanted, frame.columns) else wanted.split("+", 1)
        both = [_named(frame, one, "time", name) for one in both]
        return (frame, both[0]) if len(both) == 1 else _joined(frame, both[0], both[1])
    for pair in columns.DATE_AND_TIME:
        day, hour = (columns.first_matching_label([one], frame.columns) for one in pair.split("+"))
        if day and hour and not isinstance(frame[day].dtype, pl.Datetime):
            shown = frame[hour].cast(pl.String, strict=False).str.contains(r"^(\d{1,2}:\d\d|\d{6}$)")
            frame = _joined(frame, day, hour)[0] if shown.all() else frame
    guessed = columns.first_matching_label(columns.TIMES, frame.columns)
    if guessed is not None:
        return frame, guessed
    dated = (one for one in frame.columns if isinstance(frame[one].dtype, (pl.Date, pl.Datetime)))
    guessed = next(dated, None) or columns.with_word({"date", "time", "timestamp"}, frame.columns)
    first = frame.to_series()
    if guessed is None and first.dtype == pl.String and first.head(5).str.contains(r"\d[-/.:年]?\d+[-/.:月]?\d").all():
        guessed = first.name  # an index without a name, as pandas writes it
    if guessed is None:
        how = "name it with the option 'time', and write times as 2024-01-31 09:30:00 or as seconds since 1970"
        raise InvalidInputError(f"{name} has no column of times among {frame.columns[:50]}; {how}")
    which = f"column {guessed!r}" if guessed else "the first column, which has no name,"
    notes.append(f"{which} was taken for the times; the option 'time' names another")
    return frame, guessed


def _joined(frame: pl.DataFrame, day: str, hour: str) -> tuple[pl.DataFrame, str]:
    shown = frame[hour].cast(pl.String, strict=False).str.replace(r"^(\d\d)(\d\d)(\d\d)$", "${1}:${2}:${3}")
    said = re.search(r"[(\[][^)\]]+[)\]]", f"{hour} {day}")  # a zone, as in Time (UTC+8)
    joined = (frame[day].cast(pl.String) + " " + shown).alias(f"date time {said[0]}" if said else "date time")
    return frame.drop(day, hour).insert_column(0, joined), joined.name


def _values(
    frame: pl.DataFrame, lines: Rows, decimal: str | None, european: bool, notes: list[str]
) -> tuple[Values, Faults]:
    """The columns of numbers, and what is wrong with those that might be; columns of words are neither."""
    values: Values = {}
    faults: Faults = {}
    for label in frame.columns:
        numbers, fault = read_column(frame[label], lines, decimal, european)
        if numbers is None and not fault and columns.plain(label) in columns.VALUES:
            fault = f"holds {next((cell for cell in frame[label] if cell), None)!r}, {NO_NUMBER}"
        elif numbers is None and not fault and not columns.names_rows(label):
            cell = nearly_a_number(frame[label])
            fault = f"holds {cell!r}{_AS_WRITTEN}" if cell else ""
        elif numbers is not None and not np.isfinite(numbers).any():
            fault = EMPTY
        if fault:
            faults[label] = fault
        elif numbers is not None:
            infinite = np.isinf(numbers)
            values[label] = np.where(infinite, np.nan, numbers)
            notes += [f"column {label!r}: {infinite.sum()} infinite values are missing"] if infinite.any() else []
    return values, faults


def _scored_column(
    labels: list[str], values: Values, faults: Faults, options: TableOptions, name: str, notes: list[str]
) -> str:
    """The one of ``labels`` that is scored, as it is asked for or by its name; leaves it and other values alone.

    A fault in the column that is meant is refused, and no other one scored in its place; nor is a quantity in place of
    amounts that cannot be read.
    """
    wanted = options.value
    if wanted is None and options.value_if_there and columns.matching_label(options.value_if_there, [*values]):
        wanted = options.value_if_there
    quotes = [columns.first_matching_label(one, values) for one in (columns.BIDS, columns.ASKS)]
    what = "one of the file's"
    price = columns.first_matching_label(columns.PRICES, labels) or columns.with_word(columns.PRICE_WORDS, labels)
    label = price if wanted is None else columns.matching_label(wanted, [*values, *faults])
    if label is None and wanted is not None:
        there = ", ".join(map(repr, values)) or "none"
        raise InvalidInputError(f"{name} has no column of numbers called {wanted!r}; there are: {there}")
    if label is None and quotes[0] and quotes[1]:
        label, what = "mid", f"the mean of {quotes[0]!r} and {quotes[1]!r}"
        values[label] = (values[quotes[0]] + values[quotes[1]]) / 2
    if label is None:
        label = columns.other_value(labels)
        if label is None or columns.is_quantity(label):
            label = next((one for one, fault in faults.items() if fault.endswith(_AS_WRITTEN)), label)
        label = label or next(iter(faults), None)
    if label is None:
        there = f"; column {next(iter(values))!r} numbers or names the rows and is no value" if values else ""
        raise InvalidInputError(f"{name} has no column of numbers to score{there}; name one with the option 'value'")
    if label in faults:
        other = ", or name another column with the option 'value'" if values and wanted is None else ""
        raise InvalidInputError(
            f"{name}: column {label!r} {faults[label]}; correct the file, or leave the cell empty{other}"
        )
    for other in [one for one in values if one != label and columns.names_rows(one)]:
        del values[other]
    if len(values) > 1 and wanted is None:
        notes.append(f"column {label!r} was scored, {what}; the option 'value' names another")
    empty = [other for other, fault in faults.items() if fault == EMPTY]
    if len(empty) > 1:
        which = ", ".join(map(repr, empty[:5])) + (", …" if len(empty) > 5 else "")
        notes.append(f"{len(empty)} columns were left out, for they hold no number: {which}")
    notes += [
        f"column {other!r} was left out: it {fault}"
        for other, fault in faults.items()
        if len(empty) < 2 or other not in empty
    ]
    return label
