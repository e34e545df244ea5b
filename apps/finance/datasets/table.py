"""The user's own table as a data set: CSV, Parquet or Excel files, a folder of them, or the rows of a SQL query."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.finance.adapters import ENDINGS, read_contents
from apps.finance.adapters.options import TableOptions
from apps.finance.datasets.columns import number_column, word_column
from apps.finance.datasets.covariates import covariate_facts, fit_network, further_network
from apps.finance.datasets.database import read_query, refuse_password
from apps.finance.datasets.splits import MIN_ROWS, series_facts, training_windows, validation_windows
from apps.finance.types import FinanceInput, Floats, LabelledSeries, Series, Words, usual_interval_ns
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.finance.adapters.table import Contents
    from shared.data.dataset import Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Series in files or in a data base.

    ``path`` is a CSV, Parquet or Excel file, a pattern such as ``bars/*.parquet``, or a folder; ``url`` and ``query``
    are a data base as SQLAlchemy names it (``postgresql+pg8000://...``) and a SELECT. $NAME in the address stands for a
    variable of the environment; an address with a password in it is refused. ``time``, ``value``, ``series`` and
    ``labels`` name columns, the last one that marks anomalous rows; ``zone``, ``decimal`` and ``unit`` say how times
    and numbers are written, as for ``trivium predict``. What is not named is guessed, and the facts show the guess.
    Rows of series with the same name in several files are put together; a file of one series without a name is a series
    of its own, unless ``series`` names a part of its path (``symbol=AAPL/part-0.parquet``).

    ``known`` and ``observed`` are further columns that the network takes, parted by spaces or commas: those that are
    given for the rows that are forecast, and those that are seen only until then. Numbers are scaled by what the rows
    that train hold; each word is embedded. ``groups`` says whether the name of a series is embedded as well: by default
    where there are covariates and several series.

    The last ``validation_share`` of each series validates. ``stride`` is the number of rows between training windows.
    ``false_events_per_1000_rows`` is the budget at which a calibration sets the threshold.
    """

    path: str | None = None
    url: str | None = None
    query: str | None = None
    time: str | None = None
    value: str | None = None
    series: str | None = None
    labels: str | None = None
    known: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    groups: bool | None = None
    zone: str | None = None
    decimal: str | None = None
    unit: str | None = None
    validation_share: float = 0.2
    stride: int = 8
    false_events_per_1000_rows: float = 0.6

    def __post_init__(self) -> None:
        if self.url is not None:
            refuse_password(self.url)
        for name in ("known", "observed"):
            split = (one.strip() for text in getattr(self, name) for one in text.split(","))
            object.__setattr__(self, name, tuple(one for one in split if one))
        named = [*self.known, *self.observed]
        if again := next((one for one in named if named.count(one) > 1), None):
            raise InvalidInputError(
                f"the covariate {again!r} is named twice; a column is either known ahead of time (data.known) or seen "
                "only until now (data.observed)"
            )
        if not 0 < self.validation_share < 1:
            raise InvalidInputError(f"data.validation_share is {self.validation_share}; it must be between 0 and 1")
        if self.stride < 1 or self.false_events_per_1000_rows < 0:
            raise InvalidInputError("data.stride must be at least 1 and data.false_events_per_1000_rows at least 0")

    def fit_input(self, input: FinanceInput) -> FinanceInput:
        """The input with a network of the library over the covariates, fitted on the rows that train.

        As it is where no covariates are named, and no names of series to be embedded; of a network that is trained
        further its own.
        """
        if input.library is not None and input.library.further:
            return further_network(self.cases(), input, self.validation_share)
        if not (self.known or self.observed or self.groups):
            return input
        if input.library is not None and not input.library.trained_here:
            raise InvalidInputError(
                "the imported network has covariates of its own; leave out data.known, data.observed and data.groups"
            )
        return fit_network(
            self.cases(),
            input,
            known=self.known,
            observed=self.observed,
            groups=self.groups,
            validation_share=self.validation_share,
        )

    def with_covariates(self, names: Sequence[str]) -> Table:
        """The same series, read with these columns of the table as covariates."""
        return replace(self, known=(), observed=tuple(names))

    def train(self, input: FinanceInput) -> Dataset:
        return training_windows(self.cases(), input, validation_share=self.validation_share, stride=self.stride)

    def validation(self, input: FinanceInput) -> Dataset:
        return validation_windows(self.cases(), input, validation_share=self.validation_share)

    def facts(self, input: FinanceInput) -> Mapping[str, Any]:
        """What is printed before training: counts, times, what is missing, what had to be guessed."""
        items, notes = _read(self)
        facts = series_facts(items, input, validation_share=self.validation_share)
        facts = {**facts, **covariate_facts(input)}
        return {**facts, **({"notes": "; ".join(notes[:10])} if notes else {})}

    def fingerprint(self) -> dict[str, Any]:
        items, _ = _read(self)
        content = hashlib.sha256()
        for item in items:
            content.update(item.series.name.encode() + item.series.times_ns.tobytes() + item.series.target.tobytes())
            for name in (*self.known, *self.observed):
                content.update(_bytes_of(item.series, name))
        rows = sum(len(item.series) for item in items)
        return {
            "description": f"{len(items)} series of {rows} rows from {self._source()}",
            "synthetic": False,
            "series": len(items),
            "rows": rows,
            "sha256": content.hexdigest(),
        }

    def cases(self) -> list[LabelledSeries]:
        """The series with what is labelled in them."""
        return list(_read(self)[0])

    def normal(self) -> list[LabelledSeries]:
        """The series, of which most rows are taken to be normal."""
        return self.cases()

    def labelled(self) -> list[LabelledSeries]:
        """Nothing besides ``normal``, which has its labels."""
        return []

    def options(self) -> TableOptions:
        """How the table is read."""
        return TableOptions(
            time=self.time,
            value=self.value,
            series=self.series,
            zone=self.zone,
            decimal=self.decimal,
            unit=self.unit,
            labels=self.labels,
            covariates=(*self.known, *self.observed),
        )

    def _source(self) -> str:
        """The file's or the folder's name; an address of a data base may hold a password and is not told."""
        return Path(self.path).name if self.path else "a data base"


