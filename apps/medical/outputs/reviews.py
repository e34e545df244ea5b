"""Reviewed cases: what a reader says of the findings is checked against the scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import InvalidInputError
from shared.review import Reviewing

if TYPE_CHECKING:
    from apps.medical.schemas import MedicalMissed


def _count(result: Mapping[str, Any]) -> int:
    return len(result["findings"])


def _check(missed: Sequence[MedicalMissed], result: Mapping[str, Any]) -> None:
    """Refuses a nodule whose centre is no place in the scan."""
    volume = result["volume"]
    for one in missed:
        offset = np.array(one["centre_lps_mm"]) - volume["origin_lps_mm"]
        index_ijk = np.array(volume["direction"]).T @ offset / volume["spacing_mm"]
        if (index_ijk < -0.5).any() or (index_ijk > np.array(volume["size_ijk"]) - 0.5).any():
            at = ", ".join(f"{value:g}" for value in one["centre_lps_mm"])
            raise InvalidInputError(f"the missed nodule at {at} mm lies outside of the scan; give its centre in LPS mm")


REVIEWING = Reviewing(count=_count, check=_check)
