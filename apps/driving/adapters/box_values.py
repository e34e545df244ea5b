"""Checks that the numbers of annotated boxes are plausible for objects on a road."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import InvalidInputError

MAX_ABS_VALUE = 1e6
"""Metres from the vehicle, or pixels from the image corner."""
MAX_SIDE_M, MAX_DISTANCE_M = 100.0, 2000.0
"""No object on a street is longer than the first, and none is labelled farther from the sensor than the second."""


def box_numbers(values: ArrayLike, source: str) -> NDArray[Any]:
    """The values as float64. Raises ``InvalidInputError`` if one is not finite, or its absolute value above a million.

    Raises ``ValueError`` or ``TypeError`` if they are not numbers.
    """
    found = np.array(values, np.float64)
    if not (np.abs(found) <= MAX_ABS_VALUE).all():
        raise InvalidInputError(f"{source} has boxes with numbers that are not finite or above a million")
    return found


def check_units(name: str, size_m: Sequence[float], centre_m: Sequence[float], source: str) -> None:
    """Raises ``InvalidInputError`` if a labelled object has a size or position that no object has in metres."""
    if max(size_m) > MAX_SIDE_M:
        sides = " x ".join(f"{side:g}" for side in size_m)
        raise InvalidInputError(
            f"{source}: a {name} of {sides} metres; labels must be in metres; are these millimetres or centimetres?"
        )
    if max(map(abs, centre_m)) > MAX_DISTANCE_M:
        place = ", ".join(f"{value:g}" for value in centre_m)
        raise InvalidInputError(
            f"{source}: a {name} at ({place}) metres; labels must be in metres from the sensor, not in another unit or "
            "in a global frame"
        )