Read = tuple[tuple[LabelledSeries, ...], tuple[str, ...]]


def _read(table: Table) -> Read:
    """The series of a table, those of one name put together, and the notes of its files."""
    if (table.path is None) == (table.query is None):
        raise InvalidInputError("name the table with --data.path FILE, or with --data.url and --data.query")
    files = _files(table.path) if table.path is not None else []
    return _read_once(table, tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=2)
def _read_once(table: Table, files: tuple[tuple[Path, int, int], ...]) -> Read:
    """Reads files that have not changed only once; a query is asked once, so that all splits see the same rows."""
    contents = {name: found for path, _, _ in files for name, found in [_file(table, path)]} or _query(table)
    parts: dict[str, list[LabelledSeries]] = {}
    for found in contents.values():
        windows = found.windows or ((),) * len(found.series)
        for one, labelled in zip(found.series, windows, strict=True):
            parts.setdefault(one.name, []).append(LabelledSeries(series=one, windows=labelled))
    items = [_together(same) for same in parts.values()]
    enough = tuple(item for item in items if int(np.isfinite(item.series.target).sum()) >= MIN_ROWS)
    if not enough:
        most = max(int(np.isfinite(item.series.target).sum()) for item in items)
        raise InvalidInputError(
            f"{table._source()} has {len(items)} series with at most {most} values; {MIN_ROWS} are needed"
        )
    several = len(contents) > 1
    notes = [f"{name}: {note}" if several else note for name, found in contents.items() for note in found.notes]
    if len(enough) < len(items):
        notes.append(f"{len(items) - len(enough)} series with fewer than {MIN_ROWS} values are left out")
    return enough, tuple(notes)


