"""Errors of a full disk, and checks for one before anything is written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import OperationalError

from shared.errors import DISK_FULL, InvalidInputError

MIN_FREE_BYTES = 64_000_000
"""With less free space than this a store counts as full, because an answer with its files may take as much."""

_REMEDY = "free space there, delete cases, or set TRIVIUM_KEEP_DAYS or TRIVIUM_KEEP_CASES"


class DiskFull(InvalidInputError):
    """Something could not be written because the disk is full (HTTP status 507)."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}: the disk of the store is full; {_REMEDY}", status=507)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error from the file system or from SQLite means that the disk is full."""
    if isinstance(error, OperationalError):
        return "is full" in str(error.orig)
    return isinstance(error, OSError) and error.errno in DISK_FULL


@contextmanager
def raising_disk_full(problem: str) -> Iterator[None]:
    """Turns errors of a full disk inside the context into ``DiskFull``; ``problem`` says what could not be done."""
    try:
        yield
    except (OSError, OperationalError) as error:
        if is_disk_full(error):
            raise DiskFull(problem) from error
        raise


def has_space(folder: Path, size: int) -> bool:
    """Whether the disk of a folder has space for ``size`` bytes and does not count as full afterwards."""
    return shutil.disk_usage(folder).free - size >= MIN_FREE_BYTES


def disk_fault(folder: Path) -> str | None:
    """The reason why nothing can be written to a folder, found by writing a small file there; None if there is none."""
    try:
        free = shutil.disk_usage(folder).free
        if free < MIN_FREE_BYTES:
            return f"the disk of the store has {free / 1e6:.0f} MB left; {_REMEDY}"
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 12))
            probe.flush()
    except OSError as error:
        return f"the store cannot be written ({error.strerror}); {_REMEDY}"
    return None
