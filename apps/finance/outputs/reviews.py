"""Exports reviewed cases as labelled tables, and checks an analyst's missed events against the series.

One file per series, with the columns timestamp (UTC), value, and label, which is 1 in the rows of accepted and missed
events: the format that ``--data table`` reads. If the table named its series, the file has that column as well. If the
store keeps the whole table, its columns replace value.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.finance.datasets.labels import window_rows
from apps.finance.outputs.files import scores_csv
from apps.finance.outputs.scored_rows import SOURCE, read_scored_rows
from apps.finance.outputs.several import several_scores_csv
from apps.finance.outputs.whole_series import COLUMNS, read_whole_series
from apps.finance.types import SECOND_NS, Series, Window, iso_utc
from shared.errors import InvalidInputError
from shared.review import ReviewedCase, Reviewing

if TYPE_CHECKING:
    from apps.finance.schemas import FinanceMissed

_TIMESTAMP, _VALUE, _LABEL = "timestamp", "value", "label"
_ALL_COLUMNS = "column"
"""The series column's name if every column is a series; the first of these series is all columns together."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")


def time_ns(text: str) -> int:
    """A time in the format of events, in UTC nanoseconds. Raises InvalidInputError for other formats."""
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        parsed = datetime.strptime(match[1], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidInputError(
            f"{text!r} is not a time in the format of events; write it as 2014-04-01T00:05:00Z"
        ) from None
    return int(parsed.timestamp()) * SECOND_NS + int((match[2] or "0").ljust(9, "0"))


def export(cases: Sequence[ReviewedCase], out: Path) -> list[str]:
    """Writes the fully reviewed series into the folder ``series``; returns remarks for the user.

    A series is fully reviewed if each of its events is accepted or rejected. A series without events counts if its
    whole case is reviewed, or if a missed event was added to it. The rows of a rejected event are labelled as normal.
    """
    (out / "series").mkdir()
    written = undecided = joint = whole_tables = 0
    scored: set[str] = set()
    series_columns: list[str] = []
    for case in cases:
        is_complete = len(case.review.verdicts) == len(case.result["events"])
        whole_series_by_name = _kept_series(case)
        series_column = case.result["series"].get("series_column")
        series_column = None if series_column in (_ALL_COLUMNS, _TIMESTAMP, _VALUE, _LABEL) else series_column
        for index, (name, rows) in enumerate(_scored_rows(case).items()):
            numbers = [
                number for number, event in enumerate(case.result["events"], 1) if event.get("series", name) == name
            ]
            missed = [event for event in case.review.missed if event.get("series", name) == name]
            verdicts = [case.review.verdicts.get(number) for number in numbers]
            if index == 0 and case.result["series"].get("series_column") == _ALL_COLUMNS:
                joint += 1
                continue
            if None in verdicts or not (is_complete or verdicts or missed):
                undecided += 1
                continue
            events = [case.result["events"][number - 1] for number in numbers]
            accepted = [event for event, verdict in zip(events, verdicts, strict=True) if verdict == "accepted"]
            windows = (
                Window(start_ns=time_ns(event["start"]), end_ns=time_ns(event["end"])) for event in (*accepted, *missed)
            )
            times, columns = (
                _series_columns(whole_series_by_name[name]) if name in whole_series_by_name else _row_columns(rows)
            )
            if series_column is not None and series_column not in columns:
                columns = {series_column: [name] * len(times), **columns}
                series_columns.append(series_column)
            scored.add(whole_series_by_name[name].column if name in whole_series_by_name else _VALUE)
            _write_table(out / "series" / f"{case.id[:12]}-{index:04d}.csv", times, columns, tuple(windows))
            written, whole_tables = written + 1, whole_tables + (name in whole_series_by_name)
    remarks = []
    if undecided:
        remarks.append(f"Left out, series not fully reviewed: {undecided}. Accept or reject each of their events.")
    if joint:
        remarks.append(f"Left out, the joint score of all columns: {joint} cases. Each column is a separate series.")
    if written:
        options = f"--data.path {out / 'series'} --data.labels {_LABEL}"
        if scored != {_VALUE} and len(scored) == 1:
            options += f" --data.value {shlex.quote(*scored)}"
        if len(series_columns) == written and len({*series_columns}) == 1:
            options += f" --data.series {shlex.quote(series_columns[0])}"
        with_columns = f", {whole_tables} of them with all columns of their table" if whole_tables else ""
        remarks.append(f"Series written: {written}{with_columns}. trivium evaluate finance --data table {options}")
    if len(scored) > 1:
        names = ", ".join(sorted(scored))
        remarks.append(f"Scored columns: {names}. Choose one with --data.value, because another may be guessed.")
    return remarks


def _kept_series(case: ReviewedCase) -> dict[str, Series]:
    """The series with all columns of their table, by name, if the store keeps them and a file can hold them."""
    content = case.input(COLUMNS)
    kept = [] if content is None else read_whole_series(content)
    return {series.name: series for series in kept if not {_TIMESTAMP, _LABEL} & {*series.values, *series.words}}


def _series_columns(series: Series) -> tuple[list[str], dict[str, list[str]]]:
    """Times and columns of a series as written to a file."""
    times = [iso_utc(time).replace("T", " ").removesuffix("Z") for time in series.times_ns.tolist()]
    numbers = {name: [repr(value) for value in values.tolist()] for name, values in series.values.items()}
    return times, {**numbers, **{name: [str(word) for word in words] for name, words in series.words.items()}}


def _row_columns(rows: Sequence[tuple[str, str]]) -> tuple[list[str], dict[str, list[str]]]:
    """The same for the rows that were scored."""
    return [time for time, _ in rows], {_VALUE: [value for _, value in rows]}


def _scored_rows(case: ReviewedCase) -> dict[str, list[tuple[str, str]]]:
    """Times and values of each series by its name, as scored."""
    kept = case.file("scores.csv")
    if kept is None:
        raise InvalidInputError(f"the rows of case {case.id} are no longer in the store; delete it, or run it again")
    if isinstance(kept, Mapping):
        detections, _, several = read_scored_rows(kept[SOURCE])
        kept = several_scores_csv(detections) if several else scores_csv(detections[0])
    series: dict[str, list[tuple[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(kept.decode())):
        name = row.get("series", case.result["series"]["name"])
        series.setdefault(name, []).append((row["timestamp"], row["value"]))
    return series


def _write_table(
    file: Path, times: Sequence[str], columns: Mapping[str, Sequence[str]], windows: tuple[Window, ...]
) -> None:
    """Writes the rows with their labels; a missing value is an empty cell."""
    times_ns = np.array(times, "datetime64[ns]").astype(np.int64)
    labels = np.zeros(len(times), np.int64)
    for first, last in window_rows(times_ns, windows).tolist():
        labels[first : last + 1] = 1
    with file.open("w", newline="", encoding="utf-8") as content:
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow((_TIMESTAMP, *columns, _LABEL))
        for time, *values, label in zip(times, *columns.values(), labels.tolist(), strict=True):
            writer.writerow((time, *("" if value == "nan" else value for value in values), label))


def _check_missed(missed: Sequence[FinanceMissed], result: Mapping[str, Any]) -> None:
    """Raises InvalidInputError if a missed event does not lie in its series."""
    parts = {part["name"]: part for part in result.get("parts", ())}
    for event in missed:
        name = event.get("series")
        if parts and name not in parts:
            problem = "several series" if name is None else f"no series {name!r}"
            raise InvalidInputError(f"the case has {problem}; name the missed event's series as in parts")
        if not parts and name not in (None, result["series"]["name"]):
            raise InvalidInputError(f"the case has a single series, which is not {name!r}; leave series out")
        series = parts[str(name)] if parts else result["series"]
        start, end = time_ns(event["start"]), time_ns(event["end"])
        if not time_ns(series["start"]) <= start <= end <= time_ns(series["end"]):
            raise InvalidInputError(
                f"the missed event from {event['start']} to {event['end']} is outside its series, which covers "
                f"{series['start']} to {series['end']}"
            )


REVIEWING = Reviewing(count=lambda result: len(result["events"]), check=_check_missed, export=export)
