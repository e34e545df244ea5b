"""Reviewed cases: what an annotator says of the boxes is checked against the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shared.errors import InvalidInputError
from shared.review import Reviewing

if TYPE_CHECKING:
    from apps.driving.schemas import DrivingMissed


def _count(result: Mapping[str, Any]) -> int:
    return len(result["boxes"])


def _check(missed: Sequence[DrivingMissed], result: Mapping[str, Any]) -> None:
    """Refuses an object in a frame that is not there."""
    names = {frame["name"] for frame in result["frames"]}
    for one in missed:
        if one["frame"] not in names:
            raise InvalidInputError(
                f"the case has no frame {one['frame']!r}; name a frame of the missed {one['name']} as in frames"
            )


REVIEWING = Reviewing(count=_count, check=_check)
