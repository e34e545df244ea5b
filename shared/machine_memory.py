"""The memory of this machine, or of the container that the process runs in."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def machine_memory_bytes() -> int | None:
    """The memory in bytes that a process can use here; None if it is unknown."""
    limits = []
    with suppress(OSError, ValueError, AttributeError):
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # ValueError: "max" means no limit
            limits.append(int(Path(place).read_text()))
    return min(limits, default=None)
