"""How much memory this machine, or the container that the process runs in, has."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def machine_memory_bytes() -> int | None:
    """The bytes of memory that a process may have here; None where that cannot be told."""
    found = []
    with suppress(OSError, ValueError, AttributeError):
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" is none
            found.append(int(Path(place).read_text()))
    return min(found, default=None)