def _files(path: str) -> list[Path]:
    there = Path(path)
    found: Iterable[Path] = [there]
    if there.is_dir():
        shown = (one for one in there.rglob("*") if not any(part[0] == "." for part in one.relative_to(there).parts))
        found = (one for one in shown if one.suffix.lower() in ENDINGS.keys() - {""})
    elif not there.exists():
        found = Path(there.anchor or ".").glob(str(there.relative_to(there.anchor)))
    files = sorted(one for one in found if one.is_file())
    if not files:
        raise InvalidInputError(
            f"{path} is no file, no folder with CSV, Parquet or Excel files, and no pattern that fits one"
        )
    return files


def _file(table: Table, path: Path) -> tuple[str, Contents]:
    """A file's name below the folder or the fixed part of the pattern, and its series.

    One series without a name has the file's, or that in the path which ``series`` names: ``symbol=AAPL/0.parquet``.
    """
    fixed = itertools.takewhile(lambda part: not re.search(r"[*?\[]", part), Path(table.path or "").parts)
    root = Path(*fixed)
    name = path.name if path == root else path.relative_to(root).as_posix()
    named = dict(part.split("=", 1) for part in path.parts[:-1] if "=" in part)
    inside = table.series in named
    contents = read_contents(path, replace(table.options(), series=None) if inside else table.options())
    if not contents.series_column:
        series = named[str(table.series)] if inside else name
        contents = replace(contents, series=tuple(replace(one, name=series) for one in contents.series))
    return name, contents


def _query(table: Table) -> dict[str, Contents]:
    from apps.finance.adapters.table import to_contents

    if table.url is None or table.query is None:
        raise InvalidInputError("a query needs its data base: --data.url such as sqlite:///prices.db")
    return {"query": to_contents(read_query(table.url, table.query), "query", table.options())}


def _covariates_together(
    parts: Sequence[Series], kept: np.ndarray, values: dict[str, Floats]
) -> tuple[dict[str, Floats], dict[str, Words]]:
    """The columns of parts of a series; those of words in some are of words, and numbers where these have no entry."""
    words: dict[str, Words] = {}
    for name in dict.fromkeys(name for one in parts for name in one.words):
        numbers = [number_column(one, name) for one in parts]
        if any(one is None for one in numbers):
            words[name] = np.concatenate([word_column(one, name) for one in parts])[kept]
        else:
            values[name] = np.concatenate([one for one in numbers if one is not None])[kept]
    return values, words


def _bytes_of(series: Series, name: str) -> bytes:
    """A covariate's content, for a digest."""
    return series.values[name].tobytes() if name in series.values else "\0".join(series.words[name]).encode()


def _together(parts: list[LabelledSeries]) -> LabelledSeries:
    """Parts of one series as one, in the order of time; of rows with the same time the last is kept."""
    if len(parts) == 1:
        return parts[0]
    times = np.concatenate([part.series.times_ns for part in parts])
    order = np.argsort(times, kind="stable")
    kept = order[np.append(np.diff(times[order]) != 0, True)]
    first: Series = parts[0].series
    labels = [one for one in first.values if all(one in part.series.values for part in parts)]
    values = {one: np.concatenate([part.series.values[one] for part in parts])[kept] for one in labels}
    values, words = _covariates_together([part.series for part in parts], kept, values)
    if first.column not in labels:
        raise InvalidInputError(
            f"the files of series {first.name!r} have no column of the same name as value; name it with --data.value"
        )
    series = replace(
        first,
        times_ns=times[kept],
        values=values,
        words=words,
        interval_ns=usual_interval_ns(times[kept]),
    )
    windows = sorted((one for part in parts for one in part.windows), key=lambda one: one.start_ns)
    return LabelledSeries(series=series, windows=tuple(windows))
