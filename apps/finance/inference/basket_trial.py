"""Synthetic baskets of shares scored jointly, and column by column, with the same budget in all."""

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
_AFTER = 12
"""A fault may be told of so many rows after it: the joint score is a mean over 6 rows."""


@dataclass(frozen=True, slots=True)
class BasketTrial:
    """Faults by kind and those hit, and false events a 1,000 rows of a column or of the joint score."""

    number: Mapping[str, int]
    hit: Mapping[str, int]
    false_events: float


def basket_trial(calibration: Calibration, *, baskets: int = _BASKETS) -> tuple[BasketTrial, BasketTrial]:
    """Of the joint score, and of each column alone: there a fault is hit where any column tells of it."""
    items = [
        basket(np.random.Generator(np.random.Philox(np.random.SeedSequence((0, _STREAM + number)))))
        for number in range(baskets)
    ]

    def columns(item: LabelledSeries) -> list[Series]:
        series = item.series
        return [replace(series, values={name: series.values[name]}, column=name) for name in series.values]

    together = [(item, [replace(item.series, joint=True)]) for item in items]
    return _trial(together, calibration), _trial([(item, columns(item)) for item in items], calibration)


def _trial(scored: list[tuple[LabelledSeries, list[Series]]], calibration: Calibration) -> BasketTrial:
    number, hit = Counter[str](), Counter[str](dict.fromkeys(KINDS, 0))
    false_events = rows = 0
    for item, parts in scored:
        length = len(item.series)
        told = np.zeros((len(parts), length), bool)
        for place, part in enumerate(parts):
            expected = calibration.budget().expected(part)
            told[place] = report(score(part, calibration), expected, calibration.control()).scores > 0
        told[:, : probation(length)] = False
        rows += len(parts) * (length - probation(length))
        inside = np.zeros(length, bool)
        for (first, last), window in zip(
            window_rows(item.series.times_ns, item.windows).tolist(), item.windows, strict=True
        ):
            kind = window.kind.partition(":")[0]
            number[kind] += 1
            hit[kind] += bool(told[:, first : last + 1 + _AFTER].any())
            inside[first : last + 1 + _AFTER] = True
        false_events += int(told[:, ~inside].sum())
    return BasketTrial(number=number, hit=hit, false_events=1000 * false_events / max(rows, 1))
