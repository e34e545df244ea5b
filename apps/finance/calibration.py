"""What an artifact needs to know beside its weights, found on synthetic series that the training did not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from apps.finance.data.nab import window_rows
from apps.finance.data.synth import markets
from apps.finance.events import detections
from apps.finance.forecasting import forecast
from apps.finance.metrics.nab import Scored, count_detections, probation, score_corpus
from apps.finance.recipes import FinanceRecipe
from apps.finance.scoring import CHANNELS, Calibration, combine, improbability, score, statistics, tabulate_prior
from apps.finance.types import Floats, Forecast, LabelledSeries, Series

Judged: TypeAlias = Sequence[tuple[Mapping[str, Floats], np.ndarray]]

_STREAM = 1 << 21
_PENALTIES = (0.0, 0.3, 0.6, 1.0, 1.5)
_SERIES, _ROWS = 40, 3000
FALSE_EVENTS_PER_1000_ROWS = 0.55
"""The budget: 3.5 false events in a series of about 6,400 rows, the mean length of the benchmark's files."""


def calibrate(
    recipe: FinanceRecipe, model: nn.Module, *, series: int | None = None, stride: int | None = None
) -> dict[str, Any]:
    """The calibration of a trained forecaster, in JSON types.

    Makes ``series`` synthetic series (40, or as many as there were to train on) without anomalies and as many with;
    the first give each channel's distribution
    on normal rows, both together the threshold at which there are no more false events than the budget allows.
    """
    series = series or min(_SERIES, recipe.data.series)
    rows = min(_ROWS, recipe.data.rows)
    stride = stride or default_stride(recipe.model.horizon)
    normal = _synthesise(recipe, 0, series, rows, 0.0)
    labelled = _synthesise(recipe, series, series, rows, 2.0)
    forecasts = forecast(model, [item.series for item in (*normal, *labelled)], stride=stride)
    calibration = Calibration()
    prior = _prior(normal, forecasts[:series], calibration)
    calibration = replace(calibration, prior=prior)
    judged = [
        (improbability(item.series, made, calibration), benchmark_windows(item))
        for item, made in zip((*normal, *labelled), forecasts, strict=True)
    ]
    calibration = replace(calibration, penalty=_penalties(judged, calibration))
    corpus = _corpus(judged, calibration)
    threshold = budget_threshold(corpus, FALSE_EVENTS_PER_1000_ROWS)
    found = count_detections(corpus, threshold)
    return {
        **asdict(replace(calibration, threshold=round(threshold, 4))),
        "stride": stride,
        "synthetic": {
            "series": len(corpus),
            "rows": rows,
            "windows": found.windows,
            "recall": round(found.recall, 4),
            "false_events_per_1000_rows": round(1000 * found.false_events / _counted_rows(corpus), 4),
            "nab_standard": round(score_corpus(corpus).normalised, 2),
        },
    }


def _penalties(judged: Judged, calibration: Calibration) -> dict[str, float]:
    """What to take off each channel's -log10 p: coordinate search for recall and NAB's score."""
    penalty = dict.fromkeys(CHANNELS, 0.0)

    def merit(tried: dict[str, float]) -> float:
        corpus = _corpus(judged, replace(calibration, penalty=tried))
        threshold = budget_threshold(corpus, FALSE_EVENTS_PER_1000_ROWS)
        return count_detections(corpus, threshold).recall + score_corpus(corpus).normalised / 100

    best = merit(penalty)
    for _ in range(2):
        for name in CHANNELS:
            for value in _PENALTIES:
                tried = {**penalty, name: value}
                if (found := merit(tried)) > best + 1e-6:
                    best, penalty = found, tried
    return penalty


def _corpus(judged: Judged, calibration: Calibration) -> list[Scored]:
    return [
        Scored(
            scores=detections(
                combine(channels, calibration), quiet_rows=calibration.quiet_rows, margin=calibration.margin
            ),
            windows=windows,
        )
        for channels, windows in judged
    ]


def default_stride(horizon: int) -> int:
    """Half the horizon: every row is forecast twice, from nearby and from further off."""
    return horizon // 2 if horizon % 2 == 0 else horizon


def from_manifest(mapping: dict[str, Any]) -> Calibration:
    """The calibration in a manifest."""
    names = Calibration.__dataclass_fields__.keys() & mapping.keys()
    return Calibration(**{name: mapping[name] for name in names})


def spoken(series: Series, made: Forecast, calibration: Calibration) -> Floats:
    """(N,) the scores at which the detector speaks up; a threshold on them gives its detections."""
    scores = score(series, made, calibration)
    return detections(scores, quiet_rows=calibration.quiet_rows, margin=calibration.margin)


def benchmark_windows(item: LabelledSeries) -> np.ndarray:
    """(W, 2) windows of rows as the NAB labels have them: a tenth of the series in all, about each anomaly's start."""
    length, number = len(item.series), len(item.windows)
    if not number:
        return np.zeros((0, 2), np.int64)
    width, bounds = int(0.1 * length / number), []
    for first, last in window_rows(item.series.times_ns, item.windows).tolist():
        begin = max(first - width // 4, probation(length), bounds[-1][1] + 1 if bounds else 0)
        end = min(max(first + 3 * width // 4, min(last, first + width)), length - 1)
        if end > begin:
            bounds.append((begin, end))
    return np.asarray(bounds, np.int64).reshape(-1, 2)


def budget_threshold(corpus: Sequence[Scored], false_events_per_1000_rows: float) -> float:
    """The lowest threshold at which a corpus has no more false events than that."""
    allowed = false_events_per_1000_rows * _counted_rows(corpus) / 1000
    low, high = 0.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        if count_detections(corpus, middle).false_events > allowed:
            low = middle
        else:
            high = middle
    return high


def _counted_rows(corpus: Sequence[Scored]) -> int:
    return sum(len(item.scores) - probation(len(item.scores)) for item in corpus)


def _prior(normal: Sequence[LabelledSeries], forecasts: Sequence[Forecast], calibration: Calibration) -> dict[str, Any]:
    found: dict[str, list[Floats]] = {name: [] for name in CHANNELS}
    for item, made in zip(normal, forecasts, strict=True):
        for name, values in statistics(item.series, made, calibration).items():
            found[name].append(values[probation(len(values)) :])
    return {name: tabulate_prior(np.concatenate(parts)) for name, parts in found.items()}


def _synthesise(recipe: FinanceRecipe, first: int, number: int, rows: int, anomalies: float) -> list[LabelledSeries]:
    made: list[LabelledSeries] = []
    for index in range(first, first + number):
        sequence = np.random.SeedSequence((recipe.data.seed, _STREAM + index))
        generator = np.random.Generator(np.random.Philox(sequence))
        made.append(markets.series(generator, length=rows, anomalies=anomalies))
    return made
