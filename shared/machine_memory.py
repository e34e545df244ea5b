"""The memory of this machine, or of the container that the process runs in."""

from __future__ import annotations

import os
from contextlib import suppress

from shared.control_group import memory_limit_bytes


def machine_memory_bytes() -> int | None:
    """The memory in bytes that a process can use here; None if it is unknown."""
    limits = [memory_limit_bytes(), installed_memory_bytes()]
    return min((limit for limit in limits if limit is not None), default=None)


def installed_memory_bytes() -> int | None:
    """The memory of the machine in bytes, whatever the process may use of it; None if it is unknown."""
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
