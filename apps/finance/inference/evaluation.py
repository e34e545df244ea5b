"""How good a predictor is on a data set: NAB's protocol where anomalies are labelled, and its forecasts anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np

from apps.finance.datasets.labels import scored_windows
from apps.finance.inference.calibration import counted_rows, reported_scores, with_covariates
from apps.finance.inference.conformal import REPORTED
from apps.finance.inference.forecasting import covariates_of
from apps.finance.metrics.nab import PROFILES, STANDARD, Rows, count_detections, probation, score_corpus
from apps.finance.metrics.quantile_loss import quantile_loss
from apps.finance.predictor import FinancePredictor
from apps.finance.types import Detection, Floats, LabelledSeries
from shared.app import DomainScore, Table
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar
from shared.recipe import DataConfig

SEARCHED = tuple(round(0.05 * 1.25**step, 3) for step in range(22))
"""The budgets, in events a 1,000 rows, that the search of NAB's protocol tries: there is one for the whole corpus."""


@runtime_checkable
class EvaluationData(Protocol):
    """What a data set must give besides windows, so that a predictor can be scored on it."""

    def cases(self) -> Iterable[LabelledSeries]: ...


@dataclass(frozen=True, slots=True)
class ForecastQuality:
    """``loss`` is the mean quantile loss in mean absolute changes of the series, ``persistence`` the last value's.

    ``coverage`` is the share of values within the outermost quantiles, whose levels leave ``expected`` inside.
    """

    rows: int
    loss: float
    persistence: float
    coverage: float
    expected: float


def evaluate(predictor: FinancePredictor, data: DataConfig, limit: int | None) -> Table:
    """The scores of a predictor on a data set; ``limit`` is the most series that are scored."""
    cases: list[LabelledSeries] = []
    scored: list[tuple[Floats, Rows]] = []
    qualities: list[ForecastQuality] = []
    for item, detection, windows in _detections(predictor, data, limit):
        cases.append(replace(item, series=replace(item.series, values={item.series.column: item.series.target})))
        scored.append((detection.scores, windows))
        share = getattr(data, "validation_share", None)
        first = probation(len(item.series)) if share is None else len(item.series) - round(share * len(item.series))
        qualities.append(forecast_quality(detection, first))
    rows = [("Series", str(len(cases))), ("Rows", str(sum(len(item.series) for item in cases)))]
    rows += _detection_rows(scored, predictor)
    rows += _forecast_rows([one for one in qualities if one.rows])
    notes = [
        f"Labelled windows: {sum(len(windows) for _, windows in scored)}. A false event is a run of detections outside "
        "every window; the rows of a series' probationary period (15 %, at most 750) count for nothing."
    ]
    if not any(len(windows) for _, windows in scored):
        notes = ["No window is labelled: events are counted, and cannot be told right or wrong."]
    notes.append(
        "Forecasts are scored on the later part of each series, which does not train; losses are in mean absolute "
        "changes of the series. Persistence forecasts the value of the row before, which the model, that forecasts "
        "several rows at once, has not always seen."
    )
    if data.fingerprint()["synthetic"]:
        notes.append("The series are synthetic.")
    first = f" (the first {limit})" if limit is not None and len(cases) == limit else ""
    title = f"{predictor.name} on {data.fingerprint()['description']}{first}"
    return Table(title=title, columns=("measure", "value"), rows=rows, notes=notes)


def score(predictor: FinancePredictor, data: DataConfig, limit: int | None = None) -> tuple[DomainScore, ...]:
    """The mean quantile loss on the later part of each series, and NAB's standard score where windows are labelled."""
    scored, qualities = [], []
    for item, detection, windows in _detections(predictor, data, limit):
        scored.append((detection.scores, windows))
        qualities.append(forecast_quality(detection, probation(len(item.series))))
    rows = sum(one.rows for one in qualities)
    loss = sum(one.loss * one.rows for one in qualities) / max(rows, 1)
    of = str(data.fingerprint()["description"])
    scores = [
        DomainScore(name="quantile loss", value=loss, count=f"{rows} rows", data=of, higher_is_better=False),
    ]
    calibration = predictor.calibration
    corpus = reported_scores(scored, calibration.control(), calibration.events_per_1000_rows)
    if found := count_detections(corpus, REPORTED).windows:
        standard = score_corpus(corpus, STANDARD, REPORTED).normalised
        scores.append(DomainScore(name="NAB standard score", value=standard, count=f"{found} windows", data=of))
    return tuple(scores)


