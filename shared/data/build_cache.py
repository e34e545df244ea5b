"""Data that is built once, on all processor cores, and kept in the user's cache folder."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from joblib import Parallel, delayed  # type: ignore[import-untyped]
from joblib.externals.loky import ProcessPoolExecutor, get_reusable_executor  # type: ignore[import-untyped]

from shared.atomic_files import file_lock, publish
from shared.data.registry import cache_folder
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar
from shared.threads import usable_cores

Result = TypeVar("Result")
KEPT_DAYS = 30
"""Packs that were not used for this many days are deleted when another pack is built."""


def packs_folder() -> Path:
    """The folder of the packs: ``trivium/packs`` in the user's cache folder (XDG base directories)."""
    return cache_folder().parent / "packs"


def get_or_build(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of the pack ``name``. If it does not exist, ``make`` fills it first.

    If several processes ask for it at the same time, one builds it and the others wait. The folder appears only when it
    is complete. Deletes what killed processes left incomplete, and packs that were not used for ``KEPT_DAYS``.
    """
    pack = packs_folder() / name
    if not pack.is_dir():
        try:
            pack.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"{pack.parent} cannot be created: {error.strerror}; set XDG_CACHE_HOME to a writable folder"
            ) from error
        _remove_abandoned(pack.parent)
        remove_packs(unused_days=KEPT_DAYS)
        with file_lock(pack.with_name(f"{name}.lock")):
            if not pack.is_dir():
                temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=pack.parent))
                try:
                    make(temporary)
                    publish(temporary, pack)
                except BaseException:
                    shutil.rmtree(temporary, ignore_errors=True)
                    raise
    with suppress(OSError):  # the pack may belong to another user or be on a read-only disk
        os.utime(pack)
    return pack


def remove_packs(unused_days: float = 0.0) -> int:
    """Deletes the packs that were not used for ``unused_days`` days and returns their size in bytes.

    Keeps packs that are being built, and all lock files: a process that waits for a lock and one that comes later must
    use the same file.
    """
    freed, cutoff = 0, time.time() - unused_days * 86400
    for pack in packs_folder().glob("[!.]*"):
        with suppress(OSError):
            if pack.is_dir() and pack.stat().st_mtime <= cutoff:
                with file_lock(pack.with_name(f"{pack.name}.lock"), wait=False):
                    freed += size_of(pack)
                    shutil.rmtree(pack, ignore_errors=True)
    return freed


def size_of(folder: Path) -> int:
    """The total size in bytes of the files below a folder; 0 if it does not exist."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


def _remove_abandoned(folder: Path) -> None:
    """Deletes incomplete packs whose lock is free, because the process that built them was killed."""
    for temporary in folder.glob(".*-*"):
        name = temporary.name[1:].rpartition("-")[0]
        with suppress(BlockingIOError), file_lock(folder / f"{name}.lock", wait=False):
            shutil.rmtree(temporary, ignore_errors=True)


def parallel_map(function: Callable[..., None], calls: Iterable[tuple[Any, ...]], title: str) -> None:
    """Calls ``function`` with each tuple of arguments, in worker processes with one core each.

    The workers are not forked, because the caller may use a GPU and threads, and do not import the caller's script.
    A progress bar with ``title`` appears on standard error.
    """
    work = list(calls)
    processes = min(usable_cores(), len(work))
    if processes < 2:
        for arguments in progress_bar(work, len(work), title):
            function(*arguments)
        return
    parallel = Parallel(n_jobs=processes, batch_size=1, return_as="generator_unordered")
    try:
        done = parallel(delayed(function)(*arguments) for arguments in work)
        deque(progress_bar(done, len(work), title), maxlen=0)
    finally:
        get_reusable_executor().shutdown(wait=True)


def parallel_imap(function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """Yields the results of ``function`` in the order of the calls, computed in workers like those of ``parallel_map``.

    At most one result per core plus one is computed ahead of the consumer. With one call or one core, the results are
    computed in this process.
    """
    work = deque(calls)
    processes = min(usable_cores(), len(work))
    if processes < 2:
        yield from (function(*arguments) for arguments in work)
        return
    executor = ProcessPoolExecutor(processes, env={"OMP_NUM_THREADS": "1"})
    try:
        pending = deque(executor.submit(function, *work.popleft()) for _ in range(min(processes + 1, len(work))))
        while pending:
            result: Result = pending.popleft().result()
            if work:
                pending.append(executor.submit(function, *work.popleft()))
            yield result
    finally:
        executor.shutdown(wait=True, kill_workers=True)
