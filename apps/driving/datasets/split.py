"""Which frames validate where a data set comes without a split: every fifth drive, log, scene or frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apps.driving.datasets.frame_data import Split
from shared.errors import InvalidInputError

EVERY = 5


def every_fifth(names: Sequence[str], split: Split) -> list[str]:
    """The names of one split, in order: each fifth validates; of fewer the last one; the only one does both."""
    names = sorted(names)
    validating = set(names[EVERY - 1 :: EVERY] or names[-1:])
    if split == "validation":
        return [name for name in names if name in validating]
    return [name for name in names if name not in validating] or names


def names_in(path: Path) -> list[str]:
    """The names in a text file, one a line."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as a list of names, one a line: {error}") from error


def listing_digest(root: Path, files: Sequence[Path], settings: str) -> str:
    """SHA-256 of settings and of the files' places below ``root``, their sizes and when they were last written."""
    import hashlib

    hasher = hashlib.sha256(settings.encode())
    for file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from error
        hasher.update(f"{file.relative_to(root).as_posix()} {state.st_size} {state.st_mtime_ns}\n".encode())
    return hasher.hexdigest()
