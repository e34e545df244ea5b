"""Files and options to series, and what was found in them to a response: the same through every interface."""

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
from apps.finance.inference.conformal import Budget
from apps.finance.inference.corporate_actions import adjustments
from apps.finance.inference.forecasting import library_network
from apps.finance.inference.options import Options
from apps.finance.models.calendar import columns_taken
from apps.finance.outputs import files
from apps.finance.outputs.events_csv import events_csv
from apps.finance.outputs.files import result, scores_csv, series_json
from apps.finance.outputs.picture import draw, draw_several
from apps.finance.outputs.rows_file import ROWS, has_rows_file, rows_file
from apps.finance.outputs.scored_rows import SOURCE, read_scored_rows, scored_rows
from apps.finance.outputs.several import most_points, several_result, several_scores_csv, several_series_json
from apps.finance.outputs.whole_series import COLUMNS, has_other_columns, whole_series
from apps.finance.predictor import FinancePredictor
from apps.finance.types import Detection, LibraryTFT, Series, Window, iso_utc
from shared.deploy.predictor import PICTURE, Decoded, Later, Request, Response
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.finance.adapters.table import Contents

MIN_ROWS = 60
ROWS_PER_SECOND = 2500
"""Of the time that somebody waits, one core scores these in a quarter: the rest is for the queue and for others."""
MAX_ROWS = 2_000_000
_OPTIONS = (*OPTION_NAMES, "instrument", "columns", "events_per_day", "events_per_1000_rows", "threshold")
MAX_EVENTS_PER_1000_ROWS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FileContext:
    """What a response says of the file besides its series.

    ``series_column`` is the column that names several series, or empty; ``truth`` is what is known of a synthetic one.
    """

    name: str
    series_column: str = ""
    notes: tuple[str, ...] = ()
    truth: tuple[Window, ...] = ()


class FinanceCodec:
    """One CSV, Parquet or Excel file of one or several series, and its result."""

    def __init__(self, predictor: FinancePredictor) -> None:
        self.model = predictor.name
        self.library, self.series_column = predictor.trained_on, predictor.series_column
        network = library_network(predictor.model)
        self.imported = network.settings if network is not None and self.library is None else None
        self.beside = () if network is None else columns_taken(network.settings)
        self.context, self.horizon = predictor.model.context, predictor.model.horizon

    def decode(self, request: Request) -> Decoded[Series]:
        """Options: those of ``TableOptions``; ``instrument``, the one of several series that is scored; ``columns``,
        "all" for every column and all of them together; how many events are wanted, as ``events_per_day`` or
        ``events_per_1000_rows``, or ``threshold``, the score that begins one, in (0, 1]."""
        table, wanted = read_options(request.options)
        path = _only(request.files)
        if self.library is not None:
            table = _for_network(table, self.library, request.options.get("columns", ""))
            table = replace(table, series_if_there=self.series_column)
        elif self.imported is not None:
            target, group = self.imported.target, self.imported.group
            if not request.options.get("columns", "").strip():
                table = replace(table, covariates=self.beside, value_if_there=target, series_if_there=group)
            elif self.beside:
                raise _one_column_alone(target, self.beside)
        contents = read_contents(path, table)
        contents = _chosen(contents, request.options.get("instrument", "").strip(), path.name)
        contents = _all_columns(contents, request.options.get("columns", "").strip(), path.name)
        if not (request.options.get("columns") or table.value or contents.series_column or self.beside):
            contents = _with_other_columns(contents)
        series, notes = _long_enough(contents, path.name)
        if self.library is not None:
            notes += unknown_notes(series, self.library) + unit_notes(series, self.library, self.context)
            notes += horizon_notes(series, self.library, self.horizon)
        notes += _ended(series)
        notes += tuple(note for note in map(adjustments, series[:1] if len(series) == 1 else ()) if note)
        _refuse_too_many(sum(map(len, series)), request.seconds, path.name)
        truth = contents.windows[0] if contents.windows and not contents.series_column else ()
        return Decoded(
            inputs=series,
            options=_for_series(wanted, series),
            context=FileContext(name=path.name, series_column=contents.series_column, notes=notes, truth=truth),
        )

    def encode(self, decoded: Decoded[Series], outputs: Sequence[Detection]) -> Response:
        """The events as result.json; all else is made of the scored rows when it is asked for."""
        context = decoded.context
        assert isinstance(context, FileContext)
        several = bool(context.series_column)
        if several:
            found = several_result(
                outputs,
                name=context.name,
                series_column=context.series_column,
                notes=context.notes,
                model=self.model,
            )
        else:
            (one,) = outputs
            found = result(one, model=self.model, notes=context.notes, truth=context.truth)
        if self.beside:
            found["series"]["columns"] = [found["series"]["column"]]  # the others are what the value is forecast from
        names = [PICTURE, "events.csv", "scores.csv", "series.json"]
        names += [ROWS] if has_rows_file(outputs, _most(outputs)) else []
        return Response(
            result=found,
            later=Later(
                files=dict.fromkeys(names, (SOURCE,)),
                sources={SOURCE: scored_rows(outputs, context.name, several=several)},
                inputs={COLUMNS: partial(whole_series, decoded.inputs)} if has_other_columns(decoded.inputs) else {},
            ),
        )

    def make(self, name: str, sources: Mapping[str, bytes]) -> bytes:
        """The picture, the events, what the viewer draws, the scores of all rows, or all rows for the viewer."""
        found, file, several = read_scored_rows(sources[SOURCE])
        if name == PICTURE:
            return draw_several(found, file) if several else draw(found[0])
        if name == "events.csv":
            return events_csv(found, several=several)
        if name == "series.json":
            return several_series_json(found) if several else series_json(found[0])
        if name == "scores.csv":
            return several_scores_csv(found) if several else scores_csv(found[0])
        return rows_file(found)


