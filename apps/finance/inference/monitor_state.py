"""A monitor's state: what its next rows need to be scored as in the whole series, and how it is stored in a file.

The file is a NumPy archive of numbers without pickles, with names, words and settings as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from apps.finance.datasets.windows import last_values
from apps.finance.inference.conformal import ControlState
from apps.finance.inference.detectors.detector import ALIGNMENT
from apps.finance.inference.gaps import Gap, Pauses
from apps.finance.types import DAY_NS, Floats, Series, Times, Words
from shared.atomic_files import write_whole
from shared.errors import InvalidInputError

_DAYS, _MAX_ROWS = 15, 1_300_000
"""The number of days kept for looking up the same time one and two weeks before, and the maximum number of rows for
that: 15 days of one row per second."""
_MIN_ROWS = 5 * ALIGNMENT
_FORMAT, _FORMER = 2, 1
"""The format that is written, and the former one that is read too: it has no ``vocabulary`` and no ``earlier``."""


_Count = Annotated[int, Field(ge=0, lt=1 << 62)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Unit = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _SeriesFacts:
    name: str
    column: str
    interval_ns: _Count
    joint: bool
    column_of_table: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """The content and types of the JSON text of a state."""

    format: int
    series: _SeriesFacts
    columns: list[str]
    carried: list[str]
    rate: _Number
    before: _Count
    due: _Number
    control_state: ControlState | None
    pauses: Pauses
    gaps: tuple[Gap, ...]
    told: frozenset[tuple[str, int]]
    vocabulary: dict[str, list[str]] = field(default_factory=dict)
    earlier: dict[str, _Number] = field(default_factory=dict)
    unit: _Unit | None = 1.0


_FACTS = tuple(entry.name for entry in fields(_Facts))
_SHARED_FIELDS = ("rate", "before", "due", "control_state", "pauses", "gaps", "told", "earlier", "unit")
"""The fields that ``SeriesState`` has by the same name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesState:
    """A series of which only the last rows are held.

    ``series`` (H,) holds those rows as they arrived, ``factor`` (H,) the cumulative effect of corporate actions on its
    values. ``carried`` has the results for the last W of them, by name (W,). ``before`` is the number of rows before
    those W, ``due`` the number of events due at the first of them. ``control_state`` is the state of the threshold,
    which started for ``rate`` events per 1,000 rows. ``pauses`` and ``gaps`` are the state of gap detection. ``told``
    are the events that have been reported, by kind and start. ``earlier`` has by column the last value of the rows that
    are no longer held. ``unit`` is that of ``scoring.unit_of``; a file without it is of a version that had none.
    """

    series: Series
    factor: Floats
    rate: float
    carried: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    before: int = 0
    due: float = 0.0
    control_state: ControlState | None = None
    pauses: Pauses = field(default_factory=Pauses)
    gaps: tuple[Gap, ...] = ()
    told: frozenset[tuple[str, int]] = frozenset()
    earlier: Mapping[str, float] = field(default_factory=dict)
    unit: float | None = None

    @property
    def rows(self) -> int:
        """W, the number of rows with carried results."""
        return len(next(iter(self.carried.values()), ()))


def append_rows(series: Series, times_ns: Times, columns: Mapping[str, Floats | Words]) -> Series:
    """The series extended by further rows; ``columns`` has each column of numbers and of words."""
    values = {name: np.concatenate([numbers, columns[name]]) for name, numbers in series.values.items()}
    words = {name: np.concatenate([cells, columns[name]]) for name, cells in series.words.items()}
    return replace(series, times_ns=np.concatenate([series.times_ns, times_ns]), values=values, words=words)


