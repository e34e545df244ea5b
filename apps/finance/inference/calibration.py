"""The calibration stored with an artifact's weights: what is normal, and from which score a row begins an event."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from apps.finance.datasets.labels import scored_windows
from apps.finance.inference.conformal import REPORTED, Budget, Control, report
from apps.finance.inference.detectors import CANDIDATES
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.forecasting import AnyForecaster, covariates_of, forecast, library_network
from apps.finance.inference.scoring import Calibration, in_unit, score, unit_of
from apps.finance.metrics.nab import Rows, Scored, count_detections, probation, score_corpus
from apps.finance.models.calendar import has_explaining_columns
from apps.finance.types import Floats, LabelledSeries
from shared.errors import InvalidInputError
from shared.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

ScoredRows: TypeAlias = Sequence[tuple[Floats, Rows]]
"""Scores (N,) and windows of rows (W, 2) of several series."""

_BUDGETS = (0.05, 0.1, 0.2, 0.4, 1.0, 2.0, 5.0)
"""Further budgets, in events per 1,000 rows, for which a calibration finds the initial threshold."""
_HALVINGS = 12


@runtime_checkable
class CalibrationData(Protocol):
    """What a data set must provide in addition to windows, so that a forecaster can be calibrated on it."""

    @property
    def false_events_per_1000_rows(self) -> float:
        """The budget at which the threshold is set."""
        ...

    def fingerprint(self) -> dict[str, Any]: ...

    def normal(self) -> Sequence[LabelledSeries]:
        """Series of which all or most rows are normal."""
        ...

    def labelled(self) -> Sequence[LabelledSeries]:
        """Further series, with labelled anomalies."""
        ...


def calibrate(
    data: CalibrationData, model: AnyForecaster, *, stride: int | None = None, max_series: int | None = None
) -> dict[str, Any]:
    """The calibration of a trained forecaster, in JSON types.

    The ``normal`` series of ``data`` give each detector's distribution on normal rows. Together with the ``labelled``
    series they give the initial threshold for each of several budgets: the lowest at which the number of false events
    is within the budget. ``max_series`` limits the number of series of each kind. If no window is labelled, every event
    counts as false.
    """
    stride = stride or default_stride(model.horizon)
    data = with_covariates(data, covariates_of(model))
    normal, labelled = data.normal()[:max_series], data.labelled()[:max_series]
    forecasts = forecast(model, [item.series for item in normal], stride=stride)
    history = [
        ForecastedSeries(in_unit(item.series, unit_of(item.series)), forecasted)
        for item, forecasted in zip(normal, forecasts, strict=True)
    ]
    library = library_network(model)
    by_forecast = library is not None and has_explaining_columns(library.settings)
    calibration = Calibration(by_forecast=by_forecast)
    calibration = replace(calibration, prior=_fit_priors(history, calibration))
    synthetic = bool(data.fingerprint()["synthetic"])
    labelled_forecasts = forecast(model, [item.series for item in labelled], stride=stride) if by_forecast else []
    scored = [
        (score(item.series, calibration, forecasted), scored_windows(item, synthetic=synthetic))
        for item, forecasted in zip_longest((*normal, *labelled), (*forecasts, *labelled_forecasts))
    ]
    rate, control = data.false_events_per_1000_rows, calibration.control()
    budgets: list[tuple[float, float]] = []
    start = control.least
    for budget in sorted({*_BUDGETS, rate}, reverse=True):
        # A smaller budget must not yield more events. The threshold falls with each event that is due, so that without
        # this maximum a larger budget could need a higher initial threshold.
        start = max(start, initial_threshold(scored, control, budget))
        budgets.insert(0, (budget, start))
    calibration = replace(
        calibration,
        events_per_1000_rows=rate,
        threshold=dict(budgets)[rate],
        budgets=[pair for pair in budgets if pair[0] != rate],
    )
    corpus = reported_scores(scored, calibration.control(), rate)
    detections = count_detections(corpus, REPORTED)
    return {
        **asdict(calibration),
        "stride": stride,
        "synthetic" if synthetic else "measured": {
            "data": data.fingerprint()["description"],
            "series": len(corpus),
            "rows": sum(len(item.series) for item in (*normal, *labelled)),
            "windows": detections.windows,
            "recall": round(detections.recall, 4),
            "false_events_per_1000_rows": round(1000 * detections.false_events / max(count_scored_rows(scored), 1), 4),
            "nab_standard": round(score_corpus(corpus, threshold=REPORTED).normalised, 2),
        },
    }


@runtime_checkable
class WithCovariates(Protocol):
    """A data set whose table may have further columns."""

    def with_covariates(self, names: Sequence[str]) -> Any: ...


DataT = TypeVar("DataT")


def with_covariates(data: DataT, names: Sequence[str]) -> DataT:
    """``data``, read with the columns that a network takes in addition to the value, if any. Raises InvalidInputError
    if it cannot have such columns."""
    if not names:
        return data
    if not isinstance(data, WithCovariates):
        raise InvalidInputError(
            f"the series of {type(data).__name__} lack the columns {', '.join(names)}, which the network needs; name a "
            "table that has them: --data table --data.path FILE"
        )
    extended: DataT = data.with_covariates(names)
    return extended


def calibrate_recipe(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """The calibration of a network that a recipe trained, on the recipe's own data set."""
    from apps.finance.models.library_tft import LibraryForecaster
    from apps.finance.models.tft import Forecaster

    assert isinstance(model, Forecaster | LibraryForecaster) and isinstance(recipe.data, CalibrationData)
    return calibrate(recipe.data, model)


