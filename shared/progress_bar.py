"""How far a long piece of work is, on standard error: a bar in a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
EVERY_S = 60.0
SOON_S = 2.0
"""Work that takes less says nothing."""


def progress_bar(items: Iterable[Item], total: int | None, title: str) -> Iterator[Item]:
    """Passes the items on, and says under ``title`` how many there were, of ``total`` where that is known."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, title, total=total, console=console, transient=True)
        return
    begun = time.monotonic()
    due = begun + SOON_S
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now >= due:
            left = "" if total is None else f" of {total}, {(now - begun) * (total - done) / done / 60:.0f} min left"
            sys.stderr.write(f"{title}: {done}{left}\n")
            sys.stderr.flush()
            due = now + EVERY_S
