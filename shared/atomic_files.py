"""Files that appear whole or not at all, and survive a power cut; and locks between processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def publish(aside: Path, final: Path) -> None:
    """Gives a finished directory its name, once everything in it is on the disk. ``final`` must not exist."""
    for path in (*aside.rglob("*"), aside):
        _flush(path)
    aside.rename(final)
    _flush(final.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, a text in UTF-8, that replaces the one of its name at once."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        _flush(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _flush(path.parent)


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock file ``path``, made where it is missing, which one process may hold at a time.

    The lock goes with its process, however that ends. Raises ``BlockingIOError`` where another process holds it and
    ``wait`` is false.
    """
    try:
        lock = FileLock(path, timeout=-1 if wait else 0).acquire()
    except Timeout as error:
        raise BlockingIOError(f"{path} is held by another process") from error
    with lock:
        yield


def is_locked(path: Path) -> bool:
    """Whether a process of this machine holds ``file_lock(path)`` now. It is looked at, not held and not made."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
