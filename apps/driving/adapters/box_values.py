"""Numbers of annotated boxes that no box on a road has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import InvalidInputError

MOST = 1e6
"""Metres from the vehicle, or pixels from a corner."""


def box_numbers(values: ArrayLike, what: str) -> NDArray[Any]:
    """The values as float64; refuses those that are not finite, and those above a million.

    Raises ``ValueError`` or ``TypeError`` for what are no numbers.
    """
    found = np.array(values, np.float64)
    if not (np.abs(found) <= MOST).all():
        raise InvalidInputError(f"{what} holds boxes with numbers that are not finite, or above a million")
    return found
