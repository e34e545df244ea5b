"""The canonical data types of the finance application: a series, and the anomalies found in it or labelled in it.

Times are UTC nanoseconds since 1970 (int64). Values are float64. A missing value is NaN, and NaN always means missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.recipe import InputSpec

Times: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Words: TypeAlias = NDArray[np.object_]
"""(N,) texts; an empty text where there is none."""
Direction: TypeAlias = Literal["above", "below", "inside"]
"""Where the observed value lies relative to the expected band; ``inside`` is an anomaly of behaviour, not of level."""

TRUTH = "synthetic_truth"
"""The column of a synthetic series' file that holds the ground truth: the kind of anomaly of each row."""
SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
WEEK_NS = 7 * DAY_NS
QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""Levels of the quantiles that our networks forecast: pytorch-forecasting's defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryTFT:
    """What a pytorch-forecasting network takes, in plain values: from its checkpoint, or from the table that trains it.

    ``network`` holds the constructor's arguments and ``target`` the column that is forecast. ``normalizer`` says how
    the target is scaled: by each series' ``target_scales`` (center and scale by name; unknown series use the entry
    under the empty name), by each window's own context, or by the mean of the context and the series' scale (unknown
    series use the context's scale). ``transformation`` is applied before that. ``scalers`` are the mean and deviation
    of the other real covariates, ``categories`` the codes of the categorical ones.

    If the network is trained here (``trained_here``), ``columns`` maps each covariate's name in the network, which
    cannot be an arbitrary text, to the column of the table; ``known`` are the covariates that are given for the rows to
    be forecast; and code 0 in ``categories`` stands for words that no training row has. The size of such a network
    comes from the model's settings, and its loss is measured in each series' own deviations; the loss of an imported
    checkpoint is in the units of the series, as in its library. If ``further``, training continues from a network of
    another table and keeps its scalers, words and series names. ``unknown_words`` names the categories of an imported
    network whose encoder has code 0 for missing and unknown words.
    """

    network: Mapping[str, Any]
    target: str
    time_idx: str
    group: str
    quantiles: tuple[float, ...]
    normalizer: Literal["series", "window", "context"] = "series"
    method: str = "standard"
    center: bool = True
    transformation: str | None = None
    target_scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    scalers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    categories: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    trained_here: bool = False
    further: bool = False
    unknown_words: tuple[str, ...] = ()

    @property
    def covariates(self) -> tuple[str, ...]:
        """The table's columns that a network trained here takes in addition to the value."""
        return tuple(column for name, column in self.columns.items() if name not in (self.target, self.group))


@dataclass(frozen=True, kw_only=True, slots=True)
class FinanceInput(InputSpec):
    """What model, data and inference agree on: the network sees ``context`` rows and forecasts ``horizon`` rows.

    ``library`` describes the inputs of a pytorch-forecasting network, which replace our own covariates.
    """

    context: int = 64
    horizon: int = 8
    library: LibraryTFT | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A time series of one or more columns.

    ``times_ns`` (N,) is strictly increasing; ``values`` maps column names to (N,). ``interval_ns`` is the median time
    between rows; rows may be irregular. ``column`` is the column that is scored; if ``joint``, all columns are scored
    by how they move together. ``column_of_table`` marks a column that is also scored jointly with the others, where
    gaps between rows are reported. ``notes`` say what the reader had to do (rows sorted, duplicates dropped). ``words``
    holds the text columns that a network takes as covariates.
    """

    name: str
    times_ns: Times
    values: Mapping[str, Floats]
    column: str
    interval_ns: int
    notes: tuple[str, ...] = ()
    joint: bool = False
    column_of_table: bool = False
    words: Mapping[str, Words] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.times_ns)

    @property
    def target(self) -> Floats:
        """(N,) the column that is scored."""
        return self.values[self.column]

    def from_row(self, first: int, end: int | None = None) -> Series:
        """The rows from ``first`` on, before ``end``."""
        values = {name: numbers[first:end] for name, numbers in self.values.items()}
        words = {name: cells[first:end] for name, cells in self.words.items()}
        return replace(self, times_ns=self.times_ns[first:end], values=values, words=words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Anomaly:
    """An event found in a series.

    It lasts from ``start_ns`` to ``end_ns`` (both rows of the series, inclusive) and is strongest at ``peak_ns``.
    ``score`` in [0, 1] is the score of ``scoring.combine``. ``observed`` is the value at the peak, ``expected`` the
    median of the forecast there, and ``low`` and ``high`` the forecast band. ``channel`` says what is unusual: the
    channel of a detector in ``apps.finance.inference.detectors``, ``gap`` or ``corporate_action``. ``columns`` names
    the columns that contribute to a joint score. ``note`` has further facts, such as the length of a gap or the ratio
    of a split. ``since_ns`` is the time of a row before ``start_ns``, if the level is unusual: an estimate of when it
    left its former median. ``reason`` says in words why this is an event; ``size`` is its size in the unit of the
    values, ``deviations`` the same in robust deviations (see ``inference/magnitude.py``).
    """

    start_ns: int
    end_ns: int
    peak_ns: int
    score: float
    observed: float
    expected: float
    low: float
    high: float
    direction: Direction
    channel: str
    columns: tuple[str, ...] = ()
    note: str = ""
    since_ns: int | None = None
    size: float | None = None
    deviations: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A labelled anomalous period from ``start_ns`` to ``end_ns``, inclusive. ``kind`` is its cause, if known."""

    start_ns: int
    end_ns: int
    kind: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSeries:
    """A series and its labelled anomalies."""

    series: Series
    windows: tuple[Window, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What was expected at each row, from earlier rows alone; NaN where there is too little history.

    ``quantiles`` (N, Q) are in the units of the series and increase along Q. ``surprise`` (N, K) is the standard normal
    score of the observed value in K forecasts of it, the latest forecast first.
    """

    levels: tuple[float, ...]
    quantiles: Floats
    surprise: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """A scored series: its forecast, a score in [0, 1] and a threshold for each row (N,), and its events."""

    series: Series
    forecast: Forecast
    scores: Floats
    thresholds: Floats
    anomalies: tuple[Anomaly, ...]

    @property
    def threshold(self) -> float:
        """The threshold at the start of the series."""
        return float(self.thresholds[0]) if len(self.thresholds) else 0.0

    def __repr__(self) -> str:
        """For notebooks: one line for the series, one for each event."""
        series = self.series
        count = len(self.anomalies)
        head = f"{series.name}, {series.column}: {count} event{'' if count == 1 else 's'} in {len(series)} rows"
        lines = [
            f"  {iso_utc(event.start_ns)} to {iso_utc(event.end_ns)}: {event.reason or event.channel}; observed "
            f"{event.observed:.6g}, expected {event.low:.6g} to {event.high:.6g}; score {event.score:.2f}"
            for event in self.anomalies
        ]
        return "\n".join([f"{head} (threshold {self.threshold:g})", *lines])


def usual_interval_ns(times_ns: Times) -> int:
    """The median time between rows, at least 1 ns; 0 for fewer than two rows."""
    if len(times_ns) < 2:
        return 0
    return max(1, int(np.median(np.diff(times_ns))))


def iso_utc(time_ns: int) -> str:
    """ISO 8601 in UTC with as many decimals as needed: ``2014-04-01T00:05:00Z``."""
    seconds, nanoseconds = divmod(int(time_ns), SECOND_NS)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{text}{fraction}Z"
