"""Windows of a series of the samples: what the programs of the network are timed and compared on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.finance.adapters import read_contents
from apps.finance.datasets.windows import Windows, tabulate
from apps.finance.samples import samples
from apps.finance.types import FinanceInput, Series
from shared.deploy.sample_inputs import read_sample

if TYPE_CHECKING:
    from torch import Tensor


def example_windows(input: FinanceInput, batch: int) -> dict[str, Tensor]:
    """So many windows of one series, evenly chosen; a real series where one is at hand."""
    import torch

    def read(files: Sequence[Path]) -> Series | None:
        return next(iter(read_contents(files[0]).series), None)

    series = read_sample(samples(), read)
    table = tabulate(series, context=input.context, horizon=input.horizon)
    windows = Windows([table], context=input.context, horizon=input.horizon, stride=1)
    arrays = windows.arrays(np.linspace(0, len(windows) - 1, batch).round().astype(np.int64))
    return {name: torch.from_numpy(arrays[name]) for name in ("encoder_cont", "decoder_cont", "static")}
