"""Places of admitted requests. A stalled upload loses its place if another request needs it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Upload(Protocol):
    """A request body that is being received."""

    def give_up_if_stalled(self) -> bool:
        """Gives the upload up if it is stalled, with an error to its client; returns whether it did."""
        ...


class Place:
    """The place of one request of a group of keys. ``upload`` is set while the server waits for the request's body."""

    upload: Upload | None = None

    def __init__(self, group: str | None = None) -> None:
        self.group = group


def reclaim_stalled_place(places: Iterable[Place]) -> Place | None:
    """Gives up the first stalled upload, and returns its place; None if no upload is stalled."""
    return next((place for place in places if place.upload is not None and place.upload.give_up_if_stalled()), None)