def _for_network(table: TableOptions, library: LibraryTFT, columns: str) -> TableOptions:
    """How a table is read for a network that was trained on one: with its covariates, and with its value."""
    value = library.columns[library.target]
    if columns.strip():
        raise _one_column_alone(value, library.covariates)
    return replace(table, value=table.value or value, covariates=library.covariates)


def _one_column_alone(value: str, beside: tuple[str, ...]) -> InvalidInputError:
    """What is said where all columns are asked for of a network that forecasts one of them, ``beside`` others."""
    others = f" from {', '.join(map(repr, beside))}" if beside else ""
    return InvalidInputError(
        f"the model forecasts {value!r}{others}; it cannot score all columns: leave out the option 'columns', or use a "
        "model that takes the value alone"
    )


def _most(outputs: Sequence[Detection]) -> int:
    """How many rows of each series are drawn before somebody looks closer."""
    return files.MAX_POINTS if len(outputs) == 1 else most_points(len(outputs))


def _only(files: tuple[Path, ...]) -> Path:
    if len(files) == 1 and files[0].is_dir():
        files = tuple(sorted(path for path in files[0].iterdir() if path.is_file()))
    if len(files) != 1:
        raise InvalidInputError(
            f"hand in one CSV, Parquet or Excel file, not {len(files)} files; several series go into one file, "
            "below each other, with a column 'ticker' that names them"
        )
    return files[0]


def _chosen(contents: Contents, wanted: str, name: str) -> Contents:
    if not wanted:
        return contents
    found = tuple(one for one in contents.series if one.name == wanted)
    if not found or not contents.series_column:
        names = [one.name for one in contents.series]
        there = ", ".join(names[:10]) if contents.series_column else "one alone, without a name"
        more = ", …" if len(names) > 10 else ""
        raise InvalidInputError(f"{name} has no series {wanted!r}; it has {there}{more}")
    return replace(contents, series=found, notes=(*contents.notes, f"series {wanted!r} alone was scored"))


def _with_other_columns(contents: Contents) -> Contents:
    """The same, with a note that more than the one column can be scored where there are more."""
    many = len(contents.series[0].values)
    if many < 2:
        return contents
    also = f"the option columns=all scores each of the {many} columns, and how they move together"
    return replace(contents, notes=(*contents.notes, also))


def _all_columns(contents: Contents, wanted: str, name: str) -> Contents:
    """Every column as a series of its own, and before them one in which all are scored together."""
    if not wanted:
        return contents
    if wanted != "all":
        raise InvalidInputError(f"columns is {wanted!r}; give 'all', or name the one column with the option 'value'")
    if len(contents.series) > 1:
        how = "columns are scored together in a file of one, or of the one that the option 'instrument' names"
        raise InvalidInputError(f"{name} holds several series; {how}")
    (one,) = contents.series
    if len(one.values) < 2:
        raise InvalidInputError(f"{name} has one column of numbers, {one.column!r}; two at least are scored together")
    parts = [
        replace(one, name=label, values={label: one.values[label]}, column=label, column_of_table=True)
        for label in one.values
    ]
    whole = (replace(one, name="all columns", joint=True), *parts)
    # All but that of the one column that was meant first.
    notes = tuple(note for note in contents.notes if not (note.startswith("column ") and "was scored" in note))
    return replace(contents, series=whole, series_column="column", notes=notes)


