"""Synthetic baskets of shares scored jointly, and column by column, with the same budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from apps.finance.datasets.labels import window_rows
from apps.finance.datasets.synth.baskets import KINDS, basket
from apps.finance.inference.conformal import report
from apps.finance.inference.scoring import Calibration, score
from apps.finance.metrics.nab import probation
from apps.finance.types import LabelledSeries, Series

_STREAM, _BASKETS = 1 << 27, 20
_ROWS_AFTER_FAULT = 12
"""A report counts as a hit up to this many rows after the fault, because the joint score is a mean over 6 rows."""


@dataclass(frozen=True, slots=True)
class BasketTrial:
    """Faults by kind, those hit, and the false events per 1,000 rows of a column or of the joint score."""

    number: Mapping[str, int]
    hit: Mapping[str, int]
    false_events: float


def basket_trial(calibration: Calibration, *, baskets: int = _BASKETS) -> tuple[BasketTrial, BasketTrial]:
    """The results of the joint score, and of each column alone, where a fault is hit if any column reports it."""
    items = [
        basket(np.random.Generator(np.random.Philox(np.random.SeedSequence((0, _STREAM + number)))))
        for number in range(baskets)
    ]

    def columns(item: LabelledSeries) -> list[Series]:
        series = item.series
        return [replace(series, values={name: series.values[name]}, column=name) for name in series.values]

    joint_items = [(item, [replace(item.series, joint=True)]) for item in items]
    return _trial(joint_items, calibration), _trial([(item, columns(item)) for item in items], calibration)


def _trial(scored: list[tuple[LabelledSeries, list[Series]]], calibration: Calibration) -> BasketTrial:
    """Counts hits and false events; each item comes with the series that are scored for it."""
    number, hit = Counter[str](), Counter[str](dict.fromkeys(KINDS, 0))
    false_events = rows = 0
    for item, parts in scored:
        length = len(item.series)
        is_reported = np.zeros((len(parts), length), bool)
        for index, part in enumerate(parts):
            expected = calibration.budget().expected(part)
            is_reported[index] = report(score(part, calibration), expected, calibration.control()).scores > 0
        is_reported[:, : probation(length)] = False
        rows += len(parts) * (length - probation(length))
        inside = np.zeros(length, bool)
        for (first, last), window in zip(
            window_rows(item.series.times_ns, item.windows).tolist(), item.windows, strict=True
        ):
            kind = window.kind.partition(":")[0]
            number[kind] += 1
            hit[kind] += bool(is_reported[:, first : last + 1 + _ROWS_AFTER_FAULT].any())
            inside[first : last + 1 + _ROWS_AFTER_FAULT] = True
        false_events += int(is_reported[:, ~inside].sum())
    return BasketTrial(number=number, hit=hit, false_events=1000 * false_events / max(rows, 1))
