"""Messages between the server and its worker processes: JSON and bytes in one packet, or in shared memory.

A packet of a SOCK_SEQPACKET socket is one message. What is larger than a packet lies in a sealed memfd, whose
descriptor the packet carries: large arrays are written once and mapped by the other side (memfd_create(2), unix(7)).
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Blob = bytes | bytearray | memoryview
_MOST_INLINE = 60_000
_MOST_PACKET = 1 << 16
_SHARED = b"\1"
_SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0) | getattr(fcntl, "F_SEAL_WRITE", 0)

SUPPORTED = hasattr(socket, "SOCK_SEQPACKET") and hasattr(os, "memfd_create") and hasattr(socket, "send_fds")
"""Whether this system has what messages need: Linux does."""


class BrokenMessage(Exception):
    """What came is no message of the other side."""


@dataclass(frozen=True, slots=True)
class Message:
    """``head`` in JSON types, and bytes beside it."""

    head: dict[str, Any]
    blobs: Sequence[Blob] = ()


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets; the child is handed the second."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, message: Message) -> None:
    """Sends one message."""
    head = json.dumps(message.head).encode()
    parts = [memoryview(part).cast("B") for part in (head, *message.blobs)]
    table = struct.pack(f"<I{len(parts)}Q", len(parts), *(len(part) for part in parts))
    if len(table) + sum(map(len, parts)) < _MOST_INLINE:
        connection.sendmsg([b"\0", table, *parts] if len(parts) < 1000 else [b"".join([b"\0", table, *parts])])
        return
    place = os.memfd_create("trivium-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in (memoryview(table), *parts):
            while part:
                part = part[os.write(place, part) :]
        # What is sealed cannot be cut off under the other side, which would end it with SIGBUS.
        fcntl.fcntl(place, fcntl.F_ADD_SEALS, _SEALS)
        socket.send_fds(connection, [_SHARED], [place])
    finally:
        os.close(place)


def receive(connection: socket.socket) -> Message | None:
    """The next message, or None when the other side is gone. Raises ``BrokenMessage``."""
    packet, places, _, _ = socket.recv_fds(connection, _MOST_PACKET, 1)
    try:
        if not packet:
            return None
        return _read(memoryview(packet)[1:] if packet[:1] != _SHARED else _mapped(places))
    except (ValueError, struct.error, IndexError) as error:
        raise BrokenMessage(f"a message cannot be read: {error}") from error
    finally:
        for place in places:
            os.close(place)


def _mapped(places: Sequence[int]) -> memoryview:
    if fcntl.fcntl(places[0], fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise BrokenMessage("the shared memory of a message is not sealed")
    return memoryview(mmap.mmap(places[0], 0, prot=mmap.PROT_READ))


def _read(payload: memoryview) -> Message:
    (number,) = struct.unpack_from("<I", payload)
    sizes = struct.unpack_from(f"<{number}Q", payload, 4)
    start, parts = 4 + 8 * number, []
    if start + sum(sizes) != len(payload):
        raise BrokenMessage("a message is not as long as it says")
    for size in sizes:
        parts.append(payload[start : start + size])
        start += size
    head = json.loads(bytes(parts[0]))
    if not isinstance(head, dict):
        raise BrokenMessage("a message has no head")
    return Message(head, tuple(parts[1:]))


def bundle(messages: Sequence[Message]) -> Message:
    """Several messages as one."""
    heads = [message.head for message in messages]
    counts = [len(message.blobs) for message in messages]
    return Message({"heads": heads, "counts": counts}, [blob for message in messages for blob in message.blobs])


def unbundle(message: Message) -> list[Message]:
    """The messages that were bundled. Raises ``BrokenMessage``."""
    try:
        heads, counts = message.head["heads"], message.head["counts"]
        remaining, found = iter(message.blobs), []
        for head, count in zip(heads, counts, strict=True):
            found.append(Message(dict(head), tuple(next(remaining) for _ in range(count))))
    except (KeyError, TypeError, ValueError, StopIteration, RuntimeError) as error:
        raise BrokenMessage("a bundle is not whole") from error
    return found
