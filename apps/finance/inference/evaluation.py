"""Evaluates a predictor on a data set: by NAB's protocol if anomalies are labelled, and always by its forecasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np

from apps.finance.datasets.labels import scored_windows
from apps.finance.inference.calibration import count_scored_rows, reported_scores, with_covariates
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
"""The budgets, in events per 1,000 rows, among which the search of NAB's protocol chooses one for the whole corpus."""


@runtime_checkable
class EvaluationData(Protocol):
    """What a data set must provide in addition to windows, so that a predictor can be scored on it."""

    def cases(self) -> Iterable[LabelledSeries]: ...


@dataclass(frozen=True, slots=True)
class ForecastQuality:
    """The quality of forecasts on ``rows`` rows.

    ``loss`` is the mean quantile loss in units of the series' mean absolute change, ``persistence`` the same for
    repeating the last value. ``coverage`` is the share of values between the outermost quantiles, ``expected`` the
    nominal share.
    """

    rows: int
    loss: float
    persistence: float
    coverage: float
    expected: float


def evaluate(predictor: FinancePredictor, data: DataConfig, limit: int | None) -> Table:
    """The scores of a predictor on a data set; ``limit`` is the maximum number of series."""
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
    rows += _forecast_rows([quality for quality in qualities if quality.rows])
    notes = [
        f"Labelled windows: {sum(len(windows) for _, windows in scored)}. A false event is a run of detections outside "
        "every window; the rows of a series' probationary period (15 %, at most 750) are ignored."
    ]
    if not any(len(windows) for _, windows in scored):
        notes = ["No window is labelled: events are counted, but they cannot be judged right or wrong."]
    notes.append(
        "Forecasts are scored on the later part of each series, which is not used for training; losses are in mean "
        "absolute changes of the series. Persistence forecasts the value of the row before, which the model has not "
        "always seen because it forecasts several rows at once."
    )
    if data.fingerprint()["synthetic"]:
        notes.append("The series are synthetic.")
    first = f" (the first {limit})" if limit is not None and len(cases) == limit else ""
    title = f"{predictor.name} on {data.fingerprint()['description']}{first}"
    return Table(title=title, columns=("measure", "value"), rows=rows, notes=notes)


def score(predictor: FinancePredictor, data: DataConfig, limit: int | None = None) -> tuple[DomainScore, ...]:
    """The mean quantile loss on the later part of each series, and NAB's standard score if windows are labelled."""
    scored, qualities = [], []
    for item, detection, windows in _detections(predictor, data, limit):
        scored.append((detection.scores, windows))
        qualities.append(forecast_quality(detection, probation(len(item.series))))
    rows = sum(quality.rows for quality in qualities)
    loss = sum(quality.loss * quality.rows for quality in qualities) / max(rows, 1)
    description = str(data.fingerprint()["description"])
    scores = [
        DomainScore(name="quantile loss", value=loss, count=f"{rows} rows", data=description, higher_is_better=False),
    ]
    calibration = predictor.calibration
    corpus = reported_scores(scored, calibration.control(), calibration.events_per_1000_rows)
    if number := count_detections(corpus, REPORTED).windows:
        standard = score_corpus(corpus, STANDARD, REPORTED).normalised
        scores.append(
            DomainScore(name="NAB standard score", value=standard, count=f"{number} windows", data=description)
        )
    return tuple(scores)


def _detections(
    predictor: FinancePredictor, data: DataConfig, limit: int | None
) -> Iterator[tuple[LabelledSeries, Detection, Rows]]:
    """The series of a data set, at most ``limit``, each with its detection and its labelled windows."""
    if not isinstance(data, EvaluationData):
        raise InvalidInputError(f"{type(data).__name__} has no series to score on; name another data set with --data")
    synthetic = bool(data.fingerprint()["synthetic"])
    data = with_covariates(data, covariates_of(predictor.model))
    for item in progress_bar(islice(data.cases(), limit), None, "judging series"):
        (detection,) = predictor.predict([item.series])
        yield item, detection, scored_windows(item, synthetic=synthetic)


