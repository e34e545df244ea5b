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

from apps.finance.adapters import SUFFIXES, read_contents
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
    """Series in files or in a database.

    ``path`` is a CSV, Parquet or Excel file, a pattern such as ``bars/*.parquet``, or a folder. ``url`` and ``query``
    are a database address as SQLAlchemy writes it (``postgresql+pg8000://...``) and a SELECT; $NAME in the address
    stands for an environment variable, and an address that contains a password is refused. ``time``, ``value``,
    ``series`` and ``labels`` name columns; ``labels`` marks anomalous rows. ``zone``, ``decimal`` and ``unit`` say how
    times and numbers are written, as for ``trivium predict``. Whatever is not named is guessed, and the facts show the
    guess. Series with the same name in several files are merged. A file with one unnamed series is a series of its own,
    unless ``series`` names a part of its path (``symbol=AAPL/part-0.parquet``).

    ``known`` and ``observed`` are further columns that the network takes, separated by spaces or commas: ``known`` ones
    are given for the rows to be forecast, ``observed`` ones only until then. Numbers are scaled by the training rows;
    each word is embedded. ``groups`` says whether the series' names are embedded as well; the default is yes if there
    are covariates and several series.

    The last ``validation_share`` of each series is for validation. ``stride`` is the number of rows between training
    windows. ``false_events_per_1000_rows`` is the budget at which a calibration sets the threshold.
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
            columns = (column.strip() for text in getattr(self, name) for column in text.split(","))
            object.__setattr__(self, name, tuple(column for column in columns if column))
        covariates = [*self.known, *self.observed]
        if duplicate := next((column for column in covariates if covariates.count(column) > 1), None):
            raise InvalidInputError(
                f"the covariate {duplicate!r} is named twice; a column is either known ahead of time (data.known) or "
                "observed only until now (data.observed)"
            )
        if not 0 < self.validation_share < 1:
            raise InvalidInputError(f"data.validation_share is {self.validation_share}; it must be between 0 and 1")
        if self.stride < 1 or self.false_events_per_1000_rows < 0:
            raise InvalidInputError("data.stride must be at least 1 and data.false_events_per_1000_rows at least 0")

    def fit_input(self, input: FinanceInput) -> FinanceInput:
        """``input`` with a pytorch-forecasting network over the covariates, fitted on the training rows.

        Unchanged if no covariates are named and no series names are to be embedded, and for an imported network. A
        network that is trained further keeps its settings.
        """
        if input.library is not None and input.library.further:
            return further_network(self.cases(), input, self.validation_share)
        if not (self.known or self.observed or self.groups):
            return input
        if input.library is not None and not input.library.trained_here:
            return input
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
        """The facts printed before training: counts, times, missing values, and what had to be guessed."""
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
        """The series with their labelled windows."""
        return list(_read(self)[0])

    def every_series(self) -> list[LabelledSeries]:
        """The same, and those that are too short to be scored: scalers of another library were fitted on them too."""
        return list(_read_all(self)[0])

    def normal(self) -> list[LabelledSeries]:
        """The series; most rows are assumed to be normal."""
        return self.cases()

    def labelled(self) -> list[LabelledSeries]:
        """Nothing: ``normal`` already has the labels."""
        return []

    def options(self) -> TableOptions:
        """The options with which the table is read."""
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
        """The file's or folder's name. A database address is not shown, because it may contain a password."""
        return Path(self.path).name if self.path else "a database"


TableContents = tuple[tuple[LabelledSeries, ...], tuple[str, ...]]


def _read(table: Table) -> TableContents:
    """The series of a table, with those of the same name merged, and the notes about its files."""
    items, notes = _read_all(table)
    enough = tuple(item for item in items if int(np.isfinite(item.series.target).sum()) >= MIN_ROWS)
    if not enough:
        max_values = max(int(np.isfinite(item.series.target).sum()) for item in items)
        raise InvalidInputError(
            f"{table._source()} has {len(items)} series with at most {max_values} values; at least {MIN_ROWS} are "
            "needed"
        )
    if len(enough) < len(items):
        short = len(items) - len(enough)
        are = "are" if short > 1 else "is"
        notes = (*notes, f"{short} series with fewer than {MIN_ROWS} values {are} left out")
    return enough, notes


def _read_all(table: Table) -> TableContents:
    """The same with all series, however short."""
    if (table.path is None) == (table.query is None):
        raise InvalidInputError("name the table with --data.path FILE, or with --data.url and --data.query")
    files = _files(table.path) if table.path is not None else []
    return _read_once(table, tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=2)
def _read_once(table: Table, files: tuple[tuple[Path, int, int], ...]) -> TableContents:
    """Reads unchanged files only once, and runs a query only once, so that all splits see the same rows."""
    contents = {name: content for path, _, _ in files for name, content in [_read_file(table, path)]} or _run_query(
        table
    )
    parts: dict[str, list[LabelledSeries]] = {}
    for content in contents.values():
        windows = content.windows or ((),) * len(content.series)
        for series, labelled in zip(content.series, windows, strict=True):
            parts.setdefault(series.name, []).append(LabelledSeries(series=series, windows=labelled))
    items = tuple(_merge(same_name) for same_name in parts.values())
    several = len(contents) > 1
    notes = [f"{name}: {note}" if several else note for name, content in contents.items() for note in content.notes]
    return items, tuple(notes)


def _files(path: str) -> list[Path]:
    root = Path(path)
    candidates: Iterable[Path] = [root]
    if root.is_dir():
        visible = (file for file in root.rglob("*") if not any(part[0] == "." for part in file.relative_to(root).parts))
        candidates = (file for file in visible if file.suffix.lower() in SUFFIXES.keys() - {""})
    elif not root.exists():
        candidates = Path(root.anchor or ".").glob(str(root.relative_to(root.anchor)))
    files = sorted(file for file in candidates if file.is_file())
    if not files:
        raise InvalidInputError(
            f"{path} is neither a file, nor a folder with CSV, Parquet or Excel files, nor a pattern that matches one"
        )
    return files


def _read_file(table: Table, path: Path) -> tuple[str, Contents]:
    """A file's name relative to the folder or to the fixed part of the pattern, and its contents.

    A single unnamed series is named after the file, or after the part of the path that ``series`` names:
    ``symbol=AAPL/0.parquet``.
    """
    fixed = itertools.takewhile(lambda part: not re.search(r"[*?\[]", part), Path(table.path or "").parts)
    root = Path(*fixed)
    name = path.name if path == root else path.relative_to(root).as_posix()
    partitions = dict(part.split("=", 1) for part in path.parts[:-1] if "=" in part)
    in_path = table.series in partitions
    contents = read_contents(path, replace(table.options(), series=None) if in_path else table.options())
    if not contents.series_column:
        series_name = partitions[str(table.series)] if in_path else name
        contents = replace(contents, series=tuple(replace(series, name=series_name) for series in contents.series))
    return name, contents


def _run_query(table: Table) -> dict[str, Contents]:
    from apps.finance.adapters.table import to_contents

    if table.url is None or table.query is None:
        raise InvalidInputError("a query needs its database: give --data.url, such as sqlite:///prices.db")
    return {"query": to_contents(read_query(table.url, table.query), "query", table.options())}


def _merge_covariates(
    parts: Sequence[Series], kept: np.ndarray, values: dict[str, Floats]
) -> tuple[dict[str, Floats], dict[str, Words]]:
    """The merged columns of the parts of a series. A text column that has an entry in any part becomes a text column;
    one without any entry counts as missing numbers."""
    words: dict[str, Words] = {}
    for name in dict.fromkeys(name for part in parts for name in part.words):
        columns = [number_column(part, name) for part in parts]
        if any(numbers is None for numbers in columns):
            words[name] = np.concatenate([word_column(part, name) for part in parts])[kept]
        else:
            values[name] = np.concatenate([numbers for numbers in columns if numbers is not None])[kept]
    return values, words


def _bytes_of(series: Series, name: str) -> bytes:
    """A covariate's content as bytes, for a checksum."""
    return series.values[name].tobytes() if name in series.values else "\0".join(series.words[name]).encode()


def _merge(parts: list[LabelledSeries]) -> LabelledSeries:
    """The parts of one series merged in time order; of rows with the same time the last is kept."""
    if len(parts) == 1:
        return parts[0]
    times = np.concatenate([part.series.times_ns for part in parts])
    order = np.argsort(times, kind="stable")
    kept = order[np.append(np.diff(times[order]) != 0, True)]
    first: Series = parts[0].series
    labels = [label for label in first.values if all(label in part.series.values for part in parts)]
    values = {label: np.concatenate([part.series.values[label] for part in parts])[kept] for label in labels}
    values, words = _merge_covariates([part.series for part in parts], kept, values)
    if first.column not in labels:
        raise InvalidInputError(
            f"the files of series {first.name!r} have no value column of the same name; name it with --data.value"
        )
    series = replace(
        first,
        times_ns=times[kept],
        values=values,
        words=words,
        interval_ns=usual_interval_ns(times[kept]),
    )
    windows = sorted((window for part in parts for window in part.windows), key=lambda window: window.start_ns)
    return LabelledSeries(series=series, windows=tuple(windows))
