"""The quantile loss of forecasts, also called pinball loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apps.finance.types import Floats


def quantile_loss(values: Floats, quantiles: Floats, levels: Sequence[float]) -> float:
    """The mean over all values and ``levels`` of max(q e, (q - 1) e), for the errors e of ``quantiles`` (..., Q)."""
    error = values[..., None] - quantiles
    level = np.asarray(levels)
    return float(np.maximum(level * error, (level - 1) * error).mean())
