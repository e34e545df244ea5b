"""Live monitoring: a series is scored as it grows, each row once, and each event is told once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from apps.finance.inference.conformal import Reported, report
from apps.finance.inference.corporate_actions import corporate_actions
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.events import anomalies
from apps.finance.inference.forecasting import forecast, library_network
from apps.finance.inference.gaps import gaps
from apps.finance.inference.monitor_state import (
    SeriesState,
    last_rows,
    read_state,
    shortened,
    with_rows,
    write_state,
)
from apps.finance.inference.options import Options
from apps.finance.inference.scoring import combine, improbability_of, published, without_forecast
from apps.finance.types import DAY_NS, Anomaly, Floats, Forecast, Series, Times
from shared.errors import InvalidInputError
from shared.utc_time import iso_utc

if TYPE_CHECKING:
    from apps.finance.predictor import FinancePredictor

MIN_HISTORY = 65
"""The interval by which a budget by the day begins is that of the first 64 steps."""
_RECENT = 192
"""An event is told at most so many rows after its beginning: one in the wake of a gap when it has lasted."""
_EARLIEST_NS = 10**16
_FURTHEST_NS = 366 * DAY_NS
"""A row so long after the one before has a wrong time: were it taken, all rows until then would be passed over."""


class Monitor:
    """Scores the rows of one series as they come, and tells each event once; ``FinancePredictor.monitor`` makes one.

    What it says after an update is what ``predict`` says of the whole series until there. It holds what the next rows
    need and no more: the rows of 15 days, 10,240 at least and 1,300,000 at most, and what was computed of the last
    10,240. ``scores`` and ``thresholds`` (M,) are those of the rows of the last update.
    """

    def __init__(self, predictor: FinancePredictor, state: SeriesState, options: Options) -> None:
        self._predictor, self._state, self.options = predictor, state, options
        self.scores: Floats = np.empty(0)
        self.thresholds: Floats = np.empty(0)

    @classmethod
    def begin(cls, predictor: FinancePredictor, series: Series, options: Options) -> Monitor:
        """Begins with the history: its events count as told."""
        if len(series) < MIN_HISTORY:
            raise InvalidInputError(
                f"a monitor of {series.name} must begin with {MIN_HISTORY} rows of history or more, and there are "
                f"{len(series)}; a thousand are better, and 10,000 better still"
            )
        if predictor.trained_on is not None:
            raise InvalidInputError(
                "the network takes covariates, or the names of series, from its table, and a monitor is told of values "
                "alone; predict on the whole series, or monitor with a network that takes the value alone"
            )
        if library_network(predictor.model) is not None:
            raise InvalidInputError(
                "an imported network numbers its rows from the beginning of a file, so that it cannot go on from the "
                "last ones; monitor with the shipped model, or with one trained here"
            )
        rate = options.budget(predictor.calibration).rate(series)
        empty = replace(series, times_ns=series.times_ns[:0], values={n: v[:0] for n, v in series.values.items()})
        monitor = cls(predictor, SeriesState(series=empty, factor=np.empty(0), rate=rate), options)
        monitor._state, _ = monitor._advanced(series.times_ns, series.values)
        return monitor

    @classmethod
    def resume(cls, predictor: FinancePredictor, path: Path, options: Options | None) -> Monitor:
        """Goes on from what ``save`` wrote, with the same model and the same options."""
        state, settings = read_state(path)
        if settings.pop("model", None) != _model(predictor):
            raise InvalidInputError(
                f"{path} is the state of a monitor with another model or calibration than {predictor.name}; load that "
                "one, or begin a monitor with the history"
            )
        try:
            saved = TypeAdapter(Options).validate_python(settings.pop("options", None))
        except ValidationError as error:
            raise InvalidInputError(f"{path} has no options of a monitor; begin one with the history") from error
        if options is not None and options != saved:
            raise InvalidInputError(
                f"{path} goes on with {saved}, and not with {options}; leave the options out, or begin a monitor with "
                "the history"
            )
        return cls(predictor, state, saved)

    @property
    def series(self) -> Series:
        """The last rows, as far as they are held."""
        return self._state.series

    def update(self, times: Any, values: Any) -> tuple[Anomaly, ...]:
        """The events that are new with these rows, each as far as it is known now.

        ``times`` (M,) are UTC nanoseconds as integers, or whatever ``pandas.to_datetime`` reads, in UTC where they have
        no zone; they rise. Rows at the last one's time or before it are passed over: rows may be handed in again.
        ``values`` (M,) is of the column that is scored, NaN where there is none, or maps each column of the series to
        (M,), as a DataFrame does. One row may be two scalars, or a time and a row of a DataFrame. Raises
        ``InvalidInputError`` and changes nothing where they cannot be used.
        """
        times_ns, columns = self._read(times, values)
        self._state, found = self._advanced(times_ns, columns)
        return found

    def save(self, path: str | Path) -> None:
        """Writes the state to a file, whole or not at all; ``LoadedModel.monitor`` goes on from it."""
        write_state(Path(path), self._state, {"model": _model(self._predictor), "options": asdict(self.options)})

    def _read(self, times: Any, values: Any) -> tuple[Times, dict[str, Floats]]:
        series = self._state.series
        times_ns = _nanoseconds(times)
        named = isinstance(values, Mapping) or (hasattr(values, "keys") and series.column in values)  # pandas'
        given = values if named else {series.column: values}
        if missing := [name for name in series.values if name not in given]:
            raise InvalidInputError(
                f"{series.name} has the columns {', '.join(series.values)}, of which {', '.join(missing)} is missing; "
                "hand in a mapping or a DataFrame with all of them, NaN where a row has none"
            )
        columns = {}
        for name in series.values:
            try:
                numbers = np.atleast_1d(np.asarray(given[name], np.float64))
            except (ValueError, TypeError) as error:
                raise InvalidInputError(f"the values of {name} are no numbers: {error}") from error
            if numbers.shape != times_ns.shape:
                raise InvalidInputError(f"there are {times_ns.size} times and {numbers.size} values of {name}")
            columns[name] = np.where(np.isfinite(numbers), numbers, np.nan)
        if (np.diff(times_ns) <= 0).any():
            raise InvalidInputError(f"the times of the rows of {series.name} must rise; sort them, one row a time")
        new = times_ns > series.times_ns[-1]
        steps = np.diff(times_ns[new], prepend=series.times_ns[-1])
        if (far := np.flatnonzero(steps > _FURTHEST_NS)).size:
            raise InvalidInputError(
                f"the row at {iso_utc(times_ns[new][far[0]] / 1e9)} of {series.name} is {steps[far[0]] / DAY_NS:,.0f} "
                "days after the one before; correct its time or leave it out, or where the series did pause so long, "
                "begin a monitor with the history"
            )
        return times_ns[new], {name: numbers[new] for name, numbers in columns.items()}

    def _advanced(self, times_ns: Times, values: Mapping[str, Floats]) -> tuple[SeriesState, tuple[Anomaly, ...]]:
        """The state after further rows, and the events that are new with them; of the history all are."""
        old, predictor, fixed = self._state, self._predictor, self.options.threshold
        first, new = old.rows, len(times_ns)
        if not new:
            self.scores = self.thresholds = np.empty(0)
            return old, ()
        held = with_rows(old.series, times_ns, values)
        offset = len(held) - first - new  # the row of ``held`` where those begin of which is held what was computed
        raw = last_rows(held, offset)
        actions = corporate_actions(raw)
        factor = np.concatenate([old.factor, np.full(new, old.factor[-1] if len(old.factor) else 1.0)])
        for action in actions:
            if action.row >= first:
                factor[offset + action.row :] *= action.factor
        steady = replace(held, values={**held.values, held.column: held.target / factor})
        one = ForecastedSeries(last_rows(steady, offset), without_forecast(len(raw)), first, {**old.carried}, steady)
        channels = improbability_of(one, predictor.calibration)
        combined, budget = combine(channels), self.options.budget(predictor.calibration)
        due = budget.expected(raw, old.before, old.due)
        control = predictor.calibration.control(old.rate, fixed=fixed)
        said = report(combined, due, control, first=first, state=old.control_state)
        reported = Reported(
            one.extended("reported", said.scores[first:]),
            one.extended("threshold", said.thresholds[first:]),
            one.extended("renewed", said.renewed[first:]),
        )
        pauses = replace(old.pauses, lengths=[*old.pauses.lengths], starts=[*old.pauses.starts])
        found = [gap for gap in gaps(one.series, pauses, first) if gap.score >= (fixed or 0.0)]
        breaks = (*old.gaps, *found)
        recent = max((first or len(raw)) - _RECENT, 0)
        told: tuple[Anomaly, ...] = ()
        if found or reported.scores[recent:].any() or any(action.row >= first for action in actions):
            since = min([recent, *(gap.before for gap in found)])
            made = self._forecast(steady, factor, offset, since) if first else one.forecast
            told = anomalies(
                *(raw, made, published(combined), reported, channels),
                gaps=breaks,
                actions=actions,
                factor=factor[offset:],
                memory=predictor.calibration.memory,
            )
            told = tuple(
                event
                for event in told
                if (event.channel == "gap" or event.start_ns >= raw.times_ns[recent]) and _key(event) not in old.told
            )
        state = replace(
            old,
            series=held,
            factor=factor,
            carried=one.carried,
            control_state=said.state,
            pauses=pauses,
            gaps=tuple(gap for gap in breaks if gap.after >= recent and not gap.open),
            told=frozenset(key for key in (*old.told, *(_key(event) for event in told)) if key[1] >= raw.times_ns[0]),
        )
        self.scores, self.thresholds = published(combined)[first:], reported.thresholds[first:]
        return shortened(state, due, predictor.calibration.memory), told

    def _forecast(self, steady: Series, factor: Floats, offset: int, since: int) -> Forecast:
        """The forecasts of the rows from ``offset`` on, as far as those from ``since`` on after it are asked for."""
        predictor = self._predictor
        with predictor.threads():
            (made,) = forecast(
                predictor.model, [steady], stride=predictor.stride, device=predictor.device, first=offset + since
            )
        quantiles = made.quantiles[offset:] * factor[offset:, None]
        return replace(made, quantiles=quantiles, surprise=made.surprise[offset:])


def _key(event: Anomaly) -> tuple[str, int]:
    """What an event is known by: a gap and a corporate action may begin where another event does."""
    return event.channel if event.channel in ("gap", "corporate_action") else "", event.start_ns


def _model(predictor: FinancePredictor) -> str:
    """Which model and calibration a state belongs to."""
    calibration = json.dumps(asdict(predictor.calibration), sort_keys=True)
    return f"{predictor.name}, {hashlib.sha256(calibration.encode()).hexdigest()[:16]}"


def _nanoseconds(times: Any) -> Times:
    """(M,) times in UTC nanoseconds."""
    given = np.atleast_1d(times)
    if given.dtype.kind == "f" and len(given):
        raise InvalidInputError(f"the time {given[-1]} is not exact; hand in integers or pandas' Timestamps")
    if given.dtype.kind not in "iuf":
        import pandas as pd

        try:
            read = pd.DatetimeIndex(pd.to_datetime(list(given), utc=True))
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidInputError(f"the times cannot be read: {error}") from error
        if read.isna().any():
            raise InvalidInputError("a row has no time; leave it out")
        return np.asarray(read.as_unit("ns").asi8, np.int64)
    if len(given) and int(np.abs(given).max()) < _EARLIEST_NS:
        raise InvalidInputError(
            f"the time {given[-1]} as nanoseconds is in 1970; multiply seconds by 10**9, or hand in pandas' Timestamps"
        )
    return given.astype(np.int64)
