"""What an artifact needs to know beside its weights, found on synthetic series that the training did not see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from apps.finance.datasets.nab import window_rows
from apps.finance.datasets.synth import markets
from apps.finance.inference.channels import CHANNELS, statistics
from apps.finance.inference.events import detections
from apps.finance.inference.forecasting import forecast
from apps.finance.inference.scoring import Calibration, score, tabulate_prior
from apps.finance.metrics.nab import Scored, count_detections, probation, score_corpus
from apps.finance.recipes import FinanceRecipe
from apps.finance.types import Floats, Forecast, LabelledSeries

Judged: TypeAlias = Sequence[tuple[Floats, np.ndarray]]
"""Scores (N,) and windows of rows (W, 2) of some series."""

_STREAM = 1 << 21
_SERIES, _ROWS = 60, 3000
FALSE_EVENTS_PER_1000_ROWS = 0.55
"""The budget: 3.5 false events in a series of about 6,400 rows, the mean length of the benchmark's files."""


def calibrate(
    recipe: FinanceRecipe, model: nn.Module, *, series: int | None = None, stride: int | None = None
) -> dict[str, Any]:
    """The calibration of a trained forecaster, in JSON types.

    Makes ``series`` synthetic series (60, or as many as there were to train on) without anomalies and as many with;
    the first give each channel's distribution on normal rows, both together the threshold at which there are no more
    false events than the budget allows.
    """
    series = series or min(_SERIES, recipe.data.series)
    rows = min(_ROWS, recipe.data.rows)
    stride = stride or default_stride(recipe.model.horizon)
    normal = synthesise(recipe.data.seed, _STREAM, series, rows, 0.0)
    labelled = synthesise(recipe.data.seed, _STREAM + series, series, rows, 2.0)
    forecasts = forecast(model, [item.series for item in (*normal, *labelled)], stride=stride)
    calibration = Calibration()
    calibration = replace(calibration, prior=_prior(normal, forecasts[:series], calibration))
    judged = [
        (score(item.series, made, calibration), benchmark_windows(item))
        for item, made in zip((*normal, *labelled), forecasts, strict=True)
    ]
    threshold = budget_threshold(judged, calibration, FALSE_EVENTS_PER_1000_ROWS)
    calibration = replace(calibration, threshold=threshold)
    corpus = spoken(judged, calibration)
    found = count_detections(corpus, calibration.threshold)
    return {
        **asdict(calibration),
        "stride": stride,
        "synthetic": {
            "series": len(corpus),
            "rows": rows,
            "windows": found.windows,
            "recall": round(found.recall, 4),
            "false_events_per_1000_rows": round(1000 * found.false_events / counted_rows(judged), 4),
            "nab_standard": round(score_corpus(corpus, threshold=calibration.threshold).normalised, 2),
        },
    }


def default_stride(horizon: int) -> int:
    """Half the horizon: every row is forecast twice, from nearby and from further off."""
    return horizon // 2 if horizon % 2 == 0 else horizon


def from_manifest(mapping: dict[str, Any]) -> Calibration:
    """The calibration in a manifest."""
    names = Calibration.__dataclass_fields__.keys() & mapping.keys()
    return Calibration(**{name: mapping[name] for name in names})


def spoken(judged: Judged, calibration: Calibration) -> list[Scored]:
    """The scores at which the detector speaks up at the calibration's threshold, and nought elsewhere."""
    return [
        Scored(
            scores=detections(
                scores,
                threshold=calibration.threshold,
                quiet_rows=calibration.quiet_rows,
                margin=calibration.margin,
            ),
            windows=windows,
        )
        for scores, windows in judged
    ]


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


def budget_threshold(judged: Judged, calibration: Calibration, false_events_per_1000_rows: float) -> float:
    """The lowest threshold at which there are no more false events than that."""
    allowed = false_events_per_1000_rows * counted_rows(judged) / 1000
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        corpus = spoken(judged, replace(calibration, threshold=middle))
        if count_detections(corpus, middle).false_events > allowed:
            low = middle
        else:
            high = middle
    return math.ceil(high * 1e4) / 1e4


def counted_rows(judged: Judged) -> int:
    """The number of rows after the probationary periods."""
    return sum(len(scores) - probation(len(scores)) for scores, _ in judged)


def _prior(normal: Sequence[LabelledSeries], forecasts: Sequence[Forecast], calibration: Calibration) -> dict[str, Any]:
    found: dict[str, list[Floats]] = {name: [] for name in CHANNELS}
    for item, made in zip(normal, forecasts, strict=True):
        for name, values in statistics(item.series, made, memory=calibration.memory).items():
            found[name].append(values[probation(len(values)) :])
    return {name: tabulate_prior(np.concatenate(parts)) for name, parts in found.items()}


def synthesise(seed: int, first: int, number: int, rows: int, anomalies: float) -> list[LabelledSeries]:
    """``number`` synthetic series of the streams from ``first`` on, with so many anomalies each on average."""
    made: list[LabelledSeries] = []
    for stream in range(first, first + number):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream))))
        made.append(markets.series(generator, length=rows, anomalies=anomalies))
    return made