def _long_enough(contents: Contents, name: str) -> tuple[tuple[Series, ...], tuple[str, ...]]:
    """The series with enough values, and the file's notes; refuses a file without one."""
    observed = [int(np.isfinite(one.target).sum()) for one in contents.series]
    enough = tuple(one for one, count in zip(contents.series, observed, strict=True) if count >= MIN_ROWS)
    if not enough:
        column = contents.series[0].column
        most = max(observed)
        which = f"{most} values in column {column!r}"
        if len(observed) > 1:
            which = f"{len(observed)} series with at most {which}"
        raise InvalidInputError(
            f"{name} has {which}; scoring needs at least {MIN_ROWS}, and is better the more there are"
        )
    short = [one.name for one, count in zip(contents.series, observed, strict=True) if count < MIN_ROWS]
    if not short:
        return enough, contents.notes
    first = ", ".join(short[:5]) + (", …" if len(short) > 5 else "")
    note = f"{len(short)} series with fewer than {MIN_ROWS} values were left out ({first})"
    return enough, (*contents.notes, note)


def _ended(series: Sequence[Series]) -> tuple[str, ...]:
    """A note of the series that end while others go on, for more than twice as long as they have ever paused."""
    last = max(int(one.times_ns[-1]) for one in series)
    ended = [one for one in series if last - int(one.times_ns[-1]) > 2 * int(np.diff(one.times_ns).max())]
    if not ended:
        return ()
    which = ", ".join(f"{one.name!r} with {iso_utc(int(one.times_ns[-1]))}" for one in ended[:5])
    return (f"{len(ended)} series end while others go on to {iso_utc(last)}: {which}{', …' * (len(ended) > 5)}",)


def _refuse_too_many(rows: int, seconds: float | None, name: str) -> None:
    if rows > MAX_ROWS:
        raise InvalidInputError(f"{name} has {rows} rows; hand in at most {MAX_ROWS} at a time")
    if seconds is not None and rows > seconds * ROWS_PER_SECOND:
        raise InvalidInputError(
            f"{name} has {rows} rows, and in the {seconds:g} s that are waited for an answer "
            f"{seconds * ROWS_PER_SECOND:.0f} are scored; hand it in as a job (POST /api/finance/jobs), which takes "
            f"{MAX_ROWS} as the command line does, or hand in fewer: a shorter time, longer bars, fewer series",
            status=413,
        )


def read_options(options: Mapping[str, str]) -> tuple[TableOptions, Options]:
    """A request's options in their types, as far as they can be judged without its file; refuses unknown ones."""
    if unknown := sorted(options.keys() - set(_OPTIONS)):
        raise InvalidInputError(f"there is no option {unknown[0]!r}; there are {', '.join(_OPTIONS)}")
    return table_options(options), _wanted_events(options)


def _wanted_events(options: Mapping[str, str]) -> Options:
    """How many events are wanted."""
    by_day, by_rows = (_budget(name, options.get(name, "")) for name in ("events_per_day", "events_per_1000_rows"))
    return Options(
        threshold=_threshold(options.get("threshold", "")), events_per_day=by_day, events_per_1000_rows=by_rows
    )


def _for_series(wanted: Options, series: Sequence[Series]) -> Options:
    """The options; refuses more events than a series can be asked for."""
    if wanted.events_per_day is None and wanted.events_per_1000_rows is None:
        return wanted
    budget = Budget(per_day=wanted.events_per_day, per_1000_rows=wanted.events_per_1000_rows)
    most = max(budget.rate(one) for one in series)
    if most > MAX_EVENTS_PER_1000_ROWS * (1 + 1e-9):
        raise InvalidInputError(
            f"that is an event every {1000 / most:.3g} rows; ask for at most {MAX_EVENTS_PER_1000_ROWS:g} in 1,000"
        )
    return wanted


def _budget(name: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError as error:
        raise InvalidInputError(f"{name} is {text!r}, which is not a number; give one above 0, such as 0.5") from error


def _threshold(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError as error:
        raise InvalidInputError(
            f"the threshold {text!r} is not a number; give one above 0 and at most 1, such as 0.3"
        ) from error
