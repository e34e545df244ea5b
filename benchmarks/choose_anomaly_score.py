"""How the score of the finance application was chosen: on synthetic series and, for each NAB folder, on the others.

Prints for each way to combine the detectors the share of windows hit at 1.5 and 3.5 false events a file on 150
synthetic series, and on NAB without each of its folders, and which way has the largest sum for each folder. Half an
hour on one core: python -m benchmarks.choose_anomaly_score; with --quick, on 8 synthetic series and one file of
each folder, to see that it runs.
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
from apps.finance.inference.calibration import budget_start, counted_rows, reported_scores
from apps.finance.inference.conformal import REPORTED, Budget, Control, report
from apps.finance.inference.detectors import DETECTORS
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.scoring import FULL, HIGHEST, WEIGHTS
from apps.finance.metrics.nab import Detections, Rows, Scored, count_detections
from apps.finance.predictor import FinancePredictor
from apps.finance.types import Floats
from shared.deploy.registry import Registry

_STREAM, _SERIES, _ROWS = 1 << 24, 150, 4000
_FALSE_EVENTS_PER_1000_ROWS = (1.5 / 5.73, 3.5 / 5.73)
"""1.5 and 3.5 in a file as long as NAB's are on average after probation."""
_POWERS, _WEIGHTS_ALONE = (1.0, 1.5, 2.0, 3.0), (0.4, 0.5, 0.6, 0.7)
_BUDGETS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Of one detector, in events a 1,000 rows."""
_COUNTED = (1.0, 1.5, 2.0, 3.0)
"""How often ``jump``, ``high_volatility`` and ``level`` count for once of the others."""


Weights: TypeAlias = Mapping[str, float]


def combined(channels: Mapping[str, Floats], weights: Weights, power: float, alone: float) -> Floats:
    """(N,) the weighted power mean of the detectors, at the least ``alone`` times what ``low_volatility`` says."""
    values = np.array([np.minimum(channels[name], HIGHEST) ** power for name in weights])
    mean = np.average(values, axis=0, weights=list(weights.values())) ** (1 / power)
    least = alone * np.minimum(channels["low_volatility"], HIGHEST)
    return np.asarray(np.clip(np.maximum(mean, least) / FULL, 0, 1))


def ways() -> dict[str, tuple[Weights, float, float]]:
    """Weights, the power, and the weight of ``low_volatility``, by a name; first what ships."""
    names = [name for name in DETECTORS if name != "low_volatility"]
    shipped = {name: WEIGHTS.get(name, 1.0) for name in names if WEIGHTS.get(name, 1.0)}
    transformer = {"surprise": 1.0, "drift": 1.0}
    found: dict[str, tuple[Weights, float, float]] = {}
    for power in _POWERS:
        for alone in _WEIGHTS_ALONE:
            way = f"power {power:g}, low_volatility {alone:g}"
            found[way] = shipped, power, alone
            found[f"{way}, with the Transformer"] = {**shipped, **transformer}, power, alone
    for number in _COUNTED:
        weighted = {name: number if name in ("jump", "high_volatility", "level") else 1.0 for name in shipped}
        found[f"three count {number:g} times"] = weighted, 2.0, 0.6
        found[f"three count {number:g} times, with move"] = {**weighted, "move": 1.0}, 2.0, 0.6
    return found


def hit_share(scores: Sequence[Floats], windows: Sequence[Rows]) -> float:
    """The mean share of windows hit at the two numbers of false events, at a threshold that stays."""
    scored, fixed = list(zip(scores, windows, strict=True)), Control(start=1.0)
    shares = []
    for rate in _FALSE_EVENTS_PER_1000_ROWS:
        start = budget_start(scored, fixed, rate, allowed=rate * counted_rows(scored) / 1000)
        control = Control(start=start)
        shares.append(count_detections(reported_scores(scored, control, rate), REPORTED).recall)
    return float(np.mean(shares))


def own_thresholds(
    learnt: Sequence[Mapping[str, Floats]], learnt_windows: Sequence[Rows], control: Control
) -> dict[str, Floats]:
    """(R,) by detector: from where its own threshold begins at the budgets ``_BUDGETS``, on synthetic series."""
    found = {}
    for name in DETECTORS:
        scored = [(_bounded(channels, name), windows) for channels, windows in zip(learnt, learnt_windows, strict=True)]
        found[name] = np.array([max(budget_start(scored, control, rate), control.least) for rate in _BUDGETS])
    return found


def hit_by_each(
    channels: Sequence[Mapping[str, Floats]],
    windows: Sequence[Rows],
    starts: Mapping[str, Floats],
    control: Control,
    false_events: float,
) -> int:
    """Windows hit where each detector has a threshold that follows it and an equal part of the budget.

    The budget is the largest at which there are no more than so many false events a series.
    """

    def reported(rate: float) -> Detections:
        scored = []
        for one, rows in zip(channels, windows, strict=True):
            said = np.zeros(len(one["jump"]))
            part = Budget(per_1000_rows=rate / len(starts))
            for name, levels in starts.items():
                start = float(np.interp(np.log(rate / len(starts)), np.log(_BUDGETS), levels))
                said = np.maximum(
                    said, report(_bounded(one, name), part.due(len(said)), replace(control, start=start)).scores
                )
            scored.append(Scored(scores=said, windows=rows))
        return count_detections(scored, REPORTED)

    low, high = np.log(_BUDGETS[0]), np.log(8 * _BUDGETS[-1])
    for _ in range(9):
        middle = (low + high) / 2
        if reported(float(np.exp(middle))).false_events > false_events * len(windows):
            high = middle
        else:
            low = middle
    return reported(float(np.exp(low))).hit


def _bounded(channels: Mapping[str, Floats], name: str) -> Floats:
    return np.minimum(channels[name], HIGHEST) / FULL


def main() -> None:
    """Prints a line for each way, one for each folder, and one for a threshold of each detector's own."""
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
    made = synthesise(0, _STREAM, 8 if quick else _SERIES, _ROWS, 2.0)
    synthetic = [(item, benchmark_windows(item)) for item in made]
    real = [(item, window_rows(item.series.times_ns, item.windows)) for item in map(benchmark.read, names)]

    def scored(items: Sequence[tuple[object, Rows]]) -> list[dict[str, Floats]]:
        found = []
        for item, _ in items:
            series = item.series  # type: ignore[attr-defined]
            (detection,) = predictor.predict([series])
            one = ForecastedSeries(series, detection.forecast)
            found.append(all_channels(one, predictor.calibration, anchors=False))
        return found

    on_synthetic, on_real = scored(synthetic), scored(real)
    sums: dict[str, list[float]] = {}
    for way, (members, power, alone) in ways().items():
        scores = [combined(one, members, power, alone) for one in on_synthetic]
        first = hit_share(scores, [windows for _, windows in synthetic])
        shares = []
        for folder in folders:
            kept = [place for place, name in enumerate(names) if not name.startswith(folder + "/")]
            scores = [combined(on_real[place], members, power, alone) for place in kept]
            shares.append(hit_share(scores, [real[place][1] for place in kept]))
        sums[way] = [first + share for share in shares]
        print(f"{way}: synthetic {first:.3f}, NAB without each folder", *(f"{share:.3f}" for share in shares))
    print(f"all folders: {max(sums, key=lambda way: sum(sums[way]))}")
    for place, folder in enumerate(folders):
        print(f"{folder}: {max(sums, key=lambda way: sums[way][place])}")
    control = predictor.calibration.control()
    starts = own_thresholds(on_synthetic, [windows for _, windows in synthetic], control)
    hit = [hit_by_each(on_real, [windows for _, windows in real], starts, control, number) for number in (1.5, 3.5)]
    print(
        f"each detector with a threshold of its own: {hit[0]} and {hit[1]} windows at 1.5 and 3.5 false events a file"
    )


if __name__ == "__main__":
    main()