def _detection_rows(scored: list[tuple[Floats, Rows]], predictor: FinancePredictor) -> list[tuple[str, str]]:
    """The table's rows about events, and NAB's scores if windows are labelled."""
    calibration = predictor.calibration
    rate = calibration.events_per_1000_rows
    corpus = reported_scores(scored, calibration.control(), rate)
    detections = count_detections(corpus, REPORTED)
    counted = max(count_scored_rows(scored), 1)
    budget_text = f"with the model's budget of {rate:g} events a 1,000 rows"
    events = "False events" if detections.windows else "Events"
    rows = [
        (f"{events}, {budget_text}", str(detections.false_events)),
        (f"{events} a series", f"{detections.false_events_per_series:.2f}"),
        (f"{events} a 1,000 rows", f"{1000 * detections.false_events / counted:.3f}"),
    ]
    if not detections.windows:
        return rows
    rows.insert(
        0, (f"Windows hit, {budget_text}", f"{detections.hit}/{detections.windows} = {100 * detections.recall:.1f} %")
    )
    standard = score_corpus(corpus, STANDARD, REPORTED).normalised
    rows.append(("NAB standard score with that budget", f"{standard:.1f}"))
    searched = [
        (candidate, reported_scores(scored, calibration.control(candidate), candidate)) for candidate in SEARCHED
    ]
    for profile in PROFILES:
        best, budget = max(
            (score_corpus(reported, profile, REPORTED).normalised, candidate) for candidate, reported in searched
        )
        rows.append(
            (f"NAB {profile.name}, best budget of {SEARCHED[0]:g} to {SEARCHED[-1]:g}", f"{best:.1f} (at {budget:g})")
        )
    return rows


def forecast_quality(detection: Detection, first_row: int) -> ForecastQuality:
    """The quality of the forecasts of the rows from ``first_row`` on that have a value and a forecast."""
    values, quantiles = detection.series.target, detection.forecast.quantiles
    levels = detection.forecast.levels
    previous = np.concatenate([[np.nan], values[:-1]])
    scale = float(np.nanmean(np.abs(values - previous))) if np.isfinite(values - previous).any() else 0.0
    is_scored = np.isfinite(values) & np.isfinite(previous) & np.isfinite(quantiles).all(axis=1)
    is_scored[:first_row] = False
    if not is_scored.any() or not scale > 0:
        return ForecastQuality(0, 0.0, 0.0, 0.0, 0.0)

    def loss(forecast: Floats) -> float:
        return quantile_loss(values[is_scored], forecast, levels) / scale

    inside = (values[is_scored] >= quantiles[is_scored, 0]) & (values[is_scored] <= quantiles[is_scored, -1])
    return ForecastQuality(
        rows=int(is_scored.sum()),
        loss=loss(quantiles[is_scored]),
        persistence=loss(np.repeat(previous[is_scored, None], len(levels), axis=1)),
        coverage=float(inside.mean()),
        expected=float(levels[-1] - levels[0]),
    )


def _forecast_rows(qualities: list[ForecastQuality]) -> list[tuple[str, str]]:
    """The table's rows about forecasts: means over the series, weighted by their rows."""
    if not qualities:
        return []
    weights = np.array([quality.rows for quality in qualities], np.float64)

    def mean(values: list[float]) -> float:
        return float(np.average(values, weights=weights))

    return [
        ("Rows whose forecasts are scored", str(int(weights.sum()))),
        ("Quantile loss", f"{mean([quality.loss for quality in qualities]):.3f}"),
        ("Quantile loss of persistence", f"{mean([quality.persistence for quality in qualities]):.3f}"),
        (
            f"Values within the {qualities[0].expected:.0%} band",
            f"{100 * mean([quality.coverage for quality in qualities]):.1f} %",
        ),
    ]
