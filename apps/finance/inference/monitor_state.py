"""What must be kept of a series so that its next rows are scored as in the whole series, and how it is kept in a file.

All of it is numbers and names: a NumPy archive without pickles, with a text in JSON.
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

from apps.finance.inference.conformal import ControlState
from apps.finance.inference.detectors.detector import ALIGNED
from apps.finance.inference.gaps import Gap, Pauses
from apps.finance.types import DAY_NS, Floats, Series, Times
from shared.atomic_files import write_whole
from shared.errors import InvalidInputError

_DAYS, _MAX_ROWS = 15, 1_300_000
"""The same time one and two weeks before is looked up in so many days, if these are not more rows than this: as many
as rows by the second are."""
_MIN_REACH = 5 * ALIGNED
_FORMAT = 1


_Count = Annotated[int, Field(ge=0, lt=1 << 62)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _SeriesFacts:
    name: str
    column: str
    interval_ns: _Count
    joint: bool
    column_of_table: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """What the text of a state must hold, with its types."""

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


_FACTS = tuple(one.name for one in fields(_Facts))
_CARRIED_OVER = ("rate", "before", "due", "control_state", "pauses", "gaps", "told")
"""Those that are a ``SeriesState``'s by the same name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesState:
    """A series of which the last rows are held.

    ``series`` (H,) are those rows as they came, ``factor`` (H,) what corporate actions have made of its values.
    ``carried`` has what was computed of the last W of them, by name (W,). ``before`` rows were before those, ``due``
    events were due at the first of them. ``control_state`` is that of the threshold, which began for ``rate`` events a
    1,000 rows; ``pauses`` and ``gaps`` are what is known of gaps; ``told`` are the events that have been told, by kind
    and start.
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

    @property
    def rows(self) -> int:
        """W, the number of rows of which is held what was computed."""
        return len(next(iter(self.carried.values()), ()))


def last_rows(series: Series, first: int) -> Series:
    """The rows from ``first`` on."""
    values = {name: numbers[first:] for name, numbers in series.values.items()}
    return replace(series, times_ns=series.times_ns[first:], values=values)


def with_rows(series: Series, times_ns: Times, values: Mapping[str, Floats]) -> Series:
    """The series with further rows."""
    whole = {name: np.concatenate([numbers, values[name]]) for name, numbers in series.values.items()}
    return replace(series, times_ns=np.concatenate([series.times_ns, times_ns]), values=whole)


def shortened(state: SeriesState, due: Floats, memory: int) -> SeriesState:
    """The state without the rows that nothing asks for any more; ``due`` (W,) is from ``Budget.expected``.

    ``memory`` is that of the detectors' ``Ranking``. None looks at a row before these ``memory``, the 128 that are
    guarded, and those since it renewed what it knows of them, but for the same time on other days.
    """
    series, rows = state.series, state.rows
    reach = max(-(-(memory + 192 + ALIGNED) // ALIGNED) * ALIGNED, _MIN_REACH)
    drop = max(rows - reach, 0) // ALIGNED * ALIGNED
    front = len(series) - rows + drop
    old = int(np.searchsorted(series.times_ns, series.times_ns[-1] - _DAYS * DAY_NS))
    cut = min(max(old, len(series) - _MAX_ROWS, 0) // ALIGNED * ALIGNED, front)
    if not drop and not cut:
        return state
    gone = slice(front - drop, front)
    values = drop if series.joint else int(np.isfinite(series.target[gone]).sum())
    moved = (replace(gap, before=gap.before - drop, after=gap.after - drop) for gap in state.gaps)
    return replace(
        state,
        series=_copied(last_rows(series, cut)),
        factor=state.factor[cut:].copy(),
        carried={name: numbers[drop:].copy() for name, numbers in state.carried.items()},
        before=state.before + drop,
        due=float(due[drop]),
        pauses=replace(state.pauses, values_before=state.pauses.values_before + values),
        gaps=tuple(gap for gap in moved if gap.before >= 0),
    )


def _copied(series: Series) -> Series:
    values = {name: numbers.copy() for name, numbers in series.values.items()}
    return replace(series, times_ns=series.times_ns.copy(), values=values)


def write_state(path: Path, state: SeriesState, settings: Mapping[str, Any]) -> None:
    """Writes a state, and the ``settings`` in JSON types with which it goes on, in place of what was there."""
    series = state.series
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
    }
    arrays: dict[str, NDArray[Any]] = {"times": series.times_ns, "factor": state.factor}
    arrays |= {f"column{number}": numbers for number, numbers in enumerate(series.values.values())}
    arrays |= {f"carried{number}": numbers for number, numbers in enumerate(state.carried.values())}
    content = BytesIO()
    np.savez(content, allow_pickle=False, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    write_whole(path, content.getvalue())


def read_state(path: Path) -> tuple[SeriesState, dict[str, Any]]:
    """What ``write_state`` wrote: the state, and all that is there besides, as the settings."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if any(entry.compress_type for entry in archive.zip.infolist()):  # never by us: it could be any size
                raise ValueError
            found = json.loads(archive["facts"].tobytes())
            if found["format"] != _FORMAT:
                raise InvalidInputError(f"{path} is of another version; begin a monitor with the history instead")
            facts = TypeAdapter(_Facts).validate_python({name: found.pop(name) for name in _FACTS})
            columns = {name: archive[f"column{number}"] for number, name in enumerate(facts.columns)}
            carried = {name: archive[f"carried{number}"] for number, name in enumerate(facts.carried)}
            times, factor = archive["times"], archive["factor"]
        _must_fit(facts, times, [factor, *columns.values()], list(carried.values()))
        state = SeriesState(
            series=Series(times_ns=times, values=columns, **asdict(facts.series)),
            factor=factor,
            carried=carried,
            **{name: getattr(facts, name) for name in _CARRIED_OVER},
        )
    except InvalidInputError:
        raise
    except Exception as error:  # what numpy, zipfile and tokenize raise at a damaged file are a dozen kinds
        raise InvalidInputError(
            f"{path} is not there or is no whole state of a monitor; begin one with the history instead, one of "
            "model.read(FILE)"
        ) from error
    return state, found


def _must_fit(facts: _Facts, times: Times, held: list[NDArray[Any]], carried: list[NDArray[Any]]) -> None:
    """Raises ``ValueError`` where the arrays are not of one series."""
    rows = {numbers.shape for numbers in carried}
    if (
        facts.series.column not in facts.columns
        or times.dtype != np.int64
        or times.ndim != 1
        or not len(times)
        or (np.diff(times) <= 0).any()
        or any(numbers.shape != times.shape or numbers.dtype != np.float64 for numbers in held)
        or any(numbers.dtype.kind not in "bif" for numbers in carried)
        or len(rows) != 1
        or rows.pop() > times.shape
        or any(np.isinf(numbers).any() for numbers in held)
    ):
        raise ValueError("the arrays are not of one series")
