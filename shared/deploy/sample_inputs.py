"""One input out of an application's samples: what the programs of its networks are timed and compared on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from shared.app import Sample
from shared.errors import InvalidInputError

T = TypeVar("T")


def read_sample(samples: Sequence[Sample], read: Callable[[Sequence[Path]], T | None]) -> T:
    """What ``read`` makes of the files of the first sample of which it makes anything, the real ones first.

    Refuses samples that cannot be read, all of them.
    """
    for sample in sorted(samples, key=lambda one: one.synthetic):
        with tempfile.TemporaryDirectory(prefix="trivium-sample-") as folder:
            try:
                found = read(sample.files(Path(folder)))
            except (InvalidInputError, OSError):  # the files of a real sample are the user's
                continue
            if found is not None:
                return found
    raise InvalidInputError(f"none of the samples can be used: {', '.join(sample.name for sample in samples)}")
