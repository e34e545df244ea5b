"""Follows series with monitors and compares the results with those of a prediction on the whole series."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.finance.inference.monitor import Monitor
from apps.finance.inference.options import Options
from apps.finance.types import Anomaly, Series


def rows_of(series: Series, first: int, last: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The times and the columns of some rows, as a monitor takes them."""
    columns = {**series.values, **series.words}
    return series.times_ns[first:last], {name: cells[first:last] for name, cells in columns.items()}


def until(series: Series, row: int) -> Series:
    times, columns = rows_of(series, 0, row)
    values, words = ({name: columns[name] for name in kind} for kind in (series.values, series.words))
    return replace(series, times_ns=times, values=values, words=words)


def kind(event: Anomaly) -> tuple[str, int]:
    return event.channel if event.channel in ("gap", "corporate_action") else "", event.start_ns


def follow(model: Any, series: Series, begin: int, options: Options, folder: Path, seed: int, steps: Any) -> Any:
    """Sends all rows from ``begin`` on in random parts, saving and resuming in between; returns the results."""
    generator = np.random.default_rng(seed)
    monitor, row, events, scores, thresholds = model.monitor(until(series, begin), options), begin, [], [], []
    while row < len(series):
        end = min(row + int(generator.choice(steps)), len(series))
        events += [(end, event) for event in monitor.update(*rows_of(series, row, end))]
        scores.append(monitor.scores)
        thresholds.append(monitor.thresholds)
        row = end
        if generator.uniform() < 0.1:
            monitor.save(folder / "state.npz")
            monitor = model.monitor(folder / "state.npz")
    assert len({kind(event) for _, event in events}) == len(events), "each event once"
    return monitor, events, np.concatenate(scores), np.concatenate(thresholds)


def assert_as_in_the_whole(
    model: Any,
    series: Series,
    begin: int,
    options: Options,
    folder: Path,
    seed: int,
    steps: Any = (1, 2, 7, 64, 300, 700),
    tolerance: float = 1e-9,
) -> tuple[Monitor, list]:
    (whole,) = model.predict([series], options)
    monitor, events, scores, thresholds = follow(model, series, begin, options, folder, seed, steps)
    np.testing.assert_allclose(scores, whole.scores[begin:], atol=tolerance)
    np.testing.assert_allclose(thresholds, whole.thresholds[begin:], atol=tolerance)
    later = {kind(event) for event in whole.anomalies if event.start_ns >= series.times_ns[begin]}
    assert {kind(event) for _, event in events} == later
    return monitor, events


def assert_as_in_the_part(model: Any, series: Series, options: Options, end: int, event: Anomaly) -> None:
    """Asserts that a prediction on the rows until ``end`` has the same event."""
    import pytest

    (part,) = model.predict([until(series, end)], options)
    (same,) = [other for other in part.anomalies if kind(other) == kind(event)]
    assert (same.end_ns, same.peak_ns, same.channel, same.direction, same.observed, same.note, same.since_ns) == (
        (event.end_ns, event.peak_ns, event.channel, event.direction, event.observed, event.note, event.since_ns)
    )
    assert (same.size, same.deviations) == pytest.approx((event.size, event.deviations), rel=1e-3)
    figures = event.score, event.low, event.expected, event.high
    assert figures == pytest.approx((same.score, same.low, same.expected, same.high), rel=1e-3)
