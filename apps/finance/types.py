"""The canonical data of the finance application: a series, and the anomalies found in it or known of it.

Times are UTC nanoseconds since 1970 (int64). Values are float64; a missing value is NaN, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.recipe import InputSpec

Times: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Words: TypeAlias = NDArray[np.object_]
"""(N,) texts, empty where there is none."""
Direction: TypeAlias = Literal["above", "below", "inside"]
"""Where the observed value lies relative to the expected band; ``inside`` is an anomaly of behaviour, not of level."""

TRUTH = "synthetic_truth"
"""The column in which the file of a synthetic series says what is true of it: the kind of anomaly of each row."""
SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
WEEK_NS = 7 * DAY_NS
QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""Levels of the quantiles that our networks forecast: pytorch-forecasting's own defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryTFT:
    """What a network of the library takes, in plain values: from its checkpoint, or from the table that trains it here.

    ``network`` are the constructor's arguments. ``target`` is the column that is forecast. ``normalizer`` is how it is
    scaled: by each series' ``target_scales`` (center and scale by name, those of an unknown series under the empty
    name), by each window's own context, or by the mean of the context and the series' scale, of an unknown series by
    its context; before that comes ``transformation``. ``scalers`` are mean and deviation of
    the other real covariates, ``categories`` the codes of the categorical ones.

    Of a network that is trained here ``columns`` has the column of the table behind each covariate's name, in the
    network, where a name may not be any text; ``known`` are those that are given for the rows that are forecast. In its
    ``categories`` 0 stands for a word that no training row has. It sizes its network by the model's settings, and its
    loss counts in each series' own deviations; that of a checkpoint in the units of the series, as its library does.
    ``further`` says that it goes on from a network of another table, whose scalers, words and names of series it keeps.
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

    @property
    def covariates(self) -> tuple[str, ...]:
        """The columns of the table that a network trained here takes beside the value."""
        return tuple(column for name, column in self.columns.items() if name not in (self.target, self.group))


@dataclass(frozen=True, kw_only=True, slots=True)
class FinanceInput(InputSpec):
    """What model, data and inference agree on: ``context`` rows that are seen, ``horizon`` rows that are forecast.

    ``library`` says what a network that pytorch-forecasting trained elsewhere takes, in place of our own covariates.
    """

    context: int = 64
    horizon: int = 8
    library: LibraryTFT | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A time series of one or more columns.

    ``times_ns`` (N,) rises strictly; ``values`` maps column names to (N,). ``interval_ns`` is the usual time between
    rows (the median); rows need not be regular. ``column`` is the one that is scored, or where ``joint`` all are, by
    how they move together. ``column_of_table`` marks one of the columns that are scored jointly as well, where gaps
    between rows are told of. ``notes`` say what reading the series had to do (rows sorted, duplicates dropped).
    ``words`` has those columns of words that a network takes as covariates.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Anomaly:
    """An event found in a series.

    ``start_ns`` to ``end_ns`` (both rows of the series, inclusive), strongest at ``peak_ns``. ``score`` in [0, 1] is
    that of ``scoring.combine``. ``observed`` is the value at the peak,
    ``expected`` the forecast median, ``low`` and ``high`` the forecast band there. ``channel`` is what was unusual, the
    word of a detector in ``apps.finance.inference.detectors``, ``gap`` or ``corporate_action``; ``columns`` which of
    several were, in a joint score; ``note`` what is known besides: how long a gap is, which split. ``since_ns`` is
    a row before ``start_ns`` where the level is unusual: an estimate of when it left its former median. ``reason`` says
    in words why it is an event, with its ``size`` in the unit of the values and in robust ``deviations``; see
    ``inference/magnitude.py``.
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
    """A stretch known to be anomalous: ``start_ns`` to ``end_ns``, inclusive. ``kind`` is its cause where known."""

    start_ns: int
    end_ns: int
    kind: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSeries:
    """A series and its truth."""

    series: Series
    windows: tuple[Window, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What was expected at each row, from earlier rows alone; NaN where there was too little history.

    ``quantiles`` (N, Q) in the units of the series, rising along Q; ``surprise`` (N, K) the standard normal score of
    the observed value in K forecasts of it, the one made last first.
    """

    levels: tuple[float, ...]
    quantiles: Floats
    surprise: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """A scored series: forecast, and at each row (N,) a score in [0, 1] and the threshold; the events above it."""

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
        """What a notebook shows: a line for the series, one for each event."""
        series = self.series
        head = f"{series.name}, {series.column}: {len(self.anomalies)} events in {len(series)} rows"
        lines = [
            f"  {iso_utc(one.start_ns)} to {iso_utc(one.end_ns)}: {one.reason or one.channel}; observed "
            f"{one.observed:.6g}, expected {one.low:.6g} to {one.high:.6g}; score {one.score:.2f}"
            for one in self.anomalies
        ]
        return "\n".join([f"{head} (threshold {self.threshold:g})", *lines])


def usual_interval_ns(times_ns: Times) -> int:
    """The median time between rows, at least 1 ns; 0 for fewer than two rows."""
    if len(times_ns) < 2:
        return 0
    return max(1, int(np.median(np.diff(times_ns))))


def iso_utc(time_ns: int) -> str:
    """ISO 8601 in UTC with as many decimals as the time has: ``2014-04-01T00:05:00Z``."""
    seconds, rest = divmod(int(time_ns), SECOND_NS)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z"
