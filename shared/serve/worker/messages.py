"""Messages between the server and its worker processes: JSON and bytes in one packet, or in shared memory.

A message is one packet of a SOCK_SEQPACKET socket. If it is larger than a packet, it is written to a sealed memfd, and
the packet carries the descriptor: large arrays are written once and mapped by the other side (memfd_create(2),
unix(7)). The body of a large request is in memory that is reused for other requests, with room for the answer.
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
MAX_INLINE_BYTES = 60_000
MAX_SHARED_BODIES = 250
"""The maximum number of ``SharedBytes`` of one message: a packet carries at most 253 descriptors (SCM_MAX_FD)."""
_MAX_PACKET = 1 << 16
_SHARED = b"\1"
_SIZE_SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0)
_SEALS = _SIZE_SEALS | getattr(fcntl, "F_SEAL_WRITE", 0)
ALIGNMENT = 64
"""The alignment of tensors in bytes that networks read fastest."""

SUPPORTED = hasattr(socket, "SOCK_SEQPACKET") and hasattr(os, "memfd_create") and hasattr(socket, "send_fds")
"""Whether this system supports the messages. Linux does."""


class BrokenMessage(Exception):
    """Received data that is not a valid message."""


class Memory:
    """Memory of a fixed size that this process and the workers map, reused for one request after another.

    Fresh memory would be slower, because the kernel fills each page with zeros on its first use.
    """

    def __init__(self, size: int) -> None:
        self.descriptor = _create_memory()
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, size)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SIZE_SEALS)
        self.view = memoryview(mmap.mmap(self.descriptor, size))

    def __len__(self) -> int:
        return len(self.view)


class SharedBytes:
    """A request's body in memory that its worker maps, and room for the answer, so that neither is copied.

    The body begins at ``start``; the memory after it is room for the answer. ``release`` is called with the memory once
    nothing refers to this object.
    """

    def __init__(self, memory: Memory, start: int, size: int, release: Callable[[Memory], object]) -> None:
        self.descriptor, self.start, self.size = memory.descriptor, start, size
        self.body = memory.view[start : start + size]
        self.room = memory.view[_align(start + size) :]
        weakref.finalize(self, release, memory).atexit = False


@dataclass(frozen=True, slots=True)
class Message:
    """A ``head`` of JSON types, and ``blobs`` of bytes. The receiver gets those in ``shared`` as the last blobs.

    ``room`` is memory to which the reply may be written, if the sender provides it.
    """

    head: dict[str, Any]
    blobs: Sequence[Blob] = ()
    shared: Sequence[SharedBytes] = ()
    room: memoryview | None = None


def write_to_room(parts: Sequence[Blob], room: memoryview | None) -> list[tuple[int, int]] | None:
    """Writes the parts of a reply to ``room`` if they are too large for a packet and fit.

    Returns the offset and size of each part, or None if nothing was written.
    """
    sizes = [len(part) for part in parts]
    if room is None or not MAX_INLINE_BYTES <= sum(sizes) <= len(room):
        return None
    spans, offset = [], 0
    for part, size in zip(parts, sizes, strict=True):
        room[offset : offset + size] = memoryview(part).cast("B")
        spans.append((offset, size))
        offset += size
    return spans


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets: the server's, and the one that the worker process inherits."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, message: Message) -> None:
    """Sends one message."""
    head = json.dumps(message.head).encode()
    parts = [memoryview(part).cast("B") for part in (head, *message.blobs)]
    table = struct.pack(f"<I{len(parts)}Q", len(parts), *(len(part) for part in parts))
    shared = [body.descriptor for body in message.shared]
    if len(table) + sum(map(len, parts)) < MAX_INLINE_BYTES:
        packet: list[Blob] = [b"\0", table, *parts] if len(parts) < 1000 else [b"".join([b"\0", table, *parts])]
        if shared:
            socket.send_fds(connection, packet, shared)
        else:
            connection.sendmsg(packet)
        return
    descriptor = _create_memory()
    try:
        for part in (memoryview(table), *parts):
            _write(descriptor, part)
        _seal(descriptor)
        socket.send_fds(connection, [_SHARED], [descriptor, *shared])
    finally:
        os.close(descriptor)


def _create_memory() -> int:
    return os.memfd_create("trivium-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _write(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _seal(descriptor: int) -> None:
    # Sealed memory cannot be truncated while the other side has it mapped, which would kill that process with SIGBUS.
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)


def receive(connection: socket.socket) -> Message | None:
    """The next message, or None if the other side has closed the connection. Raises ``BrokenMessage``."""
    packet, descriptors, _, _ = socket.recv_fds(connection, _MAX_PACKET, 1 + MAX_SHARED_BODIES)
    try:
        if not packet:
            return None
        in_shared_memory = packet[:1] == _SHARED  # then the first descriptor is that of the message itself
        message = _parse(_map_sealed(descriptors[0]) if in_shared_memory else memoryview(packet)[1:])
        return Message(
            message.head, (*message.blobs, *(_map_shared(descriptor) for descriptor in descriptors[in_shared_memory:]))
        )
    except (ValueError, struct.error, IndexError) as error:
        raise BrokenMessage(f"a message cannot be read: {error}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _map_sealed(descriptor: int) -> memoryview:
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise BrokenMessage("the shared memory of a message is not sealed")
    return memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))


def _map_shared(descriptor: int) -> memoryview:
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SIZE_SEALS != _SIZE_SEALS:
        raise BrokenMessage("the shared memory of a message does not have a fixed size")
    return memoryview(mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)))


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _parse(payload: memoryview) -> Message:
    (part_count,) = struct.unpack_from("<I", payload)
    sizes = struct.unpack_from(f"<{part_count}Q", payload, 4)
    start, parts = 4 + 8 * part_count, []
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
    """Combines several messages into one."""
    heads = [message.head for message in messages]
    counts = [(len(message.blobs), [(body.start, body.size) for body in message.shared]) for message in messages]
    return Message(
        {"heads": heads, "counts": counts},
        [blob for message in messages for blob in message.blobs],
        [body for message in messages for body in message.shared],
    )


def unbundle(message: Message) -> list[Message]:
    """The messages that were bundled. Raises ``BrokenMessage``."""
    try:
        heads, counts = message.head["heads"], message.head["counts"]
        blob_count = sum(count for count, _ in counts)
        blobs, shared, messages = iter(message.blobs[:blob_count]), iter(message.blobs[blob_count:]), []
        for head, (count, spans) in zip(heads, counts, strict=True):
            parts, room = [next(blobs) for _ in range(count)], None
            for start, size in spans:
                memory = memoryview(next(shared))
                parts.append(memory[start : start + size])
                room = memory[_align(start + size) :]
            messages.append(Message(dict(head), tuple(parts), room=room))
    except (KeyError, TypeError, ValueError, StopIteration, RuntimeError) as error:
        raise BrokenMessage("a bundle of messages is incomplete") from error
    return messages
