"""The HTTP side: turns files and options into series, and detections into a response; the same for every interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.finance.adapters import read_contents
from apps.finance.adapters.options import OPTION_NAMES, TableOptions, table_options
from apps.finance.datasets.covariates import horizon_notes, unit_notes, unknown_notes
from apps.finance.inference.corporate_actions import adjustment_note
from apps.finance.inference.detectors.joint import first_joint_row
from apps.finance.inference.forecasting import library_network
from apps.finance.inference.options import Options
from apps.finance.models.calendar import columns_taken
from apps.finance.outputs.events_csv import events_csv
from apps.finance.outputs.files import result, scores_csv, series_json
from apps.finance.outputs.picture import draw, draw_several
from apps.finance.outputs.rows_file import ROWS, has_rows_file, rows_file
from apps.finance.outputs.scored_rows import SOURCE, read_scored_rows, scored_rows
from apps.finance.outputs.several import max_points, several_result, several_scores_csv, several_series_json
from apps.finance.outputs.whole_series import COLUMNS, has_other_columns, whole_series
from apps.finance.predictor import FinancePredictor
from apps.finance.types import Detection, LibraryTFT, Series, Window, iso_utc
from shared.deploy.predictor import PICTURE, Decoded, DeferredFiles, Request, Response
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.finance.adapters.table import Contents

MIN_ROWS = 60
ROWS_PER_SECOND = 2500
"""Rows per second of waiting time. One core scores them in a quarter of that time; the rest is for the queue and other
requests."""
MAX_ROWS = 2_000_000
_OPTIONS = (*OPTION_NAMES, "instrument", "columns", "events_per_day", "events_per_1000_rows", "threshold")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileContext:
    """What a response says about the file besides its series.

    ``series_column`` is the column that names several series, or empty; ``truth`` has the labelled windows of a
    synthetic series.
    """

    name: str
    series_column: str = ""
    notes: tuple[str, ...] = ()
    truth: tuple[Window, ...] = ()


class FinanceCodec:
    """Decodes one CSV, Parquet or Excel file of one or several series, and encodes the result."""

    def __init__(self, predictor: FinancePredictor) -> None:
        self.model = predictor.name
        self.library, self.series_column = predictor.trained_on, predictor.series_column
        network = library_network(predictor.model)
        self.imported = network.settings if network is not None and self.library is None else None
        self.covariates = () if network is None else columns_taken(network.settings)
        self.context, self.horizon = predictor.model.context, predictor.model.horizon

    def decode(self, request: Request) -> Decoded[Series]:
        """Reads the file and the options: those of ``TableOptions``; ``instrument``, the only one of several series to
        score; ``columns``, "all" for every column and all of them jointly; the number of events wanted, as
        ``events_per_day`` or ``events_per_1000_rows``, or ``threshold``, the score that begins an event, in (0, 1]."""
        table, wanted = read_options(request.options)
        path = _single_file(request.files)
        if self.library is not None:
            table = _options_for_network(table, self.library, request.options.get("columns", ""))
            table = replace(table, series_if_present=self.series_column)
        elif self.imported is not None:
            target, group = self.imported.target, self.imported.group
            if not request.options.get("columns", "").strip():
                table = replace(table, covariates=self.covariates, value_if_present=target, series_if_present=group)
            elif self.covariates:
                raise _single_column_error(target, self.covariates)
        _refuse_other_names(table.series, self.series_column if self.imported is None else self.imported.group)
        contents = read_contents(path, table)
        contents = _select_instrument(contents, request.options.get("instrument", "").strip(), path.name)
        contents = _expand_columns(contents, request.options.get("columns", "").strip(), path.name)
        if not (request.options.get("columns") or table.value or contents.series_column or self.covariates):
            contents = _note_other_columns(contents)
        series, notes = _drop_short_series(contents, path.name)
        if self.library is not None:
            notes += unknown_notes(series, self.library) + unit_notes(series, self.library, self.context)
            notes += horizon_notes(series, self.library, self.horizon)
        elif self.imported is not None:
            notes += unknown_notes(series, self.imported)
        notes += _ended_notes(series)
        notes += tuple(note for note in map(adjustment_note, series[:1] if len(series) == 1 else ()) if note)
        _refuse_too_many(sum(map(len, series)), request.seconds, path.name)
        wanted.refuse_too_many_events(series)
        truth = contents.windows[0] if contents.windows and not contents.series_column else ()
        return Decoded(
            inputs=series,
            options=wanted,
            context=FileContext(name=path.name, series_column=contents.series_column, notes=notes, truth=truth),
        )

    def encode(self, decoded: Decoded[Series], outputs: Sequence[Detection]) -> Response:
        """The events as result.json; the other files are made from the scored rows on request."""
        context = decoded.context
        assert isinstance(context, FileContext)
        several = bool(context.series_column)
        if several:
            document = several_result(
                outputs,
                name=context.name,
                series_column=context.series_column,
                notes=context.notes,
                model=self.model,
            )
        else:
            (detection,) = outputs
            document = result(detection, model=self.model, notes=context.notes, truth=context.truth)
        if self.covariates:
            document["series"]["columns"] = [document["series"]["column"]]  # the other columns are covariates
        names = [PICTURE, "events.csv", "scores.csv", "series.json"]
        names += [ROWS] if has_rows_file(outputs, max_points(len(outputs))) else []
        return Response(
            result=document,
            later=DeferredFiles(
                files=dict.fromkeys(names, (SOURCE,)),
                sources={SOURCE: scored_rows(outputs, context.name, several=several)},
                inputs={COLUMNS: partial(whole_series, decoded.inputs)} if has_other_columns(decoded.inputs) else {},
            ),
        )

    def make(self, name: str, sources: Mapping[str, bytes]) -> bytes:
        """One file of the response: the picture, the events, the viewer's drawing, the scores of all rows, or all rows
        for the viewer."""
        detections, file, several = read_scored_rows(sources[SOURCE])
        if name == PICTURE:
            return draw_several(detections, file) if several else draw(detections[0])
        if name == "events.csv":
            return events_csv(detections, several=several)
        if name == "series.json":
            return several_series_json(detections) if several else series_json(detections[0])
        if name == "scores.csv":
            return several_scores_csv(detections) if several else scores_csv(detections[0])
        return rows_file(detections)


def _options_for_network(table: TableOptions, library: LibraryTFT, columns: str) -> TableOptions:
    """The table options for a network that was trained on a table: its covariates, and its value unless another is
    named."""
    value = library.columns[library.target]
    if columns.strip():
        raise _single_column_error(value, library.covariates)
    return replace(table, value=table.value or value, covariates=library.covariates)


def _refuse_other_names(wanted: str | None, names: str | None) -> None:
    """Raises InvalidInputError if a request names series by some of the columns that named them together in training,
    or by these columns in another order: the network would know none of the series."""
    parts, known = (wanted or "").split("+"), (names or "").split("+")
    if len(known) > 1 and parts != known and {*parts} <= {*known}:
        raise InvalidInputError(
            f"the option series is {wanted!r}, but the network was trained on series named by {names}, in this order; "
            "leave out the option"
        )


def _single_column_error(value: str, covariates: tuple[str, ...]) -> InvalidInputError:
    """The error if all columns are requested of a network that forecasts one column, from ``covariates``."""
    others = f" from {', '.join(map(repr, covariates))}" if covariates else ""
    return InvalidInputError(
        f"the model forecasts {value!r}{others} and cannot score all columns; leave out the option 'columns', or use a "
        "model that takes only the value"
    )


def _single_file(files: tuple[Path, ...]) -> Path:
    if len(files) == 1 and files[0].is_dir():
        files = tuple(sorted(path for path in files[0].iterdir() if path.is_file()))
    if len(files) != 1:
        raise InvalidInputError(
            f"send one CSV, Parquet or Excel file, not {len(files)} files; put several series into one file, "
            "below each other, with a column 'ticker' that names them"
        )
    return files[0]


def _select_instrument(contents: Contents, wanted: str, name: str) -> Contents:
    if not wanted:
        return contents
    chosen = tuple(series for series in contents.series if series.name == wanted)
    if not chosen or not contents.series_column:
        names = [series.name for series in contents.series]
        available = ", ".join(names[:10]) if contents.series_column else "a single series without a name"
        ellipsis = ", …" if len(names) > 10 else ""
        raise InvalidInputError(f"{name} has no series {wanted!r}; it has {available}{ellipsis}")
    return replace(contents, series=chosen, notes=(*contents.notes, f"only series {wanted!r} was scored"))


def _note_other_columns(contents: Contents) -> Contents:
    """``contents`` with a note that all columns can be scored, if there are several."""
    number = len(contents.series[0].values)
    if number < 2:
        return contents
    note = f"the option columns=all scores each of the {number} columns, and how they move together"
    return replace(contents, notes=(*contents.notes, note))


def _expand_columns(contents: Contents, wanted: str, name: str) -> Contents:
    """Each column as a series of its own, preceded by a series in which all columns are scored jointly."""
    if not wanted:
        return contents
    if wanted != "all":
        raise InvalidInputError(f"columns is {wanted!r}; give 'all', or name the one column with the option 'value'")
    if len(contents.series) > 1:
        remedy = "columns are scored together for one series only; choose it with the option 'instrument'"
        raise InvalidInputError(f"{name} holds several series; {remedy}")
    (series,) = contents.series
    if len(series.values) < 2:
        raise InvalidInputError(
            f"{name} has one column of numbers, {series.column!r}; columns=all needs at least two, so leave it out"
        )
    parts = [
        replace(series, name=label, values={label: series.values[label]}, column=label, column_of_table=True)
        for label in series.values
    ]
    all_series = (replace(series, name="all columns", joint=True), *parts)
    # Drop the note about which single column the reader would have scored.
    notes = tuple(note for note in contents.notes if not (note.startswith("column ") and "was scored" in note))
    if len(series) <= (first := first_joint_row(len(series.values))):
        notes += (
            f"{len(series)} rows are too few to score {len(series.values)} columns jointly, which begins after {first} "
            "rows; only each column by itself was scored",
        )
    return replace(contents, series=all_series, series_column="column", notes=notes)


def _drop_short_series(contents: Contents, name: str) -> tuple[tuple[Series, ...], tuple[str, ...]]:
    """The series with enough values, and the file's notes. Raises InvalidInputError if no series has enough."""
    observed = [int(np.isfinite(series.target).sum()) for series in contents.series]
    enough = tuple(series for series, count in zip(contents.series, observed, strict=True) if count >= MIN_ROWS)
    if not enough:
        column = contents.series[0].column
        max_values = max(observed)
        size = f"{max_values} values in column {column!r}"
        if len(observed) > 1:
            size = f"{len(observed)} series with at most {size}"
        raise InvalidInputError(f"{name} has {size}; scoring needs at least {MIN_ROWS}, and more give better results")
    short = [series.name for series, count in zip(contents.series, observed, strict=True) if count < MIN_ROWS]
    if not short:
        return enough, contents.notes
    first = ", ".join(short[:5]) + (", …" if len(short) > 5 else "")
    were = "were" if len(short) > 1 else "was"
    note = f"{len(short)} series with fewer than {MIN_ROWS} values {were} left out ({first})"
    return enough, (*contents.notes, note)


