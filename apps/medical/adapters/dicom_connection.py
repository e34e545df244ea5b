"""A DICOM connection that limits how much its peer can send."""

from __future__ import annotations

from pynetdicom.transport import AssociationSocket

MAX_PDU_BYTES = 1 << 20


class BoundedSocket(AssociationSocket):
    """Closes the connection, before the data are in memory, if the peer sends too large a PDU or message.

    pynetdicom creates its sockets itself, so this class is assigned to a socket afterwards. ``unread`` is the number of
    bytes received; whoever processes a message subtracts its size. Above ``max_bytes`` the connection is closed.
    """

    unread = 0
    max_bytes = 1 << 30

    def recv(self, nr_bytes: int) -> bytearray:
        self.unread += nr_bytes
        if nr_bytes > MAX_PDU_BYTES or self.unread > self.max_bytes:
            raise ConnectionAbortedError("the peer sent more data than is allowed")
        return super().recv(nr_bytes)