def _detections(
    predictor: FinancePredictor, data: DataConfig, limit: int | None
) -> Iterator[tuple[LabelledSeries, Detection, Rows]]:
    """The series of a data set, at most ``limit``, with what is found in each and its labelled windows."""
    if not isinstance(data, EvaluationData):
        raise InvalidInputError(f"{type(data).__name__} has no series to score on")
    synthetic = bool(data.fingerprint()["synthetic"])
    data = with_covariates(data, covariates_of(predictor.model))
    for item in progress_bar(islice(data.cases(), limit), None, "judging series"):
        (detection,) = predictor.predict([item.series])
        yield item, detection, scored_windows(item, synthetic=synthetic)


def _detection_rows(scored: list[tuple[Floats, Rows]], predictor: FinancePredictor) -> list[tuple[str, str]]:
    calibration = predictor.calibration
    rate = calibration.events_per_1000_rows
    corpus = reported_scores(scored, calibration.control(), rate)
    found = count_detections(corpus, REPORTED)
    counted = max(counted_rows(scored), 1)
    where = f"with the model's budget of {rate:g} events a 1,000 rows"
    events = "False events" if found.windows else "Events"
    rows = [
        (f"{events}, {where}", str(found.false_events)),
        (f"{events} a series", f"{found.false_events_per_series:.2f}"),
        (f"{events} a 1,000 rows", f"{1000 * found.false_events / counted:.3f}"),
    ]
    if not found.windows:
        return rows
    rows.insert(0, (f"Windows hit, {where}", f"{found.hit}/{found.windows} = {100 * found.recall:.1f} %"))
    standard = score_corpus(corpus, STANDARD, REPORTED).normalised
    rows.append(("NAB standard score, there", f"{standard:.1f}"))
    searched = [(other, reported_scores(scored, calibration.control(other), other)) for other in SEARCHED]
    for profile in PROFILES:
        best, budget = max((score_corpus(one, profile, REPORTED).normalised, other) for other, one in searched)
        rows.append(
            (f"NAB {profile.name}, best budget of {SEARCHED[0]:g} to {SEARCHED[-1]:g}", f"{best:.1f} (at {budget:g})")
        )
    return rows


def forecast_quality(detection: Detection, first_row: int) -> ForecastQuality:
    """The quality of the forecasts of the rows from ``first_row`` on that have a value and a forecast."""
    values, quantiles = detection.series.target, detection.forecast.quantiles
    levels = detection.forecast.levels
    before = np.concatenate([[np.nan], values[:-1]])
    scale = float(np.nanmean(np.abs(values - before))) if np.isfinite(values - before).any() else 0.0
    good = np.isfinite(values) & np.isfinite(before) & np.isfinite(quantiles).all(axis=1)
    good[:first_row] = False
    if not good.any() or not scale > 0:
        return ForecastQuality(0, 0.0, 0.0, 0.0, 0.0)

    def loss(forecast: Floats) -> float:
        return quantile_loss(values[good], forecast, levels) / scale

    inside = (values[good] >= quantiles[good, 0]) & (values[good] <= quantiles[good, -1])
    return ForecastQuality(
        rows=int(good.sum()),
        loss=loss(quantiles[good]),
        persistence=loss(np.repeat(before[good, None], len(levels), axis=1)),
        coverage=float(inside.mean()),
        expected=float(levels[-1] - levels[0]),
    )


def _forecast_rows(qualities: list[ForecastQuality]) -> list[tuple[str, str]]:
    if not qualities:
        return []
    weights = np.array([one.rows for one in qualities], np.float64)

    def mean(values: list[float]) -> float:
        return float(np.average(values, weights=weights))

    return [
        ("Rows whose forecasts are scored", str(int(weights.sum()))),
        ("Quantile loss", f"{mean([one.loss for one in qualities]):.3f}"),
        ("Quantile loss of persistence", f"{mean([one.persistence for one in qualities]):.3f}"),
        (
            f"Values within the {qualities[0].expected:.0%} band",
            f"{100 * mean([one.coverage for one in qualities]):.1f} %",
        ),
    ]
