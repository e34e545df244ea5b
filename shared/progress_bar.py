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


def progress_bar(items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
    """Passes the items on, and says under ``title`` how many of ``total`` there were."""
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
            left = (now - begun) * (total - done) / done
            sys.stderr.write(f"{title}: {done} of {total}, {left / 60:.0f} min left\n")
            sys.stderr.flush()
            due = now + EVERY_S
