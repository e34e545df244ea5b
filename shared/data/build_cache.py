"""Data that is made once, by all processors, and kept in the user's cache."""

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
from shared.data.registry import cache
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar

Made = TypeVar("Made")
KEPT_DAYS = 30
"""A pack that nobody has asked for in so many days is taken away when another is made."""


def packs() -> Path:
    """Where packs are kept: ``trivium/packs`` in the user's cache folder (XDG base directories)."""
    return cache().parent / "packs"


def get_or_build(name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` among the packs, filled by ``make`` first where it is not there.

    Of the processes that ask for it at the same time one makes it and the others wait. The folder appears whole. What
    a process left half made when it was killed is taken away, as are packs that nobody asked for in ``KEPT_DAYS``.
    """
    home = packs() / name
    if not home.is_dir():
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"{home.parent} cannot be made: {error.strerror}; set XDG_CACHE_HOME to a folder"
            ) from error
        _remove_abandoned(home.parent)
        remove_packs(unused_days=KEPT_DAYS)
        with file_lock(home.with_name(f"{name}.lock")):
            if not home.is_dir():
                aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=home.parent))
                try:
                    make(aside)
                    publish(aside, home)
                except BaseException:
                    shutil.rmtree(aside, ignore_errors=True)
                    raise
    with suppress(OSError):  # of another user's, or on a disk that is read only
        os.utime(home)
    return home


def remove_packs(unused_days: float = 0.0) -> int:
    """Takes away the packs that nobody asked for in so many days, and returns how many bytes they had.

    One that is being made stays, and so do the locks: who waits for one must get the same as who comes after.
    """
    freed, before = 0, time.time() - unused_days * 86400
    for home in packs().glob("[!.]*"):
        with suppress(OSError):
            if home.is_dir() and home.stat().st_mtime <= before:
                with file_lock(home.with_name(f"{home.name}.lock"), wait=False):
                    freed += size_of(home)
                    shutil.rmtree(home, ignore_errors=True)
    return freed


def size_of(folder: Path) -> int:
    """The bytes of the files in a folder; 0 where there is none."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


def _remove_abandoned(folder: Path) -> None:
    """Takes away what is half made and whose lock nobody holds: its maker was killed."""
    for aside in folder.glob(".*-*"):
        name = aside.name[1:].rpartition("-")[0]
        with suppress(BlockingIOError), file_lock(folder / f"{name}.lock", wait=False):
            shutil.rmtree(aside, ignore_errors=True)


def parallel_map(function: Callable[..., None], calls: Iterable[tuple[Any, ...]], title: str) -> None:
    """Calls ``function`` with each tuple of arguments, in processes of their own on one core each.

    The processes are fresh, for the caller may hold a GPU and threads, and do not import the caller's script.
    Standard error shows how far it is, under ``title``.
    """
    work = list(calls)
    processes = min(len(os.sched_getaffinity(0)), len(work))
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


def made_ahead(function: Callable[..., Made], calls: Iterable[tuple[Any, ...]]) -> Iterator[Made]:
    """The results of ``function`` in the order of the calls, made in processes as those of ``parallel_map``.

    No more than one for each core and one besides are made before they are taken. One call, or one core: made here.
    """
    work = deque(calls)
    processes = min(len(os.sched_getaffinity(0)), len(work))
    if processes < 2:
        yield from (function(*arguments) for arguments in work)
        return
    executor = ProcessPoolExecutor(processes, env={"OMP_NUM_THREADS": "1"})
    try:
        coming = deque(executor.submit(function, *work.popleft()) for _ in range(min(processes + 1, len(work))))
        while coming:
            made: Made = coming.popleft().result()
            if work:
                coming.append(executor.submit(function, *work.popleft()))
            yield made
    finally:
        executor.shutdown(wait=True, kill_workers=True)
