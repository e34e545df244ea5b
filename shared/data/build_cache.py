"""Data that is made once, by all processors, and kept in the user's cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from joblib import Parallel, delayed  # type: ignore[import-untyped]
from joblib.externals.loky import ProcessPoolExecutor, get_reusable_executor  # type: ignore[import-untyped]

from shared.atomic_files import file_lock, publish
from shared.data.registry import cache
from shared.errors import InvalidInputError

Made = TypeVar("Made")


def packs() -> Path:
    """Where packs are kept: ``trivium/packs`` in the user's cache folder (XDG base directories)."""
    return cache().parent / "packs"


def get_or_build(name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` among the packs, filled by ``make`` first where it is not there.

    Of the processes that ask for it at the same time one makes it and the others wait. The folder appears whole.
    """
    home = packs() / name
    if not home.is_dir():
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"{home.parent} cannot be made: {error.strerror}; set XDG_CACHE_HOME to a folder"
            ) from error
        with file_lock(home.with_name(f"{name}.lock")):
            if not home.is_dir():
                aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=home.parent))
                try:
                    make(aside)
                    publish(aside, home)
                except BaseException:
                    shutil.rmtree(aside, ignore_errors=True)
                    raise
    return home


def parallel_map(function: Callable[..., None], calls: Iterable[tuple[Any, ...]]) -> None:
    """Calls ``function`` with each tuple of arguments, in processes of their own on one core each.

    The processes are fresh, for the caller may hold a GPU and threads, and do not import the caller's script.
    """
    work = list(calls)
    processes = min(len(os.sched_getaffinity(0)), len(work))
    if processes < 2:
        for arguments in work:
            function(*arguments)
        return
    try:
        Parallel(n_jobs=processes, batch_size=1)(delayed(function)(*arguments) for arguments in work)
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
