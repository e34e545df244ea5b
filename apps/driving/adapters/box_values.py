"""Numbers of annotated boxes that no box on a road has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import InvalidInputError

MOST = 1e6
"""Metres from the vehicle, or pixels from a corner."""
LONGEST_M, FARTHEST_M = 100.0, 2000.0
"""No object of a street is longer than the first; none is labelled farther from the sensor than the second."""


def box_numbers(values: ArrayLike, what: str) -> NDArray[Any]:
    """The values as float64; refuses those that are not finite, and those above a million.

    Raises ``ValueError`` or ``TypeError`` for what are no numbers.
    """
    found = np.array(values, np.float64)
    if not (np.abs(found) <= MOST).all():
        raise InvalidInputError(f"{what} holds boxes with numbers that are not finite, or above a million")
    return found


def refuse_other_units(name: str, size_m: Sequence[float], place_m: Sequence[float], what: str) -> None:
    """Refuses a labelled object of a size or at a place that no object has in metres."""
    if max(size_m) > LONGEST_M:
        sides = " x ".join(f"{side:g}" for side in size_m)
        raise InvalidInputError(
            f"{what}: a {name} of {sides} metres; labels are in metres, and these look like millimetres or centimetres"
        )
    if max(map(abs, place_m)) > FARTHEST_M:
        place = ", ".join(f"{value:g}" for value in place_m)
        raise InvalidInputError(
            f"{what}: a {name} at ({place}) metres; labels are in metres from the sensor, not in another unit or the "
            "world's frame"
        )
