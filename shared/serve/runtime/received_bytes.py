"""How much a peer has sent, as the kernel counts it: gRPC shows nothing of a message before it is whole."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

_TCP_INFO = getattr(socket, "TCP_INFO", 11)
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_OFFSET = 128
"""Of tcpi_bytes_received in struct tcp_info (linux/tcp.h)."""


def received_bytes(host: str, port: int) -> int | None:
    """The bytes that came over the connection from this address; None where there is none, or not on Linux."""
    with suppress(OSError):
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(OSError, struct.error):
                if str(descriptor.readlink()).startswith("socket:"):
                    with socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
                        if connection.family in _INTERNET and _peer(connection) == (host, port):
                            info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _OFFSET + 8)
                            return int(struct.unpack_from("<Q", info, _OFFSET)[0])
    return None


def _peer(connection: socket.socket) -> tuple[str, int]:
    host, port, *_ = connection.getpeername()
    return host.removeprefix("::ffff:"), port
