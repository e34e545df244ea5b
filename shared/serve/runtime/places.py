"""The place that an admitted request has in the server. An upload that stalls loses it to a request that finds none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Upload(Protocol):
    """A request's body while it comes."""

    def give_way(self) -> bool:
        """Whether it stalls: then it is given up, and its client is answered so."""
        ...


class Place:
    """The place of one request, of a group of keys. ``upload`` is its body while its client is waited for."""

    upload: Upload | None = None

    def __init__(self, group: str | None = None) -> None:
        self.group = group


def take_from_stalled(places: Iterable[Place]) -> Place | None:
    """The first place whose upload stalls, which is given up; None where none does."""
    return next((place for place in places if place.upload is not None and place.upload.give_way()), None)
