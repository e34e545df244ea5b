"""A trial on synthetic series that neither training nor calibration has seen, beside the simplest baseline.

The baseline is what the eye does with a chart of returns: the absolute change over its median absolute deviation so
far, with the same rule for reporting events, at the threshold that gives it as many false events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from apps.finance.datasets.labels import benchmark_windows, window_rows
from apps.finance.datasets.synth.faults import tick
from apps.finance.datasets.synth.markets import market
from apps.finance.datasets.synth.shapes import SHAPES
from apps.finance.datasets.synthetic import synthesise
from apps.finance.inference.calibration import count_scored_rows, initial_threshold, reported_scores
from apps.finance.inference.conformal import REPORTED
from apps.finance.inference.detectors.trailing import BLOCK
from apps.finance.inference.scoring import Calibration
from apps.finance.metrics.nab import Scored, count_detections, probation
from apps.finance.types import MINUTE_NS, Detection, Floats, LabelledSeries, Series, Window

_STREAM = 1 << 26
_SERIES, _ROWS, _MARKETS, _TICKS = 100, 3000, 20, 30
_DEVIATION = 1.4826


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Anomalies by kind, those hit by the detector and by the baseline, and the false events per 1,000 rows of both."""

    name: str
    number: Mapping[str, int]
    hit: Mapping[str, int]
    peer_hit: Mapping[str, int]
    false_events: float
    peer_false_events: float


def trial_sets(seed: int) -> dict[str, list[LabelledSeries]]:
    """The synthetic series of the trial: all shapes, markets with four faults each, and prices with one bad print."""
    generators = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _STREAM + 1000 + index))))
        for index in range(_MARKETS + _TICKS)
    ]
    return {
        "series": synthesise(seed, _STREAM, _SERIES, _ROWS, 2.0),
        "market": [market(generator) for generator in generators[:_MARKETS]],
        "price": [price_with_a_tick(generator) for generator in generators[_MARKETS:]],
    }


def price_with_a_tick(generator: np.random.Generator) -> LabelledSeries:
    """A price in 5-minute bars with one bad print, 20 robust deviations of its changes away."""
    times = 1_577_836_800 * 10**9 + np.arange(_ROWS, dtype=np.int64) * 5 * MINUTE_NS
    row = int(generator.integers(_ROWS // 2, _ROWS - 100))
    values, _ = tick(generator, SHAPES["price"](generator, times), row, 1, 10.0)
    series = Series(
        name="synthetic price",
        times_ns=times,
        values={"value": values},
        column="value",
        interval_ns=5 * MINUTE_NS,
    )
    # The return to the price is a change of the same size, so the window includes the next row.
    return LabelledSeries(
        series=series, windows=(Window(start_ns=int(times[row]), end_ns=int(times[row + 1]), kind="tick"),)
    )


def long_walk(rows: int) -> tuple[Series, tuple[int, int]]:
    """A random walk in minutes with two faults, and the rows of these: a bad print of 25 standard deviations of its
    changes, and a jump of 30."""
    steps = np.random.Generator(np.random.Philox(np.random.SeedSequence((0, _STREAM + 5000)))).standard_normal(rows)
    bad_print, jump = rows // 3, 2 * rows // 3
    steps[jump] += 30
    values = 10_000 + np.cumsum(steps)
    values[bad_print] -= 25
    times = 1_577_836_800 * 10**9 + np.arange(rows, dtype=np.int64) * MINUTE_NS
    walk = Series(name="random walk", times_ns=times, values={"value": values}, column="value", interval_ns=MINUTE_NS)
    return walk, (bad_print, jump)


def strongest_rows(detection: Detection, number: int) -> list[int]:
    """The peak rows of the strongest events, the strongest first."""
    events = sorted(detection.anomalies, key=lambda event: -event.score)[:number]
    return [int(np.searchsorted(detection.series.times_ns, event.peak_ns)) for event in events]


def run_trial(
    scorer: Callable[[Series], Floats], calibration: Calibration, items: Sequence[LabelledSeries], name: str
) -> Trial:
    """Counts what a detector hits; ``scorer`` returns a series' scores. A hit is a report in a window like NAB's
    labels."""
    scored = [(scorer(item.series), benchmark_windows(item)) for item in items]
    rate = calibration.events_per_1000_rows
    detector_reported = reported_scores(scored, calibration.control(), rate)
    false_events = count_detections(detector_reported, REPORTED).false_events
    rows = count_scored_rows(scored)
    baseline_scored = [
        (changes_over_deviation(item.series.target), windows) for item, (_, windows) in zip(items, scored, strict=True)
    ]
    fixed = calibration.control(fixed=1.0)
    start = initial_threshold(baseline_scored, fixed, rate, allowed=false_events)
    baseline_reported = reported_scores(baseline_scored, replace(fixed, start=start), rate)
    number, hit = _hits(items, detector_reported)
    _, peer_hit = _hits(items, baseline_reported)
    peer_false_events = count_detections(baseline_reported, REPORTED).false_events
    return Trial(
        name=name,
        number=number,
        hit=hit,
        peer_hit=peer_hit,
        false_events=1000 * false_events / rows,
        peer_false_events=1000 * peer_false_events / rows,
    )


def changes_over_deviation(values: Floats) -> Floats:
    """(N,) scores in [0, 1]: log10(1 + |change| / (1.4826 times its median so far)), over 4."""
    change = np.abs(np.diff(values, prepend=values[:1]))
    result = np.zeros(len(values))
    for start in range(BLOCK, len(values), BLOCK):
        past = change[:start][np.isfinite(change[:start])]
        deviation = _DEVIATION * float(np.median(past)) if len(past) else 0.0
        block = slice(start, start + BLOCK)
        result[block] = np.nan_to_num(change[block]) / max(deviation, 1e-9)
    return np.clip(np.log10(1 + result) / 4, 0, 1)


def _hits(items: Sequence[LabelledSeries], corpus: Sequence[Scored]) -> tuple[Counter[str], Counter[str]]:
    """Labelled anomalies by kind, and those of them that are hit."""
    number: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    for item, scored in zip(items, corpus, strict=True):
        starts = window_rows(item.series.times_ns, item.windows)[:, 0]
        detected = np.flatnonzero(scored.scores)
        detected = detected[detected >= probation(len(scored.scores))]
        for first, last in scored.windows.tolist():
            (inside,) = np.nonzero((starts >= first) & (starts <= last))
            kind = item.windows[int(inside[0])].kind if len(inside) else "other"
            number[kind] += 1
            hit[kind] += bool(((detected >= first) & (detected <= last)).any())
    return number, hit
