"""Tables of text or numbers with a time column to ``Series``: bars (OHLCV), quotes and metrics alike."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import polars as pl

from apps.finance.adapters import columns
from apps.finance.adapters.covariates import EMPTY, NO_NUMBER, covariate_labels, take_covariates
from apps.finance.adapters.crsp import unsign_crsp_prices
from apps.finance.adapters.numbers import decimal_mark, find_formatted_amount, has_decimal_commas, read_column
from apps.finance.adapters.options import DEFAULT_OPTIONS, TableOptions
from apps.finance.adapters.times import Column, Rows, read_times, to_utc, zone_in_header
from apps.finance.types import DAY_NS, TRUTH, Floats, Series, Times, Window, Words, usual_interval_ns
from shared.errors import InvalidInputError

MAX_COLUMNS = 2000
Values = dict[str, Floats]
Faults = dict[str, str]
Cells = dict[str, Floats | Words]
_AS_WRITTEN = f", {NO_NUMBER} as written"
_SAMPLED_ROWS = 200


@dataclass(frozen=True, slots=True)
class Contents:
    """The content of a file: its series, named as in the ``series_column``, or one series named after the file.

    ``notes`` say what the reader had to do and what was guessed; ``windows`` has each series' labelled windows.
    """

    series: tuple[Series, ...]
    series_column: str = ""
    notes: tuple[str, ...] = ()
    windows: tuple[tuple[Window, ...], ...] = ()


def to_contents(
    frame: pl.DataFrame,
    name: str,
    options: TableOptions = DEFAULT_OPTIONS,
    lines: Rows | None = None,
    separator: str = ",",
) -> Contents:
    """The series in a table; ``name`` is the file's name, ``lines`` (N,) the rows' line numbers, ``separator`` that of
    cells.

    Missing ``options`` are guessed. The value is a price, the mean of bid and ask, another value by its name, or the
    first numeric column that is not an identifier. Rows are sorted by time if necessary; of rows with the same time the
    last is kept; a footer is left out; the notes say so. Raises InvalidInputError if the table cannot be read
    unambiguously.
    """
    notes: list[str] = []
    frame, lines = _without_empty(frame, lines, name)
    frame, time = _with_times(frame, options.time, name, notes)
    frame, lines = _without_footer(frame, lines, time, notes)
    frame = _with_one_column_of_times(frame, time, name)
    column = Column(frame[time], f"{name}, column {time!r}", lines)
    clock = read_times(column, options)
    notes += [f"column {time!r}: {clock.note}"] if clock.note else []
    labels = _matching_label(frame, options.labels, "labels", name) if options.labels else TRUTH
    frame, parts_of_names = columns.with_joined_names(frame, options.series or options.series_if_present or "", name)
    data_columns = frame.drop(time, labels, strict=False)
    decimal = options.decimal or decimal_mark(data_columns)
    is_european = _is_european(data_columns, frame[time], separator)
    values, faults = _read_values(data_columns, lines, decimal, is_european, notes)
    notes += unsign_crsp_prices(values, data_columns.columns)
    covariate_names = covariate_labels(options, frame.columns, {"times": time, "labels": labels}, name)
    covariate_cells = take_covariates(data_columns, covariate_names, values, faults, name)
    data_columns = data_columns.drop(*covariate_names.values(), *parts_of_names, strict=False)
    for label in parts_of_names:
        values.pop(label, None)
        faults.pop(label, None)
    series_label = _matching_label(frame, options.series, "series", name) if options.series else None
    if series_label is None and options.series_if_present:
        series_label = columns.matching_label(options.series_if_present, data_columns.columns)
    series_label = series_label or columns.series_column(data_columns, values, clock.times_ns, name)
    faults = {label: fault for label, fault in faults.items() if label != series_label}
    refused = [label for label, fault in faults.items() if fault != EMPTY and not fault.endswith(_AS_WRITTEN)]
    order = [label for label in data_columns.columns if label in values or label in refused]
    scored = _scored_column(order, values, faults, options, name, notes)
    parts = _rows_by_series(data_columns, series_label) if series_label else [(name, np.arange(frame.height))]
    if options.labels and len(frame) and (_row_labels(frame[labels]) != "").all():
        raise InvalidInputError(f"labels in {labels!r} mark every row; leave normal rows empty, or set them to 0")
    zone = clock.zone or options.zone or zone_in_header(column, time, clock)
    if zone not in (options.zone, clock.zone, "UTC"):
        notes.append(
            f"column {time!r}: its times are in {zone}, according to its name; the option 'zone' overrides this"
        )
    times = to_utc(clock, (rows for _, rows in parts), column, zone, notes)
    series, windows, corrections = [], [], Counter[str]()
    all_cells: Cells = {**values, **covariate_cells}
    for part, rows in parts:
        item = _series_from_rows(
            part, times[rows], {label: cells[rows] for label, cells in all_cells.items()}, scored, corrections
        )
        if item is not None:
            series.append(item)
            windows.append(_windows(times[rows], frame[labels].gather(rows)) if labels in frame.columns else ())
    if not series:
        raise InvalidInputError(f"{name}: all rows have the same time; a series needs rows with at least two times")
    if series_label:
        omitted = f"; {len(parts) - len(series)} with a single time were left out" if len(series) < len(parts) else ""
        notes.insert(0, f"the file holds {len(parts)} series, identified by column {series_label!r}{omitted}")
    if corrections["sorted"]:
        subject = f"{corrections['sorted']} of the {len(parts)} series" if series_label else "rows"
        notes.append(f"{subject} were not in time order and have been sorted")
    if dropped := corrections["dropped"]:
        notes.append(f"{dropped} row{'s' * (dropped > 1)} had the same time as another; the last of each was kept")
    return Contents(tuple(series), series_label or "", tuple(notes), tuple(windows))


def _without_empty(frame: pl.DataFrame, lines: Rows | None, name: str) -> tuple[pl.DataFrame, Rows]:
    """The table without empty columns and rows, with its text stripped, and the line numbers of its rows."""
    texts = pl.col(pl.String, pl.Categorical, pl.Enum).cast(pl.String).str.strip_chars().replace("", None)
    frame = frame.with_columns(texts)
    frame = frame[
        [
            label
            for label in frame.columns
            if columns.normalised_label(label) or frame[label].null_count() < frame.height
        ]
    ]
    filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series() if frame.width else pl.Series([False])
    lines = (np.arange(2, frame.height + 2) if lines is None else lines)[filled.to_numpy()[: frame.height]]
    if len(lines) < 2:
        raise InvalidInputError(
            f"{name} has {'a single row' if len(lines) else 'no rows'}; a series needs at least two"
        )
    return frame.filter(filled), lines


def _without_footer(frame: pl.DataFrame, lines: Rows, time: str, notes: list[str]) -> tuple[pl.DataFrame, Rows]:
    """The table without up to ten footer rows, such as a total or a source."""
    end = frame[time].tail(11)
    words = int(end.fill_null("").str.contains(r"\d").reverse().arg_max() or 0) if end.dtype == pl.String else 0
    if not words or frame.height - words <= 1:
        return frame, lines
    first = "an empty cell" if end[-words] is None else repr(end[-words])
    notes.append(f"everything from line {lines[-words]} on was left out: {first} is not a time")
    return frame.head(-words), lines[:-words]


def _with_one_column_of_times(frame: pl.DataFrame, time: str, name: str) -> pl.DataFrame:
    """The table without repeated time columns, as in sheets with securities side by side. Raises InvalidInputError if
    these columns differ."""
    for twin in (label for label in frame.columns if re.fullmatch(re.escape(time) + r" \(\d+\)", label)):
        if not frame[twin].cast(pl.String).eq_missing(frame[time].cast(pl.String)).all():
            raise InvalidInputError(
                f"{name} has two different columns of times, {time!r} and {twin!r}, and it is unclear which values "
                "belong to which; use one security per file, or the same dates for all"
            )
        frame = frame.drop(twin)
    return frame


def _is_european(values: pl.DataFrame, times: pl.Series, separator: str) -> bool:
    """Whether 1,5 has a decimal comma: cells are separated by semicolons, or there are such numbers, or German
    dates."""
    if separator == ";" or has_decimal_commas(values.head(_SAMPLED_ROWS)):
        return True
    if (
        separator not in "\t|" or times.dtype != pl.String
    ):  # Dukascopy's comma-separated files mix German dates and 1.234
        return False
    return bool(times.head(_SAMPLED_ROWS).str.contains(r"^\d{1,2}\.\d{1,2}\.\d{4}").all())


def _rows_by_series(frame: pl.DataFrame, key: str) -> list[tuple[str, Rows]]:
    """Each series that the column ``key`` names, with its rows."""
    table = frame.select(pl.col(key).cast(pl.String).fill_null("(no name)"), pl.int_range(pl.len()).alias(" row"))
    table = table.group_by(key, maintain_order=True).agg(" row")
    return [(part, rows.to_numpy()) for part, rows in zip(table[key], table[" row"], strict=True)]


def _row_labels(labels: pl.Series) -> pl.Series:
    """The label of each row, empty for normal rows. Raises InvalidInputError if the labels are ambiguous."""
    words = labels.cast(pl.String).fill_null("").str.strip_chars()
    if set(words.unique()) == {"1", "-1"}:
        raise InvalidInputError(
            f"labels in {labels.name!r} are 1 and -1, and either may mean anomalous; write 0 for normal rows"
        )
    return words.str.replace(r"(?i)^(-?0+(\.0*)?|false|f|normal|no|n|none|n/?a|nan|null)$", "")


def _windows(times: Times, labels: pl.Series) -> tuple[Window, ...]:
    """The labelled windows in time order: runs of rows whose label is not empty, 0 or false."""
    order = np.argsort(times, kind="stable")
    words = _row_labels(labels).gather(order)
    runs = pl.DataFrame({"word": words, "time": times[order], "run": words.rle_id()}).filter(pl.col("word") != "")
    runs = runs.group_by("run", maintain_order=True).agg(pl.first("word", "time"), last=pl.last("time")).drop("run")
    runs = runs.with_columns(pl.col("word").str.replace(r"(?i)^(1(\.0*)?|true|t|yes|y)$", ""))
    return tuple(Window(kind=kind, start_ns=first, end_ns=last) for kind, first, last in runs.iter_rows())


def _series_from_rows(name: str, times: Times, values: Cells, scored: str, corrections: Counter[str]) -> Series | None:
    """A series in time order, or None if it has a single time; ``corrections`` counts sorted series and dropped
    rows."""
    steps = np.diff(times)
    if (steps <= 0).all():
        # The newest row comes first, so reversing also restores the order of rows with the same time.
        times, values = times[::-1], {label: cells[::-1] for label, cells in values.items()}
    # Among rows with the same time, sort those with a value last, and keep the last.
    order = np.arange(len(times)) if (np.diff(times) > 0).all() else np.lexsort((np.isfinite(values[scored]), times))
    kept = order[np.append(np.diff(times[order]) != 0, True)]
    corrections.update(sorted=int((steps < 0).any()), dropped=len(times) - len(kept))
    if len(kept) < 2:
        return None
    if len(kept) <= len(times) / 2 and not (times % DAY_NS).any():
        remedy = "sum or average them, or name the column that identifies their series with the option 'series'"
        raise InvalidInputError(f"{name}: the {len(times)} rows cover only {len(kept)} days; {remedy}")
    cells = {label: column[kept] for label, column in values.items()}
    words = {label: column for label, column in cells.items() if column.dtype == object}
    numbers, interval = (
        {label: column for label, column in cells.items() if label not in words},
        usual_interval_ns(times[kept]),
    )
    return Series(name=name, times_ns=times[kept], values=numbers, column=scored, interval_ns=interval, words=words)


def _matching_label(frame: pl.DataFrame, wanted: str, option: str, name: str) -> str:
    label = columns.matching_label(wanted, frame.columns)
    if label is None:
        available = ", ".join(map(repr, frame.columns[:50]))
        lacking = [part for part in wanted.split("+") if columns.matching_label(part, frame.columns) is None]
        joined = f", and none named {' or '.join(map(repr, lacking))}" if option == "series" and "+" in wanted else ""
        raise InvalidInputError(
            f"{name} has no column {wanted!r}, named by '{option}'{joined}; its columns are: {available}"
        )
    return label


def _with_times(frame: pl.DataFrame, wanted: str | None, name: str, notes: list[str]) -> tuple[pl.DataFrame, str]:
    """The table and its column of times; a date and a time of day in two columns are joined."""
    if wanted is not None:
        labels = [wanted] if columns.matching_label(wanted, frame.columns) else wanted.split("+", 1)
        labels = [_matching_label(frame, label, "time", name) for label in labels]
        return (frame, labels[0]) if len(labels) == 1 else _join_date_and_time(frame, labels[0], labels[1])
    for pair in columns.DATE_AND_TIME:
        day, hour = (columns.first_matching_label([part], frame.columns) for part in pair.split("+"))
        if day and hour and not isinstance(frame[day].dtype, pl.Datetime):
            shown = frame[hour].cast(pl.String, strict=False).str.contains(r"^(\d{1,2}:\d\d|\d{6}$)")
            frame = _join_date_and_time(frame, day, hour)[0] if shown.all() else frame
    guessed = columns.first_matching_label(columns.TIMES, frame.columns)
    if guessed is not None:
        return frame, guessed
    dated = (label for label in frame.columns if isinstance(frame[label].dtype, (pl.Date, pl.Datetime)))
    guessed = next(dated, None) or columns.label_with_word({"date", "time", "timestamp"}, frame.columns)
    first = frame.to_series()
    if guessed is None and first.dtype == pl.String and first.head(5).str.contains(r"\d[-/.:年]?\d+[-/.:月]?\d").all():
        guessed = first.name  # an unnamed index, as pandas writes it
    if guessed is None:
        remedy = "name it with the option 'time', and write times as 2024-01-31 09:30:00 or as seconds since 1970"
        raise InvalidInputError(f"{name} has no column of times among {frame.columns[:50]}; {remedy}")
    subject = f"column {guessed!r}" if guessed else "the first column, which has no name,"
    notes.append(f"{subject} was taken as the times; the option 'time' selects another")
    return frame, guessed


def _join_date_and_time(frame: pl.DataFrame, day: str, hour: str) -> tuple[pl.DataFrame, str]:
    shown = frame[hour].cast(pl.String, strict=False).str.replace(r"^(\d\d)(\d\d)(\d\d)$", "${1}:${2}:${3}")
    zone = re.search(r"[(\[][^)\]]+[)\]]", f"{hour} {day}")  # as in Time (UTC+8)
    joined = (frame[day].cast(pl.String) + " " + shown).alias(f"date time {zone[0]}" if zone else "date time")
    return frame.drop(day, hour).insert_column(0, joined), joined.name


def _read_values(
    frame: pl.DataFrame, lines: Rows, decimal: str | None, european: bool, notes: list[str]
) -> tuple[Values, Faults]:
    """The numeric columns, and the faults of columns that should be numeric; columns of words are in neither."""
    values: Values = {}
    faults: Faults = {}
    for label in frame.columns:
        numbers, fault = read_column(frame[label], lines, decimal, european)
        if numbers is None and not fault and columns.normalised_label(label) in columns.VALUES:
            fault = f"holds {next((cell for cell in frame[label] if cell), None)!r}, {NO_NUMBER}"
        elif numbers is None and not fault and not columns.is_identifier(label):
            cell = find_formatted_amount(frame[label])
            fault = f"holds {cell!r}{_AS_WRITTEN}" if cell else ""
        elif numbers is not None and not np.isfinite(numbers).any():
            fault = EMPTY
        if fault:
            faults[label] = fault
        elif numbers is not None:
            infinite = np.isinf(numbers)
            values[label] = np.where(infinite, np.nan, numbers)
            values_count = "values count" if infinite.sum() > 1 else "value counts"
            notes += (
                [f"column {label!r}: {infinite.sum()} infinite {values_count} as missing"] if infinite.any() else []
            )
    return values, faults


def _scored_column(
    labels: list[str], values: Values, faults: Faults, options: TableOptions, name: str, notes: list[str]
) -> str:
    """The column among ``labels`` to score, as requested or by its name; reduces ``values`` to it and other value
    columns.

    A fault in the intended column raises InvalidInputError; no other column is scored in its place. Nor is a quantity
    scored in place of unreadable amounts.
    """
    wanted = options.value
    if wanted is None and options.value_if_present and columns.matching_label(options.value_if_present, [*values]):
        wanted = options.value_if_present
    quotes = [columns.first_matching_label(names, values) for names in (columns.BIDS, columns.ASKS)]
    description = "one of several columns of numbers"
    price = columns.first_matching_label(columns.PRICES, labels) or columns.label_with_word(columns.PRICE_WORDS, labels)
    label = price if wanted is None else columns.matching_label(wanted, [*values, *faults])
    if label is None and wanted is not None:
        available = ", ".join(map(repr, values)) or "none"
        raise InvalidInputError(
            f"{name} has no column of numbers called {wanted!r}; its number columns are: {available}"
        )
    if label is None and quotes[0] and quotes[1]:
        label, description = "mid", f"the mean of {quotes[0]!r} and {quotes[1]!r}"
        values[label] = (values[quotes[0]] + values[quotes[1]]) / 2
    if label is None:
        label = columns.fallback_value_label(labels)
        if label is None or columns.is_quantity(label):
            label = next((column for column, fault in faults.items() if fault.endswith(_AS_WRITTEN)), label)
        label = label or next(iter(faults), None)
    if label is None:
        reason = f"; column {next(iter(values))!r} identifies rows and is not a value" if values else ""
        raise InvalidInputError(f"{name} has no column of numbers to score{reason}; name one with the option 'value'")
    if label in faults:
        alternative = ", or name another column with the option 'value'" if values and wanted is None else ""
        raise InvalidInputError(
            f"{name}: column {label!r} {faults[label]}; correct the file, or leave the cell empty{alternative}"
        )
    for identifier in [column for column in values if column != label and columns.is_identifier(column)]:
        del values[identifier]
    if len(values) > 1 and wanted is None:
        notes.append(f"column {label!r} was scored, {description}; the option 'value' selects another")
    empty = [column for column, fault in faults.items() if fault == EMPTY]
    if len(empty) > 1:
        listed = ", ".join(map(repr, empty[:5])) + (", …" if len(empty) > 5 else "")
        notes.append(f"{len(empty)} columns were left out because they hold no number: {listed}")
    notes += [
        f"column {column!r} was left out: it {fault}"
        for column, fault in faults.items()
        if len(empty) < 2 or column not in empty
    ]
    return label
