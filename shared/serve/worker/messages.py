"""Messages between the server and its worker processes: JSON and bytes in one packet, or in shared memory.

A packet of a SOCK_SEQPACKET socket is one message. What is larger than a packet lies in a sealed memfd, whose
descriptor the packet carries: large arrays are written once and mapped by the other side (memfd_create(2), unix(7)).
The body of a large request lies in memory that is used again for others, with room for the answer.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import socket
import struct
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Blob = bytes | bytearray | memoryview
MAX_INLINE = 60_000
MAX_HANDED_OVER = 250
"""How many ``SharedBytes`` go with one message: a packet carries at most 253 descriptors (SCM_MAX_FD)."""
_MAX_PACKET = 1 << 16
_SHARED = b"\1"
_SIZE_SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0)
_SEALS = _SIZE_SEALS | getattr(fcntl, "F_SEAL_WRITE", 0)
ALIGNMENT = 64
"""Where tensors begin, as networks read them fastest."""

SUPPORTED = hasattr(socket, "SOCK_SEQPACKET") and hasattr(os, "memfd_create") and hasattr(socket, "send_fds")
"""Whether this system has what messages need: Linux does."""


class BrokenMessage(Exception):
    """What came is no message of the other side."""


class Memory:
    """Memory of a fixed size that this process and the workers map, used for one request after another.

    What was written once is not asked of the kernel again, which would fill each page with zeros first.
    """

    def __init__(self, size: int) -> None:
        self.place = _new_memory()
        weakref.finalize(self, os.close, self.place)
        os.ftruncate(self.place, size)
        fcntl.fcntl(self.place, fcntl.F_ADD_SEALS, _SIZE_SEALS)
        self.view = memoryview(mmap.mmap(self.place, size))

    def __len__(self) -> int:
        return len(self.view)


class SharedBytes:
    """A request's body in memory that its worker maps, and room for the answer: neither is copied on its way.

    ``done`` is called with the memory once nothing refers to this. The body begins at ``start``; what is behind it is
    room for the answer.
    """

    def __init__(self, memory: Memory, start: int, size: int, done: Callable[[Memory], object]) -> None:
        self.place, self.start, self.size = memory.place, start, size
        self.body = memory.view[start : start + size]
        self.room = memory.view[_aligned(start + size) :]
        weakref.finalize(self, done, memory).atexit = False


@dataclass(frozen=True, slots=True)
class Message:
    """``head`` in JSON types, and bytes beside it. Those of ``shared`` arrive as the last of ``blobs``.

    ``room`` is where the reply may be written, where the other side has memory for it.
    """

    head: dict[str, Any]
    blobs: Sequence[Blob] = ()
    shared: Sequence[SharedBytes] = ()
    room: memoryview | None = None


def write_to_room(parts: Sequence[Blob], room: memoryview | None) -> list[tuple[int, int]] | None:
    """Writes what is too large for a packet into the room: where each part lies there, or None where they do not."""
    sizes = [len(part) for part in parts]
    if room is None or not MAX_INLINE <= sum(sizes) <= len(room):
        return None
    spans, at = [], 0
    for part, size in zip(parts, sizes, strict=True):
        room[at : at + size] = memoryview(part).cast("B")
        spans.append((at, size))
        at += size
    return spans


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets; the child is handed the second."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, message: Message) -> None:
    """Sends one message."""
    head = json.dumps(message.head).encode()
    parts = [memoryview(part).cast("B") for part in (head, *message.blobs)]
    table = struct.pack(f"<I{len(parts)}Q", len(parts), *(len(part) for part in parts))
    shared = [one.place for one in message.shared]
    if len(table) + sum(map(len, parts)) < MAX_INLINE:
        packet: list[Blob] = [b"\0", table, *parts] if len(parts) < 1000 else [b"".join([b"\0", table, *parts])]
        if shared:
            socket.send_fds(connection, packet, shared)
        else:
            connection.sendmsg(packet)
        return
    place = _new_memory()
    try:
        for part in (memoryview(table), *parts):
            _write(place, part)
        _seal(place)
        socket.send_fds(connection, [_SHARED], [place, *shared])
    finally:
        os.close(place)


def _new_memory() -> int:
    return os.memfd_create("trivium-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _write(place: int, content: memoryview) -> None:
    while content:
        content = content[os.write(place, content) :]


def _seal(place: int) -> None:
    # What is sealed cannot be cut off under the other side, which would end it with SIGBUS.
    fcntl.fcntl(place, fcntl.F_ADD_SEALS, _SEALS)


def receive(connection: socket.socket) -> Message | None:
    """The next message, or None when the other side is gone. Raises ``BrokenMessage``."""
    packet, places, _, _ = socket.recv_fds(connection, _MAX_PACKET, 1 + MAX_HANDED_OVER)
    try:
        if not packet:
            return None
        apart = packet[:1] == _SHARED
        message = _read(_mapped(places[0]) if apart else memoryview(packet)[1:])
        return Message(message.head, (*message.blobs, *(_shared(place) for place in places[apart:])))
    except (ValueError, struct.error, IndexError) as error:
        raise BrokenMessage(f"a message cannot be read: {error}") from error
    finally:
        for place in places:
            os.close(place)


def _mapped(place: int) -> memoryview:
    if fcntl.fcntl(place, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise BrokenMessage("the shared memory of a message is not sealed")
    return memoryview(mmap.mmap(place, 0, prot=mmap.PROT_READ))


def _shared(place: int) -> memoryview:
    if fcntl.fcntl(place, fcntl.F_GET_SEALS) & _SIZE_SEALS != _SIZE_SEALS:
        raise BrokenMessage("the shared memory of a message is not of a fixed size")
    return memoryview(mmap.mmap(place, 0, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)))


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


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
    counts = [(len(message.blobs), [(one.start, one.size) for one in message.shared]) for message in messages]
    return Message(
        {"heads": heads, "counts": counts},
        [blob for message in messages for blob in message.blobs],
        [one for message in messages for one in message.shared],
    )


def unbundle(message: Message) -> list[Message]:
    """The messages that were bundled. Raises ``BrokenMessage``."""
    try:
        heads, counts = message.head["heads"], message.head["counts"]
        own = sum(number for number, _ in counts)
        blobs, shared, found = iter(message.blobs[:own]), iter(message.blobs[own:]), []
        for head, (number, places) in zip(heads, counts, strict=True):
            parts, room = [next(blobs) for _ in range(number)], None
            for start, size in places:
                whole = memoryview(next(shared))
                parts.append(whole[start : start + size])
                room = whole[_aligned(start + size) :]
            found.append(Message(dict(head), tuple(parts), room=room))
    except (KeyError, TypeError, ValueError, StopIteration, RuntimeError) as error:
        raise BrokenMessage("a bundle is not whole") from error
    return found
