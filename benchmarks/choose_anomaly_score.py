"""How the anomaly score of the finance application was chosen: on synthetic series and on NAB, leaving out one folder.

For each combination of the detectors, prints the share of windows hit at 1.5 and 3.5 false events per file, on 150
synthetic series and on NAB without each of its folders; then the combination with the largest sum for each folder.
Takes half an hour on one core: python -m benchmarks.choose_anomaly_score. With --quick it uses 8 synthetic series and
one file of each folder, only to check that it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from apps.finance.datasets.labels import benchmark_windows, window_rows
from apps.finance.datasets.nab import Nab
from apps.finance.datasets.synthetic import synthesise
from apps.finance.inference.ablation import all_channels
from apps.finance.inference.calibration import count_scored_rows, initial_threshold, reported_scores
from apps.finance.inference.conformal import REPORTED, Budget, Control, report
from apps.finance.inference.detectors import DETECTORS
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.scoring import FULL_SCORE_IMPROBABILITY, MAX_IMPROBABILITY, WEIGHTS
from apps.finance.metrics.nab import Detections, Rows, Scored, count_detections
from apps.finance.predictor import FinancePredictor
from apps.finance.types import Floats
from shared.deploy.registry import Registry

_RANDOM_STREAM, _NUM_SERIES, _ROWS_PER_SERIES = 1 << 24, 150, 4000
_FALSE_EVENTS_PER_1000_ROWS = (1.5 / 5.73, 3.5 / 5.73)
"""1.5 and 3.5 events per file, for NAB's average file length after probation."""
_MEAN_POWERS, _LOW_VOLATILITY_WEIGHTS = (1.0, 1.5, 2.0, 3.0), (0.4, 0.5, 0.6, 0.7)
_BUDGETS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Budgets of a single detector, in events per 1,000 rows."""
_CHANNEL_WEIGHTS = (1.0, 1.5, 2.0, 3.0)
"""The weights of ``jump``, ``high_volatility`` and ``level`` relative to the other detectors."""


Weights: TypeAlias = Mapping[str, float]


def combined(channels: Mapping[str, Floats], weights: Weights, power: float, low_volatility_weight: float) -> Floats:
    """(N,) the weighted power mean of the detectors, but at least the weighted score of ``low_volatility``."""
    values = np.array([np.minimum(channels[name], MAX_IMPROBABILITY) ** power for name in weights])
    mean = np.average(values, axis=0, weights=list(weights.values())) ** (1 / power)
    minimum = low_volatility_weight * np.minimum(channels["low_volatility"], MAX_IMPROBABILITY)
    return np.asarray(np.clip(np.maximum(mean, minimum) / FULL_SCORE_IMPROBABILITY, 0, 1))


def combinations() -> dict[str, tuple[Weights, float, float]]:
    """The combinations by name: weights, power, and the weight of ``low_volatility``. Power 2 and 0.6 are shipped."""
    names = [name for name in DETECTORS if name != "low_volatility"]
    shipped = {name: WEIGHTS.get(name, 1.0) for name in names if WEIGHTS.get(name, 1.0)}
    transformer = {"surprise": 1.0, "drift": 1.0}
    by_name: dict[str, tuple[Weights, float, float]] = {}
    for power in _MEAN_POWERS:
        for low_volatility_weight in _LOW_VOLATILITY_WEIGHTS:
            title = f"power {power:g}, low_volatility {low_volatility_weight:g}"
            by_name[title] = shipped, power, low_volatility_weight
            by_name[f"{title}, with the Transformer"] = {**shipped, **transformer}, power, low_volatility_weight
    for weight in _CHANNEL_WEIGHTS:
        weighted = {name: weight if name in ("jump", "high_volatility", "level") else 1.0 for name in shipped}
        by_name[f"three count {weight:g} times"] = weighted, 2.0, 0.6
        by_name[f"three count {weight:g} times, with move"] = {**weighted, "move": 1.0}, 2.0, 0.6
    return by_name


def hit_share(scores: Sequence[Floats], windows: Sequence[Rows]) -> float:
    """The mean share of windows hit at the two rates of false events, with a fixed threshold."""
    scored, fixed = list(zip(scores, windows, strict=True)), Control(start=1.0)
    shares = []
    for rate in _FALSE_EVENTS_PER_1000_ROWS:
        start = initial_threshold(scored, fixed, rate, allowed=rate * count_scored_rows(scored) / 1000)
        control = Control(start=start)
        shares.append(count_detections(reported_scores(scored, control, rate), REPORTED).recall)
    return float(np.mean(shares))


def own_thresholds(
    channels_of_series: Sequence[Mapping[str, Floats]], windows_of_series: Sequence[Rows], control: Control
) -> dict[str, Floats]:
    """By detector, (R,) the start values of its own threshold for the budgets ``_BUDGETS``, on synthetic series."""
    starts = {}
    for name in DETECTORS:
        scored = [
            (_bounded(channels, name), windows)
            for channels, windows in zip(channels_of_series, windows_of_series, strict=True)
        ]
        starts[name] = np.array([max(initial_threshold(scored, control, rate), control.least) for rate in _BUDGETS])
    return starts


def hit_by_each(
    channels: Sequence[Mapping[str, Floats]],
    windows: Sequence[Rows],
    starts: Mapping[str, Floats],
    control: Control,
    false_events: float,
) -> int:
    """The number of windows hit if each detector has its own adaptive threshold and an equal part of the budget.

    The budget is the largest one with at most ``false_events`` false events per series.
    """

    def detections_at(rate: float) -> Detections:
        scored = []
        for series_channels, rows in zip(channels, windows, strict=True):
            highest = np.zeros(len(series_channels["jump"]))
            part = Budget(per_1000_rows=rate / len(starts))
            for name, levels in starts.items():
                start = float(np.interp(np.log(rate / len(starts)), np.log(_BUDGETS), levels))
                highest = np.maximum(
                    highest,
                    report(
                        _bounded(series_channels, name), part.due(len(highest)), replace(control, start=start)
                    ).scores,
                )
            scored.append(Scored(scores=highest, windows=rows))
        return count_detections(scored, REPORTED)

    low, high = np.log(_BUDGETS[0]), np.log(8 * _BUDGETS[-1])
    for _ in range(9):
        middle = (low + high) / 2
        if detections_at(float(np.exp(middle))).false_events > false_events * len(windows):
            high = middle
        else:
            low = middle
    return detections_at(float(np.exp(low))).hit


def _bounded(channels: Mapping[str, Floats], name: str) -> Floats:
    return np.minimum(channels[name], MAX_IMPROBABILITY) / FULL_SCORE_IMPROBABILITY


def main() -> None:
    """Prints a line for each combination, for each folder, and for separate thresholds of the detectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 synthetic series, one file of each folder")
    quick = parser.parse_args().quick
    weights = Path(__file__).parents[1] / "apps" / "finance" / "weights"
    predictor = FinancePredictor.load([Registry(weights).newest("tft-anomaly")], "cpu")
    benchmark = Nab()
    names = benchmark.names()
    folders = sorted({name.partition("/")[0] for name in names})
    if quick:
        names = [next(name for name in names if name.startswith(folder + "/")) for folder in folders]
    generated = synthesise(0, _RANDOM_STREAM, 8 if quick else _NUM_SERIES, _ROWS_PER_SERIES, 2.0)
    synthetic = [(item, benchmark_windows(item)) for item in generated]
    real = [(item, window_rows(item.series.times_ns, item.windows)) for item in map(benchmark.read, names)]

    def channels_of(items: Sequence[tuple[object, Rows]]) -> list[dict[str, Floats]]:
        channels = []
        for item, _ in items:
            series = item.series  # type: ignore[attr-defined]
            (detection,) = predictor.predict([series])
            forecasted = ForecastedSeries(series, detection.forecast)
            channels.append(all_channels(forecasted, predictor.calibration, anchors=False))
        return channels

    on_synthetic, on_real = channels_of(synthetic), channels_of(real)
    sums: dict[str, list[float]] = {}
    for name, (weights, power, low_volatility_weight) in combinations().items():
        scores = [combined(channels, weights, power, low_volatility_weight) for channels in on_synthetic]
        synthetic_share = hit_share(scores, [windows for _, windows in synthetic])
        shares = []
        for folder in folders:
            indices = [index for index, name in enumerate(names) if not name.startswith(folder + "/")]
            scores = [combined(on_real[index], weights, power, low_volatility_weight) for index in indices]
            shares.append(hit_share(scores, [real[index][1] for index in indices]))
        sums[name] = [synthetic_share + share for share in shares]
        print(
            f"{name}: synthetic {synthetic_share:.3f}, NAB without each folder", *(f"{share:.3f}" for share in shares)
        )
    print(f"all folders: {max(sums, key=lambda name: sum(sums[name]))}")
    for index, folder in enumerate(folders):
        print(f"{folder}: {max(sums, key=lambda name: sums[name][index])}")
    control = predictor.calibration.control()
    starts = own_thresholds(on_synthetic, [windows for _, windows in synthetic], control)
    hit = [hit_by_each(on_real, [windows for _, windows in real], starts, control, number) for number in (1.5, 3.5)]
    print(f"each detector with its own threshold: {hit[0]} and {hit[1]} windows at 1.5 and 3.5 false events a file")


if __name__ == "__main__":
    main()
