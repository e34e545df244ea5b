"""The library's quantile loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_forecasting.metrics import QuantileLoss


def quantile_loss(levels: Sequence[float]) -> QuantileLoss:
    """pytorch-forecasting's loss at the quantile ``levels``."""
    from pytorch_forecasting.metrics import QuantileLoss

    return QuantileLoss(list(levels))
