"""Brings this process out of collectives that will not come through."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FILES = Path("/proc/self/fd")
_connections: set[str] = set()
"""Sockets of process groups by the kernel's name for them (``socket:[1234]``), which is not given twice."""


@contextmanager
def connecting() -> Iterator[None]:
    """Within it process groups are made; remembers the connections to other processes that this opens."""
    before = set(_sockets())
    yield
    _connections.update(_sockets().keys() - before)


def abort_collectives() -> None:
    """Ends the collectives under way, on whatever threads: each raises an error.

    NCCL has an abort for that. Gloo's does nothing (torch 2.14), and a collective of it waits for the whole timeout
    while the other side is silent; without its connections it ends at once.
    """
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        with suppress(RuntimeError):
            group.abort()
    for name, descriptor in _sockets().items():
        if name in _connections:
            with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                # That of the store, by which the others learn why, stays.
                if os.environ.get("MASTER_PORT", "") not in (_port(connection), _port(connection, peer=True)):
                    connection.shutdown(socket.SHUT_RDWR)


def _port(connection: socket.socket, *, peer: bool = False) -> str:
    address = connection.getpeername() if peer else connection.getsockname()
    return str(address[1]) if isinstance(address, tuple) else ""


def _sockets() -> dict[str, int]:
    """This process's sockets and their descriptors; none where there is no /proc."""
    found: dict[str, int] = {}
    with suppress(OSError):
        for entry in _FILES.iterdir():
            with suppress(OSError):
                name = str(entry.readlink())
                if name.startswith("socket:"):
                    found[name] = int(entry.name)
    return found
