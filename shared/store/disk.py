"""A disk that is full: named in a sentence where something could not be written, and found before that."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import OperationalError

from shared.errors import InvalidInputError

MIN_FREE_BYTES = 64_000_000
"""With less space than this a store is said to be full: an answer with its files may take as much."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REMEDY = "free space there, delete cases, or set TRIVIUM_KEEP_DAYS or TRIVIUM_KEEP_CASES"


class DiskFull(InvalidInputError):
    """Something could not be written for want of space (507)."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: the disk of the store is full; {_REMEDY}", status=507)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error is that a file, or SQLite's database, found no space."""
    if isinstance(error, OperationalError):
        return "is full" in str(error.orig)
    return isinstance(error, OSError) and error.errno in _FULL


@contextmanager
def full_disk_named(what: str) -> Iterator[None]:
    """Raises ``DiskFull`` where what is written inside finds no space; ``what`` says what could not be done."""
    try:
        yield
    except (OSError, OperationalError) as error:
        if is_disk_full(error):
            raise DiskFull(what) from error
        raise


def has_space(folder: Path, count: int) -> bool:
    """Whether the disk of a folder has space for ``count`` bytes, and is not full with them."""
    return shutil.disk_usage(folder).free - count >= MIN_FREE_BYTES


def disk_fault(folder: Path) -> str | None:
    """Why nothing can be kept in a folder, found by writing a little there; None where it can be."""
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
