"""Inputs for timing and quantising a network's programs: windows of a sample, or series that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.finance.adapters import read_contents
from apps.finance.datasets.splits import training_part
from apps.finance.datasets.table import Table
from apps.finance.datasets.windows import Windows, covariate_table
from apps.finance.models.calendar import columns_taken
from apps.finance.samples import samples
from apps.finance.types import FinanceInput, Series
from shared.deploy.sample_inputs import read_sample
from shared.errors import InvalidInputError
from shared.recipe import DataConfig

if TYPE_CHECKING:
    from torch import Tensor


def example_windows(input: FinanceInput, batch: int) -> dict[str, Tensor]:
    """``batch`` evenly chosen windows of one series; a real series if one is available."""
    import torch

    def read(files: Sequence[Path]) -> Series | None:
        return next(iter(read_contents(files[0]).series), None)

    series = read_sample(samples(), read)
    table = covariate_table(series, context=input.context, horizon=input.horizon)
    windows = Windows([table], context=input.context, horizon=input.horizon, stride=1)
    arrays = windows.arrays(np.linspace(0, len(windows) - 1, batch).round().astype(np.int64))
    return {name: torch.from_numpy(arrays[name]) for name in ("encoder_cont", "decoder_cont", "static")}


def training_series(data: DataConfig, input: FinanceInput, max_series: int) -> Iterator[Series] | None:
    """The training rows of at most ``max_series`` evenly chosen series, for a network over a table's columns.

    None for a network that takes only the value, for which the samples serve. Raises InvalidInputError if ``data`` is
    not a table.
    """
    library = input.library
    if library is None:
        return None
    if not isinstance(data, Table):
        raise InvalidInputError(
            "the network takes the columns of a table; name the table that it was trained on: --data table --data.path "
            "FILE"
        )
    items = data.with_covariates(columns_taken(library)).cases()
    chosen = items[:: -(-len(items) // max_series)]
    return (training_part(item.series, data.validation_share) for item in chosen)
