"""Progress on standard error: a bar in a terminal, otherwise one line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
INTERVAL_S = 60.0
FIRST_LINE_S = 2.0
"""Work that takes less time prints nothing."""


def progress_bar(items: Iterable[Item], total: int | None, title: str) -> Iterator[Item]:
    """Yields the items, and shows under ``title`` how many were done, out of ``total`` if that is known."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, title, total=total, console=console, transient=True)
        return
    started = time.monotonic()
    due = started + FIRST_LINE_S
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now >= due:
            left = "" if total is None else f" of {total}, {(now - started) * (total - done) / done / 60:.0f} min left"
            sys.stderr.write(f"{title}: {done}{left}\n")
            sys.stderr.flush()
            due = now + INTERVAL_S