def _ended_notes(series: Sequence[Series]) -> tuple[str, ...]:
    """A note about series that end while others continue, if the difference is more than twice their longest step."""
    last = max(int(item.times_ns[-1]) for item in series)
    ended = [item for item in series if last - int(item.times_ns[-1]) > 2 * int(np.diff(item.times_ns).max())]
    if not ended:
        return ()
    listed = ", ".join(f"{item.name!r} at {iso_utc(int(item.times_ns[-1]))}" for item in ended[:5])
    verb, ellipsis = "end" if len(ended) > 1 else "ends", ", …" if len(ended) > 5 else ""
    return (f"{len(ended)} series {verb} while others continue until {iso_utc(last)}: {listed}{ellipsis}",)


def _refuse_too_many(rows: int, seconds: float | None, name: str) -> None:
    if rows > MAX_ROWS:
        raise InvalidInputError(f"{name} has {rows} rows; send at most {MAX_ROWS} at a time")
    if seconds is not None and rows > seconds * ROWS_PER_SECOND:
        raise InvalidInputError(
            f"{name} has {rows} rows, and only {seconds * ROWS_PER_SECOND:.0f} can be scored within the request's "
            f"timeout of {seconds:g} s; send it as a job (POST /api/finance/jobs), which takes up to {MAX_ROWS} rows, "
            "as does the command line, or send fewer rows: a shorter period, longer bars, fewer series",
            status=413,
        )


def read_options(options: Mapping[str, str]) -> tuple[TableOptions, Options]:
    """The typed options of a request, checked as far as possible without its file. Raises InvalidInputError for unknown
    options."""
    if unknown := sorted(options.keys() - set(_OPTIONS)):
        raise InvalidInputError(f"unknown option {unknown[0]}; the options are {', '.join(_OPTIONS)}")
    return table_options(options), _wanted_events(options)


def _wanted_events(options: Mapping[str, str]) -> Options:
    """The options that say how many events are wanted."""
    examples = {
        "threshold": "above 0 and at most 1, such as 0.3",
        "events_per_day": "above 0, such as 0.5",
        "events_per_1000_rows": "above 0, such as 0.5",
    }
    return Options(**{name: _parse_number(name, options.get(name, ""), example) for name, example in examples.items()})


def _parse_number(name: str, text: str, example: str) -> float | None:
    """The number in an option, with a decimal point or comma; None if the option is empty."""
    if not text.strip():
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError as error:
        raise InvalidInputError(f"{name} is {text!r}, not a number; give a number {example}") from error
