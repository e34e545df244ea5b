"""HTTP connections with a limit on their total time. A socket's own timeout starts again with every byte received."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from http.client import HTTPConnection, HTTPSConnection


class BoundedConnection(HTTPConnection):
    """A connection that is shut down ``max_total_s`` seconds after it connects.

    Its reader then gets an end or an error. Call ``end`` after reading the answer: ``http.client`` may call ``close``
    before that.
    """

    max_total_s = 600.0
    _timer_and_socket: tuple[threading.Timer, socket.socket] | None = None

    def connect(self) -> None:
        """Connects. With TLS, the time limit includes the handshake."""
        super().connect()
        duplicate = self.sock.dup()  # wrapping in TLS detaches the socket itself
        self._timer_and_socket = threading.Timer(self.max_total_s, _shut_down, [duplicate]), duplicate
        self._timer_and_socket[0].daemon = True
        self._timer_and_socket[0].start()

    def end(self) -> None:
        """Closes the connection and cancels its time limit."""
        self.close()
        if self._timer_and_socket is not None:
            timer, duplicate = self._timer_and_socket
            timer.cancel()
            timer.join()
            duplicate.close()


class BoundedTLSConnection(HTTPSConnection, BoundedConnection):
    """``BoundedConnection`` over TLS."""


def bounded_connection(
    host: str, port: int | None, *, timeout_s: float, max_total_s: float, tls: ssl.SSLContext | None
) -> BoundedConnection:
    """A connection, over TLS if a context is given.

    It ends when nothing arrives for ``timeout_s`` seconds, and at the latest after ``max_total_s`` seconds.
    """
    if tls is None:
        connection = BoundedConnection(host, port, timeout=timeout_s)
    else:
        connection = BoundedTLSConnection(host, port, timeout=timeout_s, context=tls)
    connection.max_total_s = max_total_s
    return connection


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # it has already ended
        connection.shutdown(socket.SHUT_RDWR)