def default_stride(horizon: int) -> int:
    """Half the horizon, if it is even: every row is forecast twice, at a short and at a long lead."""
    return horizon // 2 if horizon % 2 == 0 else horizon


def from_manifest(mapping: Mapping[str, Any]) -> Calibration:
    """The calibration in a manifest. Raises InvalidInputError if a value has the wrong type."""
    fields = {name: mapping[name] for name in Calibration.__dataclass_fields__.keys() & mapping.keys()}
    try:
        return TypeAdapter(Calibration).validate_python(fields)
    except ValidationError as error:
        first_error = error.errors()[0]
        location = ".".join(map(str, first_error["loc"]))
        raise InvalidInputError(
            f"the model's calibration cannot be used: {location}: {first_error['msg'].lower()}; recreate it with "
            "`trivium calibrate finance --artifact DIR`"
        ) from error


def reported_scores(scored: ScoredRows, control: Control, rate: float) -> list[Scored]:
    """The scores of reported events for a budget of ``rate`` events per 1,000 rows; zero elsewhere."""
    budget = Budget(per_1000_rows=rate)
    return [
        Scored(scores=report(scores, budget.due(len(scores)), control).scores, windows=windows)
        for scores, windows in scored
    ]


def initial_threshold(scored: ScoredRows, control: Control, rate: float, *, allowed: float | None = None) -> float:
    """The lowest initial threshold at which there are at most ``allowed`` false events.

    By default ``allowed`` is ``rate`` events per 1,000 rows after probation.
    """
    max_false_events = rate * count_scored_rows(scored) / 1000 if allowed is None else allowed
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        threshold = (low + high) / 2
        corpus = reported_scores(scored, replace(control, start=threshold), rate)
        if count_detections(corpus, REPORTED).false_events > max_false_events:
            low = threshold
        else:
            high = threshold
    return math.ceil(high * 1e4) / 1e4


def count_scored_rows(scored: ScoredRows) -> int:
    """The number of rows after the probationary periods."""
    return sum(len(scores) - probation(len(scores)) for scores, _ in scored)


def _fit_priors(history: Sequence[ForecastedSeries], calibration: Calibration) -> dict[str, list[float]]:
    """What each detector learns from ``history``, by its name."""
    table = {**calibration.detectors(), **CANDIDATES}
    priors = {name: detector.fit(history).prior for name, detector in table.items()}
    return {name: list(values) for name, values in priors.items()}
