"""Atomic writes and removal of files and directories, file locks between processes, and detection of changed files."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock, Timeout

FileState: TypeAlias = tuple[int, int, int] | None


def publish(temporary: Path, final: Path) -> None:
    """Flushes a finished directory and everything in it to disk, then renames it to ``final``, which must not exist."""
    for path in (*temporary.rglob("*"), temporary):
        _flush(path)
    temporary.rename(final)
    _flush(final.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file atomically, replacing an existing one; a text is encoded as UTF-8."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def remove_folder(folder: Path) -> None:
    """Removes a folder, if it exists, to which other processes may still be writing.

    It is renamed first: they then find no folder to write to. Otherwise a file written while its contents are being
    removed would stay, and the folder with it.
    """
    removed = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        folder.rename(removed)
    except OSError:  # there is none, or it cannot be renamed
        removed = folder
    shutil.rmtree(removed, ignore_errors=True)


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock file ``path``, which only one process can hold at a time; creates the file if it is missing.

    The lock is released when its process ends, however it ends. Raises ``BlockingIOError`` if another process holds it
    and ``wait`` is false.
    """
    try:
        lock = FileLock(path, timeout=-1 if wait else 0).acquire()
    except Timeout as error:
        raise BlockingIOError(f"{path} is held by another process") from error
    with lock:
        yield


def is_locked(path: Path) -> bool:
    """Whether a process on this machine holds ``file_lock(path)`` now. Neither takes the lock nor creates the file."""
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


def file_state(path: Path) -> FileState:
    """What changes if a file is written again or replaced; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
