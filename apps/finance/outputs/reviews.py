"""Reviewed cases as tables with labels, and what an analyst says of the events checked against the series.

A file a series with the columns timestamp (UTC), value and label, which is 1 in the rows of events that are accepted or
missed: what ``--data table`` reads. Where the table named its series, that column is there as well. Where the store
keeps the table whole, its columns take the place of value.
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
"""The name of the series' column where every column is a series, the first of them all columns together."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")


def time_ns(text: str) -> int:
    """A time as events state it, in UTC nanoseconds. Refuses another way of writing."""
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        moment = datetime.strptime(found[1], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidInputError(f"{text!r} is no time as events have it; write 2014-04-01T00:05:00Z") from None
    return int(moment.timestamp()) * SECOND_NS + int((found[2] or "0").ljust(9, "0"))


def export(cases: Sequence[ReviewedCase], out: Path) -> list[str]:
    """Writes the series that are reviewed whole into the folder ``series``; returns what is to be said.

    These are the series whose events are each accepted or rejected. A series without an event is one of them where the
    case is reviewed whole, or an event was added. The rows of a rejected event are labelled as ordinary ones.
    """
    (out / "series").mkdir()
    written = undecided = joint = whole_tables = 0
    scored: set[str] = set()
    named: list[str] = []
    for case in cases:
        whole = len(case.review.verdicts) == len(case.result["events"])
        kept = _whole(case)
        key = case.result["series"].get("series_column")
        key = None if key in (_ALL_COLUMNS, _TIMESTAMP, _VALUE, _LABEL) else key
        for place, (name, rows) in enumerate(_rows(case).items()):
            numbers = [n for n, event in enumerate(case.result["events"], 1) if event.get("series", name) == name]
            missed = [one for one in case.review.missed if one.get("series", name) == name]
            verdicts = [case.review.verdicts.get(number) for number in numbers]
            if place == 0 and case.result["series"].get("series_column") == _ALL_COLUMNS:
                joint += 1
                continue
            if None in verdicts or not (whole or verdicts or missed):
                undecided += 1
                continue
            events = [case.result["events"][number - 1] for number in numbers]
            accepted = [one for one, verdict in zip(events, verdicts, strict=True) if verdict == "accepted"]
            windows = (
                Window(start_ns=time_ns(one["start"]), end_ns=time_ns(one["end"])) for one in (*accepted, *missed)
            )
            times, columns = _columns(kept[name]) if name in kept else _columns_of(rows)
            if key is not None and key not in columns:
                columns = {key: [name] * len(times), **columns}
                named.append(key)
            scored.add(kept[name].column if name in kept else _VALUE)
            _write(out / "series" / f"{case.id[:12]}-{place:04d}.csv", times, columns, tuple(windows))
            written, whole_tables = written + 1, whole_tables + (name in kept)
    remarks = []
    if undecided:
        remarks.append(f"Left out, series not reviewed whole: {undecided}. Accept or reject each of their events.")
    if joint:
        remarks.append(f"Left out, all columns together: of {joint} cases. Each column is a series of its own.")
    if written:
        where = f"--data.path {out / 'series'} --data.labels {_LABEL}"
        if scored != {_VALUE} and len(scored) == 1:
            where += f" --data.value {shlex.quote(*scored)}"
        if len(named) == written and len({*named}) == 1:
            where += f" --data.series {shlex.quote(named[0])}"
        with_columns = f", {whole_tables} of them with all columns of their table" if whole_tables else ""
        remarks.append(f"Series written: {written}{with_columns}. trivium evaluate finance --data table {where}")
    if len(scored) > 1:
        names = ", ".join(sorted(scored))
        remarks.append(f"Columns that were scored: {names}. Name one with --data.value where another would be guessed.")
    return remarks


def _whole(case: ReviewedCase) -> dict[str, Series]:
    """The series with all columns of their table, by name, where the store keeps them and a file can hold them."""
    content = case.input(COLUMNS)
    found = [] if content is None else read_whole_series(content)
    return {one.name: one for one in found if not {_TIMESTAMP, _LABEL} & {*one.values, *one.words}}


def _columns(series: Series) -> tuple[list[str], dict[str, list[str]]]:
    """Times and columns of a series as a file has them."""
    times = [iso_utc(time).replace("T", " ").removesuffix("Z") for time in series.times_ns.tolist()]
    numbers = {name: [repr(value) for value in values.tolist()] for name, values in series.values.items()}
    return times, {**numbers, **{name: [str(word) for word in words] for name, words in series.words.items()}}


def _columns_of(rows: Sequence[tuple[str, str]]) -> tuple[list[str], dict[str, list[str]]]:
    """The same of the rows that were scored."""
    return [time for time, _ in rows], {_VALUE: [value for _, value in rows]}


def _rows(case: ReviewedCase) -> dict[str, list[tuple[str, str]]]:
    """Times and values of each series by its name, as they were scored."""
    kept = case.file("scores.csv")
    if kept is None:
        raise InvalidInputError(f"the rows of case {case.id} are gone from the store; delete it, or run it again")
    if isinstance(kept, Mapping):
        found, _, several = read_scored_rows(kept[SOURCE])
        kept = several_scores_csv(found) if several else scores_csv(found[0])
    series: dict[str, list[tuple[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(kept.decode())):
        name = row.get("series", case.result["series"]["name"])
        series.setdefault(name, []).append((row["timestamp"], row["value"]))
    return series


def _write(file: Path, times: Sequence[str], columns: Mapping[str, Sequence[str]], windows: tuple[Window, ...]) -> None:
    """The rows with their labels; a missing value is an empty cell."""
    times_ns = np.array(times, "datetime64[ns]").astype(np.int64)
    labels = np.zeros(len(times), np.int64)
    for first, last in window_rows(times_ns, windows).tolist():
        labels[first : last + 1] = 1
    with file.open("w", newline="") as content:
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow((_TIMESTAMP, *columns, _LABEL))
        for time, *values, label in zip(times, *columns.values(), labels.tolist(), strict=True):
            writer.writerow((time, *("" if value == "nan" else value for value in values), label))


def _count(result: Mapping[str, Any]) -> int:
    return len(result["events"])


def _check(missed: Sequence[FinanceMissed], result: Mapping[str, Any]) -> None:
    """Refuses a stretch that does not lie in its series."""
    parts = {part["name"]: part for part in result.get("parts", ())}
    for one in missed:
        name = one.get("series")
        if parts and name not in parts:
            which = "several series" if name is None else f"no series {name!r}"
            raise InvalidInputError(f"the case has {which}; name that of a missed event as in parts")
        if not parts and name not in (None, result["series"]["name"]):
            raise InvalidInputError(f"the case has one series, and not {name!r}; leave series out")
        series = parts[str(name)] if parts else result["series"]
        start, end = time_ns(one["start"]), time_ns(one["end"])
        if not time_ns(series["start"]) <= start <= end <= time_ns(series["end"]):
            raise InvalidInputError(
                f"the missed event from {one['start']} to {one['end']} does not lie in its series, which goes from "
                f"{series['start']} to {series['end']}"
            )


REVIEWING = Reviewing(count=_count, check=_check, export=export)
