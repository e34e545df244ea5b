"""HTTP connections that end after a time, however little comes at a time: a socket's time-out counts anew per byte."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from http.client import HTTPConnection, HTTPSConnection


class BoundedConnection(HTTPConnection):
    """A connection that is broken off ``longest_s`` seconds after it was made: who reads gets an end or an error.

    ``end`` it when the answer was read: ``close`` may come before that.
    """

    longest_s = 600.0
    _ending: tuple[threading.Timer, socket.socket] | None = None

    def connect(self) -> None:
        """Connects; of a connection over TLS the handshake counts too."""
        super().connect()
        duplicate = self.sock.dup()  # TLS takes the socket itself away
        self._ending = threading.Timer(self.longest_s, _shut_down, [duplicate]), duplicate
        self._ending[0].daemon = True
        self._ending[0].start()

    def end(self) -> None:
        """Closes it for good."""
        self.close()
        if self._ending is not None:
            timer, duplicate = self._ending
            timer.cancel()
            timer.join()
            duplicate.close()


class BoundedTLSConnection(HTTPSConnection, BoundedConnection):
    """The same over TLS."""


def bounded_connection(
    host: str, port: int | None, *, timeout_s: float, longest_s: float, tls: ssl.SSLContext | None
) -> BoundedConnection:
    """A connection, over TLS where there is a context, on which nothing may come for ``timeout_s`` seconds."""
    if tls is None:
        made = BoundedConnection(host, port, timeout=timeout_s)
    else:
        made = BoundedTLSConnection(host, port, timeout=timeout_s, context=tls)
    made.longest_s = longest_s
    return made


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        connection.shutdown(socket.SHUT_RDWR)
