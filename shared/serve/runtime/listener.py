"""What the server listens on: connections that ask for nothing give way before there are too many."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import Any


class Listener(socket.socket):
    """A socket whose connections are ``idle`` until their requests are there, by their file descriptors.

    Of more than ``most`` the one that has been idle for longest is closed, and so where half as many files again are
    open; over TLS those count too whose handshake goes on. Who keeps connections says which are idle.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.most: int | None = None
        self.idle: dict[int, socket.socket] = {}

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Out of files there is none: asyncio would log thousands of lines a second."""
        try:
            connection, address = super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._close_oldest()
            raise BlockingIOError from error
        number = connection.fileno()
        self.idle.pop(number, None)
        self.idle[number] = connection
        # A file's number is the least that is free.
        if self.most is not None and (len(self.idle) > self.most or number >= self.most + self.most // 2):
            self._close_oldest()
        return connection, address

    def _close_oldest(self) -> None:
        if self.idle:
            oldest = self.idle.pop(next(iter(self.idle)))
            with suppress(OSError):  # it was closed before it was asked for anything
                oldest.shutdown(socket.SHUT_RDWR)
