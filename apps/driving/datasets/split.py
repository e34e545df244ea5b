"""The split of data sets without an official one: every fifth drive, log, scene or frame is for validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apps.driving.datasets.frame_data import Split
from shared.errors import InvalidInputError

VALIDATION_STRIDE = 5


def every_fifth(names: Sequence[str], split: Split) -> list[str]:
    """The names of one split, in order: every fifth is for validation, or the last of fewer than five; a single name is
    in both splits."""
    names = sorted(names)
    validating = set(names[VALIDATION_STRIDE - 1 :: VALIDATION_STRIDE] or names[-1:])
    if split == "validation":
        return [name for name in names if name in validating]
    return [name for name in names if name not in validating] or names


def names_in(path: Path) -> list[str]:
    """The names in a text file, one per line."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as a list of names, one per line: {error}") from error


def listing_digest(root: Path, files: Sequence[Path], settings: str) -> str:
    """SHA-256 of settings and of the files' paths below ``root``, sizes and modification times."""
    import hashlib

    hasher = hashlib.sha256(settings.encode())
    for file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from error
        hasher.update(f"{file.relative_to(root).as_posix()} {state.st_size} {state.st_mtime_ns}\n".encode())
    return hasher.hexdigest()
