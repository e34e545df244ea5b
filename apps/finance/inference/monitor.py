"""Live monitoring: scores a growing series, each row once, and reports each event once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from apps.finance.datasets.windows import after_values
from apps.finance.inference.conformal import Reported, report
from apps.finance.inference.corporate_actions import corporate_actions
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.events import anomalies
from apps.finance.inference.forecasting import forecast, library_network
from apps.finance.inference.gaps import gaps
from apps.finance.inference.monitor_rows import read_rows
from apps.finance.inference.monitor_state import SeriesState, append_rows, drop_old_rows, read_state, write_state
from apps.finance.inference.options import Options
from apps.finance.inference.scoring import clip_scores, combine, improbability_of, in_unit, unit_of, without_forecast
from apps.finance.types import Anomaly, Floats, Forecast, LibraryTFT, Series, Times, Words
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.finance.predictor import FinancePredictor

MIN_HISTORY = 65
"""A budget by the day starts from the interval of the first 64 steps."""
_RECENT_ROWS = 192
"""Events are reported at most this many rows after they begin. One just after a gap is reported late, if it lasts."""


class Monitor:
    """Scores the rows of one series as they arrive and reports each event once. Created by
    ``FinancePredictor.monitor``.

    After an update, its results equal those of ``predict`` on the whole series so far. It holds only what the next rows
    need: the rows of the last 15 days, at least 10,240 and at most 1,300,000, and results for the last 10,240.
    ``scores`` and ``thresholds`` (M,) are those of the rows of the last update.
    """

    def __init__(self, predictor: FinancePredictor, state: SeriesState, options: Options) -> None:
        self._predictor, self._state, self.options = predictor, state, options
        self.scores: Floats = np.empty(0)
        self.thresholds: Floats = np.empty(0)

    @classmethod
    def begin(cls, predictor: FinancePredictor, series: Series, options: Options) -> Monitor:
        """Starts with the history, whose events count as already reported."""
        if len(series) < MIN_HISTORY:
            raise InvalidInputError(
                f"a monitor of {series.name} needs at least {MIN_HISTORY} rows of history, and there are "
                f"{len(series)}; give more rows: a thousand are better, and 10,000 better still"
            )
        options.refuse_too_many_events([series])
        network = library_network(predictor.model)
        if network is not None:
            series = _series_for_network(series, network.settings)
            # A series or column that the network does not know is refused now, not at the first event.
            last = len(series) - 1
            with predictor.threads():
                forecast(predictor.model, [series], stride=predictor.stride, device=predictor.device, first=last)
        rate = options.budget(predictor.calibration).rate(series)
        empty = SeriesState(series=series.from_row(len(series)), factor=np.empty(0), rate=rate)
        monitor = cls(predictor, empty, options)
        monitor._state, _ = monitor._advance(series.times_ns, {**series.values, **series.words})
        return monitor

    @classmethod
    def resume(cls, predictor: FinancePredictor, path: Path, options: Options | None) -> Monitor:
        """Continues from the file that ``save`` wrote, with the same model and options."""
        state, settings = read_state(path)
        if settings.pop("model", None) != _model_id(predictor):
            raise InvalidInputError(
                f"{path} is the state of a monitor with a model or calibration other than {predictor.name}; load that "
                "model, or start a monitor from the history"
            )
        try:
            saved = TypeAdapter(Options).validate_python(settings.pop("options", None))
        except ValidationError as error:
            raise InvalidInputError(f"{path} lacks a monitor's options; start a monitor from the history") from error
        if options is not None and options != saved:
            raise InvalidInputError(
                f"{path} was saved with {saved}, not with {options}; leave the options out, or start a monitor from "
                "the history"
            )
        return cls(predictor, state, saved)

    @property
    def series(self) -> Series:
        """The last rows that are held."""
        return self._state.series

    def update(self, times: Any, values: Any) -> tuple[Anomaly, ...]:
        """Adds rows and returns the events that are new with them, each as far as it is known so far.

        ``times`` (M,) are UTC nanoseconds as integers, or anything ``pandas.to_datetime`` reads but texts that begin
        with day or month, taken as UTC if they have no zone; they must increase. Rows at or before the last known time
        are ignored, so rows may be sent again; ``scores`` then has the other rows only.
        ``values`` (M,) belongs to the scored column, NaN where missing, or maps each column of the series to (M,), as a
        DataFrame does: numbers, and texts in columns that a network takes as words. A single row may be two scalars, or
        a time and a row of a DataFrame. Raises ``InvalidInputError`` and changes nothing if the rows cannot be used.
        """
        times_ns, columns = read_rows(self._state.series, times, values)
        self._state, events = self._advance(times_ns, columns)
        return events

    def save(self, path: str | Path) -> None:
        """Writes the state to a file, atomically; ``LoadedModel.monitor`` continues from it."""
        write_state(Path(path), self._state, {"model": _model_id(self._predictor), "options": asdict(self.options)})

    def _advance(
        self, times_ns: Times, columns: Mapping[str, Floats | Words]
    ) -> tuple[SeriesState, tuple[Anomaly, ...]]:
        """The state after further rows, and the events that are new with them; if there is no state yet, all events are
        new."""
        old, predictor, fixed = self._state, self._predictor, self.options.threshold
        first, number = old.rows, len(times_ns)
        if not number:
            self.scores = self.thresholds = np.empty(0)
            return old, ()
        extended = append_rows(old.series, times_ns, columns)
        offset = len(extended) - first - number  # the first row of ``extended`` with carried results
        raw = extended.from_row(offset)
        actions = corporate_actions(raw)
        factor = np.concatenate([old.factor, np.full(number, old.factor[-1] if len(old.factor) else 1.0)])
        for action in actions:
            if action.row >= first:
                factor[offset + action.row :] *= action.factor
        adjusted = replace(extended, values={**extended.values, extended.column: extended.target / factor})
        by_forecast = predictor.calibration.by_forecast
        known = self._forecast(adjusted, factor, offset, first) if by_forecast else without_forecast(len(raw))
        unit = old.unit or unit_of(extended)
        scored = in_unit(adjusted, unit)
        forecasted = ForecastedSeries(scored.from_row(offset), known, first, {**old.carried}, scored)
        channels = improbability_of(forecasted, predictor.calibration)
        combined = combine(channels, alone=predictor.calibration.alone)
        budget = self.options.budget(predictor.calibration)
        due = budget.expected(raw, old.before, old.due)
        control = predictor.calibration.control(old.rate, fixed=fixed)
        update = report(combined, due, control, first=first, state=old.control_state)
        reported = Reported(
            forecasted.extend_carried("reported", update.scores[first:]),
            forecasted.extend_carried("threshold", update.thresholds[first:]),
            forecasted.extend_carried("renewed", update.renewed[first:]),
        )
        pauses = replace(old.pauses, lengths=[*old.pauses.lengths], starts=[*old.pauses.starts])
        new_gaps = [gap for gap in gaps(forecasted.series, pauses, first) if gap.score >= (fixed or 0.0)]
        known_gaps = (*old.gaps, *new_gaps)
        recent = max((first or len(raw)) - _RECENT_ROWS, 0)
        events: tuple[Anomaly, ...] = ()
        if new_gaps or reported.scores[recent:].any() or any(action.row >= first for action in actions):
            first_needed = min([recent, *(gap.before for gap in new_gaps)])
            forecasts = self._forecast(adjusted, factor, offset, first_needed) if first else forecasted.forecast
            events = anomalies(
                *(raw, forecasts, clip_scores(combined), reported, channels),
                gaps=known_gaps,
                actions=actions,
                factor=factor[offset:],
                memory=predictor.calibration.memory,
            )
            events = tuple(
                event
                for event in events
                if (event.channel == "gap" or event.start_ns >= raw.times_ns[recent])
                and _event_key(event) not in old.told
            )
        state = replace(
            old,
            series=extended,
            factor=factor,
            unit=unit,
            carried=forecasted.carried,
            control_state=update.state,
            pauses=pauses,
            gaps=tuple(gap for gap in known_gaps if gap.after >= recent and not gap.open),
            told=frozenset(
                key for key in (*old.told, *(_event_key(event) for event in events)) if key[1] >= raw.times_ns[0]
            ),
        )
        self.scores, self.thresholds = clip_scores(combined)[first:], reported.thresholds[first:]
        return drop_old_rows(state, due, predictor.calibration.memory), events

    def _forecast(self, adjusted: Series, factor: Floats, offset: int, since: int) -> Forecast:
        """The forecasts of the rows from ``offset`` on; only those from row ``offset + since`` on are computed."""
        predictor, state = self._predictor, self._state
        series = after_values(adjusted, _divided(state.earlier, adjusted.column, float(factor[0])))
        with predictor.threads():
            (forecasted,) = forecast(
                predictor.model,
                [series],
                stride=predictor.stride,
                device=predictor.device,
                first=offset + since,
                rows_before=state.before - offset,
            )
        quantiles = forecasted.quantiles[offset:] * factor[offset:, None]
        return replace(forecasted, quantiles=quantiles, surprise=forecasted.surprise[offset:])


def _event_key(event: Anomaly) -> tuple[str, int]:
    """The identity of an event: a gap or a corporate action may begin where another event does."""
    return event.channel if event.channel in ("gap", "corporate_action") else "", event.start_ns


def _model_id(predictor: FinancePredictor) -> str:
    """The identity of the model and calibration to which a state belongs."""
    calibration = json.dumps(asdict(predictor.calibration), sort_keys=True)
    return f"{predictor.name}, {hashlib.sha256(calibration.encode()).hexdigest()[:16]}"


def _series_for_network(series: Series, settings: LibraryTFT) -> Series:
    """The series with the columns of a network over covariates as the network takes them.

    Raises InvalidInputError if a column is missing, and for a network whose forecast of a row depends on later rows.
    """
    from apps.finance.models.library_covariates import typed_covariates

    if not settings.network.get("causal_attention", True):
        raise InvalidInputError(
            "the network was made with causal_attention=False: it forecasts a row from the covariates of later rows, "
            "which a monitor does not have yet; predict on the whole series, or train with causal_attention=True"
        )
    return typed_covariates(series, settings)


def _divided(earlier: Mapping[str, float], column: str, factor: float) -> dict[str, float]:
    """The ``earlier`` values with that of the scored column without the effect of corporate actions."""
    return {name: value / factor if name == column else value for name, value in earlier.items()}
