"""The server's listening socket, which closes idle connections before the process runs out of file descriptors."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import Any


class Listener(socket.socket):
    """A listening socket that tracks its ``idle`` connections by file descriptor.

    A connection is idle until a request header has arrived; over TLS this includes the handshake. The longest idle one
    is closed if more than ``max_idle`` are idle, or if the process has 1.5 times as many files open. The
    connections' protocol removes them from ``idle`` and adds them again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_idle: int | None = None
        self.idle: dict[int, socket.socket] = {}

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises ``BlockingIOError`` if the process is out of file descriptors.

        asyncio would log the original error thousands of times a second.
        """
        try:
            connection, address = super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._close_oldest()
            raise BlockingIOError from error
        descriptor = connection.fileno()
        self.idle.pop(descriptor, None)
        self.idle[descriptor] = connection
        # The system assigns the lowest free descriptor, so at least as many files are open as its number.
        if self.max_idle is not None and (
            len(self.idle) > self.max_idle or descriptor >= self.max_idle + self.max_idle // 2
        ):
            self._close_oldest()
        return connection, address

    def _close_oldest(self) -> None:
        if self.idle:
            oldest = self.idle.pop(next(iter(self.idle)))
            with suppress(OSError):  # the client closed it without a request
                oldest.shutdown(socket.SHUT_RDWR)
