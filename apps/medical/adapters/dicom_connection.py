"""A DICOM connection of which only so much is read as anybody needs to send."""

from __future__ import annotations

from pynetdicom.transport import AssociationSocket

LARGEST_PDU = 1 << 20


class BoundedSocket(AssociationSocket):
    """Drops who sends more at a time than anybody needs to, before it is in memory.

    pynetdicom makes its sockets by name: one gets this class once it is made. ``unread`` are the bytes that came;
    whoever takes a message subtracts its own. Beyond ``most_bytes`` of them nothing is taken.
    """

    unread = 0
    most_bytes = 1 << 30

    def recv(self, nr_bytes: int) -> bytearray:
        self.unread += nr_bytes
        if nr_bytes > LARGEST_PDU or self.unread > self.most_bytes:
            raise ConnectionAbortedError("more than is taken at a time")
        return super().recv(nr_bytes)
