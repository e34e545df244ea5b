"""A table of hourly loads with covariates, for tests of networks that take these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from apps.finance.datasets.table import Table
from apps.finance.models.library_tft import LibraryForecaster
from apps.finance.recipes import tiny
from apps.finance.types import FinanceInput, LibraryTFT

ROWS, INPUT = 400, FinanceInput(context=24, horizon=4)
TRAINING = 320
"""The number of training rows of each series: all but the last fifth."""


def frame(names: str = "ab") -> pd.DataFrame:
    """Hourly loads that follow a temperature and holidays."""
    parts = []
    for seed, name in enumerate(names):
        generator, hours = np.random.default_rng(seed), np.arange(ROWS)
        temperature = 10 + 8 * np.sin(hours / 37) + generator.normal(size=ROWS)
        holiday = np.where(hours // 24 % 5 == 3, "new year", np.where(hours // 24 % 7 == 5, "easter", ""))
        load = 50 * (seed + 1) + 3 * temperature - 20 * (holiday != "") + generator.normal(size=ROWS)
        times = pd.date_range("2024-01-01", periods=ROWS, freq="h")
        columns = {"time": times, "region": name, "load": load, "temperature": temperature, "holiday": holiday}
        parts.append(pd.DataFrame({**columns, "wind": generator.normal(size=ROWS)}))
    return pd.concat(parts, ignore_index=True)


def written(folder: Path, table: pd.DataFrame, name: str = "load.csv") -> Path:
    table.to_csv(folder / name, index=False)
    return folder / name


def table(path: Path, **settings: Any) -> Table:
    known = {"known": ("temperature", "holiday"), "observed": ("wind",), "time": "time", "value": "load"}
    return Table(path=str(path), **{"series": "region", **known, **settings})


def library(data: Table) -> LibraryTFT:
    found = data.fit_input(INPUT).library
    assert found is not None
    return found


def forecaster(data: Table) -> LibraryForecaster:
    torch.manual_seed(0)
    model = tiny().model.build(data.fit_input(INPUT))
    assert isinstance(model, LibraryForecaster)
    return model.eval()


class Knowing(LibraryForecaster):
    """A network that knows exactly how ``frame`` computes the load, except for the noise."""

    def forward(self, reals: torch.Tensor, categories: torch.Tensor, target_scale: torch.Tensor) -> torch.Tensor:
        mean, deviation = self.settings.scalers["of_temperature"]
        temperature = reals[:, self.context :, self.settings.network["x_reals"].index("of_temperature")]
        names = self.settings.network["x_categoricals"]
        code = categories[:, self.context :, names.index("of_holiday")]
        ordinary = code == self.settings.categories["of_holiday"][""]
        level = 50.0 * categories[:, self.context :, names.index("series")]
        load = level + 3 * (mean + deviation * temperature) - 20 * (~ordinary).float()
        return load[..., None] + torch.tensor([-2.05, -1.28, -0.67, 0.0, 0.67, 1.28, 2.05])
