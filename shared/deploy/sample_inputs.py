"""Reads one of an application's samples, on which the programs of its networks are timed and compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from shared.app import Sample
from shared.errors import InvalidInputError

T = TypeVar("T")


def read_sample(samples: Sequence[Sample], read: Callable[[Sequence[Path]], T | None]) -> T:
    """Returns the first result of ``read`` on a sample's files that is not None; real samples come first.

    Raises ``InvalidInputError`` if none of the samples can be used.
    """
    for sample in sorted(samples, key=lambda sample: sample.synthetic):
        with tempfile.TemporaryDirectory(prefix="trivium-sample-") as folder:
            try:
                result = read(sample.files(Path(folder)))
            except (InvalidInputError, OSError):  # the files of a real sample are in the user's hands
                continue
            if result is not None:
                return result
    raise InvalidInputError(f"none of the samples can be used: {', '.join(sample.name for sample in samples)}")
