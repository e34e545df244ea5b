"""A plausibility check: can the values of an image be Hounsfield units?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidInputError

MIN_AIR = 0.001
"""The minimum fraction of a chest CT's voxels that are lung or air, not counting padding outside the field of view."""


def require_hounsfield(name: str, values: NDArray[Any]) -> None:
    """Raises ``InvalidInputError`` if the values cannot be HU: a chest CT has tissue, and air near -1000.

    Values of -1024 and below do not count as air, because they mark pixels outside the field of view on any scale.
    """
    low, high = float(values.min()), float(values.max())
    air = np.count_nonzero((values > -1020) & (values < -500)) / values.size
    if high - low < 300 or air < MIN_AIR:
        raise InvalidInputError(
            f"{name} has values from {low:g} to {high:g}; expected Hounsfield units, with air near -1000"
        )
