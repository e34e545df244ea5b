"""The bytes received from a peer, as the kernel counts them: gRPC shows nothing of an incomplete message."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

_TCP_INFO = getattr(socket, "TCP_INFO", 11)
_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_BYTES_RECEIVED_OFFSET = 128
"""The offset of tcpi_bytes_received in struct tcp_info (linux/tcp.h)."""


def received_bytes(host: str, port: int) -> int | None:
    """The bytes received over the connection from this address; None if there is no connection, or not on Linux."""
    with suppress(OSError):
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(OSError, struct.error):
                if str(descriptor.readlink()).startswith("socket:"):
                    with socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
                        if connection.family in _IP_FAMILIES and _peer(connection) == (host, port):
                            info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _BYTES_RECEIVED_OFFSET + 8)
                            return int(struct.unpack_from("<Q", info, _BYTES_RECEIVED_OFFSET)[0])
    return None


def _peer(connection: socket.socket) -> tuple[str, int]:
    host, port, *_ = connection.getpeername()
    return host.removeprefix("::ffff:"), port
