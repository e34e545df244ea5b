"""Named recipes. All of them train on synthetic series alone; no real series is ever trained or calibrated on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from apps.finance.datasets.synth import markets
from apps.finance.datasets.windows import Windows, tabulate
from apps.finance.models.tft import FinanceModel
from apps.finance.task import FinanceTask
from shared.optimizers import AdamW, CosineRestarts
from shared.recipe import Limits, Recipe

_VALIDATION_STREAM = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class FinanceData:
    """Synthetic series: ``series`` of ``rows`` rows each for training, ``validation_series`` others to validate.

    ``stride`` is the number of rows between training windows; ``context`` and ``horizon`` are those of the model.
    """

    series: int = 150
    validation_series: int = 30
    rows: int = 3000
    stride: int = 8
    context: int = 64
    horizon: int = 8
    seed: int = 0

    def train(self, input: Any = None) -> Windows:
        return self._windows(0, self.series, self.stride)

    def validation(self, input: Any = None) -> Windows:
        return self._windows(_VALIDATION_STREAM, self.validation_series, 2 * self.horizon)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "description": f"{self.series} synthetic series (prices, volumes, counts, loads, sensors) of {self.rows} "
            f"rows with {len(markets.FAULTS)} kinds of anomaly, by apps.finance.datasets.synth with seed {self.seed}",
            "synthetic": True,
            "series": self.series,
            "rows": self.series * self.rows,
            "seed": self.seed,
        }

    def _windows(self, stream: int, number: int, stride: int) -> Windows:
        tables = []
        for index in range(number):
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, stream + index))))
            made = markets.series(generator, length=self.rows).series
            tables.append(tabulate(made, context=self.context, horizon=self.horizon))
        return Windows(tables, context=self.context, horizon=self.horizon, stride=stride)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinanceRecipe(Recipe):
    """A recipe of the finance application."""

    model: FinanceModel
    data: FinanceData
    task: FinanceTask


def tiny() -> FinanceRecipe:
    """Seconds on one core: for tests."""
    return FinanceRecipe(
        model=FinanceModel(context=24, horizon=4, hidden=8, hidden_continuous=4, heads=1),
        data=FinanceData(series=4, validation_series=2, rows=400, context=24, horizon=4, stride=4),
        task=FinanceTask(),
        optimizer=AdamW(learning_rate=3e-3, weight_decay=1e-4),
        schedule=CosineRestarts(warmup_steps=3),
        precision="fp32",
        limits=Limits(epochs=2, batch=32, evaluation_batch=128, checkpoint_every=5, log_every=5),
    )


def small() -> FinanceRecipe:
    """About eight minutes on one core of a busy machine."""
    return FinanceRecipe(
        model=FinanceModel(),
        data=FinanceData(),
        task=FinanceTask(),
        optimizer=AdamW(learning_rate=2e-3, weight_decay=1e-4),
        schedule=CosineRestarts(warmup_steps=100, period=4, floor=0.02),
        precision="fp32",
        limits=Limits(epochs=4, minutes=30, batch=64, evaluation_batch=512, min_delta=1e-4, log_every=50),
    )


def large() -> FinanceRecipe:
    """For minutes on one GPU; not yet measured on one."""
    return FinanceRecipe(
        model=FinanceModel(context=96, horizon=8, hidden=32, hidden_continuous=16),
        data=FinanceData(series=1500, validation_series=100, rows=4000, context=96, horizon=8),
        task=FinanceTask(),
        optimizer=AdamW(learning_rate=1.5e-3, weight_decay=1e-4),
        schedule=CosineRestarts(warmup_steps=300, period=10, floor=0.02),
        precision="fp32",
        limits=Limits(
            epochs=10,
            minutes=6.5,
            batch=512,
            evaluation_batch=2048,
            min_delta=1e-4,
            log_every=100,
            checkpoint_every=1000,
            loader_threads=4,
        ),
    )


def full() -> FinanceRecipe:
    """``large`` on more and longer series, for an hour on a GPU."""
    recipe = large()
    return replace(
        recipe,
        data=replace(recipe.data, series=4000, rows=6000),
        schedule=replace(recipe.schedule, period=12),
        limits=replace(recipe.limits, epochs=12, minutes=60),
    )


RECIPES: dict[str, Callable[[], FinanceRecipe]] = {"tiny": tiny, "small": small, "large": large, "full": full}
