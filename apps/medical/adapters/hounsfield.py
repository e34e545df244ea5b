"""Whether values can be Hounsfield units at all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidInputError

MIN_AIR = 0.001
"""The share of a chest CT that is lung or air at the least, and is not marked as lying outside the field."""


def must_be_hounsfield(name: str, values: NDArray[Any]) -> None:
    """Refuses an image of a scale that cannot be HU: a CT of a chest has tissue, and air near -1000.

    Values of -1024 and below do not count for air: they mark what was not imaged on whatever scale.
    """
    low, high = float(values.min()), float(values.max())
    air = np.count_nonzero((values > -1020) & (values < -500)) / values.size
    if high - low < 300 or air < MIN_AIR:
        raise InvalidInputError(
            f"{name} holds values from {low:g} to {high:g}; expected Hounsfield units, with air near -1000"
        )