def drop_old_rows(state: SeriesState, due: Floats, memory: int) -> SeriesState:
    """The state without the rows that are no longer needed; ``due`` (W,) is from ``Budget.expected``.

    ``memory`` is that of the detectors' ``Ranking``. Detectors need these rows, the 128 guard rows, and the rows since
    their last update; only the lookup of the same time on other days reaches further back.
    """
    series, rows = state.series, state.rows
    needed = max(-(-(memory + 192 + ALIGNMENT) // ALIGNMENT) * ALIGNMENT, _MIN_ROWS)
    dropped = max(rows - needed, 0) // ALIGNMENT * ALIGNMENT
    first_kept = len(series) - rows + dropped
    first_recent = int(np.searchsorted(series.times_ns, series.times_ns[-1] - _DAYS * DAY_NS))
    cut = min(max(first_recent, len(series) - _MAX_ROWS, 0) // ALIGNMENT * ALIGNMENT, first_kept)
    if not dropped and not cut:
        return state
    dropped_rows = slice(first_kept - dropped, first_kept)
    dropped_values = dropped if series.joint else int(np.isfinite(series.target[dropped_rows]).sum())
    moved = (replace(gap, before=gap.before - dropped, after=gap.after - dropped) for gap in state.gaps)
    return replace(
        state,
        series=_copy(series.from_row(cut)),
        factor=state.factor[cut:].copy(),
        carried={name: numbers[dropped:].copy() for name, numbers in state.carried.items()},
        before=state.before + dropped,
        due=float(due[dropped]),
        pauses=replace(state.pauses, values_before=state.pauses.values_before + dropped_values),
        gaps=tuple(gap for gap in moved if gap.before >= 0),
        earlier={**state.earlier, **last_values(series, cut)},
    )


def _copy(series: Series) -> Series:
    values = {name: numbers.copy() for name, numbers in series.values.items()}
    words = {name: cells.copy() for name, cells in series.words.items()}
    return replace(series, times_ns=series.times_ns.copy(), values=values, words=words)


def write_state(path: Path, state: SeriesState, settings: Mapping[str, Any]) -> None:
    """Writes a state, and the monitor's ``settings`` in JSON types, replacing an existing file."""
    series = state.series
    vocabulary, codes = {}, []
    for name, cells in series.words.items():
        code_by_word = {word: code for code, word in enumerate(dict.fromkeys(cells.tolist()))}
        vocabulary[name] = [*code_by_word]
        codes.append(np.array([code_by_word[word] for word in cells.tolist()], np.int32))
    facts = {
        "format": _FORMAT,
        **settings,
        "series": {
            name: getattr(series, name) for name in ("name", "column", "interval_ns", "joint", "column_of_table")
        },
        "columns": list(series.values),
        "carried": list(state.carried),
        "rate": state.rate,
        "before": state.before,
        "due": state.due,
        "control_state": None if state.control_state is None else asdict(state.control_state),
        "pauses": asdict(state.pauses),
        "gaps": [asdict(gap) for gap in state.gaps],
        "told": sorted(state.told),
        "vocabulary": vocabulary,
        "earlier": state.earlier,
        "unit": state.unit,
    }
    arrays: dict[str, NDArray[Any]] = {"times": series.times_ns, "factor": state.factor}
    arrays |= {f"column{number}": numbers for number, numbers in enumerate(series.values.values())}
    arrays |= {f"carried{number}": numbers for number, numbers in enumerate(state.carried.values())}
    arrays |= {f"words{number}": column for number, column in enumerate(codes)}
    content = BytesIO()
    np.savez(content, allow_pickle=False, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    write_whole(path, content.getvalue())


def read_state(path: Path) -> tuple[SeriesState, dict[str, Any]]:
    """The state that ``write_state`` wrote, and the remaining entries as the settings.

    Raises InvalidInputError if the file is missing, damaged or of another version.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if any(
                entry.compress_type for entry in archive.zip.infolist()
            ):  # we never compress; it could be a zip bomb
                raise ValueError
            document = json.loads(archive["facts"].tobytes())
            if document["format"] not in (_FORMAT, _FORMER):
                raise InvalidInputError(
                    f"{path} has the format of another version; start a monitor from the history instead"
                )
            facts = TypeAdapter(_Facts).validate_python(
                {name: document.pop(name) for name in _FACTS if name in document}
            )
            columns = {name: archive[f"column{number}"] for number, name in enumerate(facts.columns)}
            carried = {name: archive[f"carried{number}"] for number, name in enumerate(facts.carried)}
            codes = {name: archive[f"words{number}"] for number, name in enumerate(facts.vocabulary)}
            times, factor = archive["times"], archive["factor"]
        _check_arrays(facts, times, [factor, *columns.values()], list(carried.values()))
        words = {name: _words(codes[name], facts.vocabulary[name], times) for name in codes}
        state = SeriesState(
            series=Series(times_ns=times, values=columns, words=words, **asdict(facts.series)),
            factor=factor,
            carried=carried,
            **{name: getattr(facts, name) for name in _SHARED_FIELDS},
        )
    except InvalidInputError:
        raise
    except Exception as error:  # numpy, zipfile and tokenize raise a dozen kinds of error for damaged files
        raise InvalidInputError(
            f"{path} is missing or is not a complete state of a monitor; start a monitor from the history instead, "
            "one series of model.read(FILE)"
        ) from error
    return state, document


def _check_arrays(facts: _Facts, times: Times, columns: list[NDArray[Any]], carried: list[NDArray[Any]]) -> None:
    """Raises ``ValueError`` if the arrays do not belong to one series."""
    rows = {numbers.shape for numbers in carried}
    if (
        facts.series.column not in facts.columns
        or not facts.earlier.keys() <= {*facts.columns}
        or times.dtype != np.int64
        or times.ndim != 1
        or not len(times)
        or (np.diff(times) <= 0).any()
        or any(numbers.shape != times.shape or numbers.dtype != np.float64 for numbers in columns)
        or any(numbers.dtype.kind not in "bif" for numbers in carried)
        or len(rows) != 1
        or rows.pop() > times.shape
        or any(np.isinf(numbers).any() for numbers in columns)
    ):
        raise ValueError("the arrays are not of one series")


def _words(codes: NDArray[Any], vocabulary: list[str], times: Times) -> Words:
    """(N,) the words with these codes. Raises ``ValueError`` or ``IndexError`` for codes that are not of this
    series."""
    if codes.shape != times.shape or codes.dtype != np.int32 or codes.min() < 0:
        raise ValueError("the words are not of one series")
    words: Words = np.array(vocabulary, dtype=object)[codes]
    return words
