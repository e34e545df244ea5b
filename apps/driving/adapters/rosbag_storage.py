"""The files of ROS bags, one at a time: ROS 1 ``.bag``, ROS 2 ``.mcap`` and ``.db3``, read by rosbags.

Bags are untrusted, and messages on other topics use no memory: chunks are read one after another (rosbags would merge
all of them by time, and keep an entry for each message of a ``.bag``), and no chunk is decompressed to more than its
stated size. The message definitions in a bag are not read, because rosbags would compile them to Python code.
"""

from __future__ import annotations

import bz2
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import quote

import lz4.frame
from rosbags.rosbag1 import reader as ros1
from rosbags.rosbag2 import ReaderError as Ros2Error
from rosbags.rosbag2 import storage_mcap as mcap
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

from shared.errors import InvalidInputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

    Messages: TypeAlias = Generator[tuple[Connection, int, bytes], None, None]

_MAX_BYTES = 1 << 29
"""The maximum size of a decompressed chunk or message."""
_ALWAYS_ALLOWED_BYTES, _MAX_EXPANSION = 1 << 24, 200
"""Any data may decompress to the first; more is allowed up to this many times its compressed size. Real clouds reach 2
to 10."""
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGICS = (b"#ROSBAG V", b"\x89MCAP0\r\n", b"SQLite format 3\0")
_REPAIR_HINTS = {
    ".bag": "rosbag reindex repairs a recording that was not closed",
    ".mcap": "mcap recover saves the intact part of a truncated recording",
    ".db3": "sqlite3 FILE .recover saves the intact part of a truncated recording",
}
_OP_MESSAGE_DATA = 2
"""The op of a record with a message in a .bag."""


class Message(NamedTuple):
    """A recorded message and its time in ns; serialized as in ROS 1, or as CDR (ROS 2)."""

    data: bytes
    time_ns: int
    ros1: bool


def topics(file: Path) -> Counter[tuple[str, str]]:
    """The number of messages by topic and type, such as sensor_msgs/msg/PointCloud2."""
    with _errors_with_file_name(file), _open_reader(file) as reader:
        counts: Counter[tuple[str, str]] = Counter()
        for connection in reader.connections:
            counts[connection.topic, connection.msgtype] += connection.msgcount
        return counts


def messages(file: Path, topic: str, kind: str) -> Iterator[Message]:
    """The messages of a topic and type, in time order unless chunks overlap. Raises ``InvalidInputError`` on damage."""
    with _errors_with_file_name(file), _open_reader(file) as reader:
        connections = [each for each in reader.connections if (each.topic, each.msgtype) == (topic, kind)]
        for _, time_ns, data in reader.messages(connections) if connections else ():
            if data.startswith(_ZSTD):  # messages compressed one by one; CDR begins with a zero
                data = _decompress(data, zstd.ZstdDecompressor())
            yield Message(data, time_ns, isinstance(reader, _Ros1Reader))


@contextmanager
def _errors_with_file_name(file: Path) -> Iterator[None]:
    """Turns exceptions while reading a bag into an ``InvalidInputError`` with the file name and a way to repair it."""
    try:
        yield
    except InvalidInputError as refusal:
        raise InvalidInputError(f"{file.name}: {refusal}", status=refusal.status) from refusal
    except Exception as error:  # rosbags raises various exceptions for a damaged file
        reason = " ".join(str(error).split())[:200] if isinstance(error, ros1.ReaderError | Ros2Error) else ""
        repair = next((hint for suffix, hint in _REPAIR_HINTS.items() if suffix in file.name.lower()), "")
        raise InvalidInputError(
            f"{file.name} is damaged or not a supported bag: {reason.rstrip('.') or type(error).__name__}; {repair}"
        ) from error


@contextmanager
def _open_reader(file: Path) -> Iterator[_Ros1Reader | _McapReader | Sqlite3Reader]:
    with _decompressed(file) as decompressed:
        reader = _make_reader(decompressed)
        reader.open()
        try:
            yield reader
        finally:
            reader.close()


def _make_reader(file: Path) -> _Ros1Reader | _McapReader | Sqlite3Reader:
    """The reader for the format that the first bytes of the file indicate, whatever its suffix."""
    with file.open("rb") as content:
        magic = content.read(16)
    if not magic:
        raise InvalidInputError("the file is empty")
    if magic.startswith(_MAGICS[0]):
        return _Ros1Reader(file)
    if magic.startswith(_MAGICS[1]):
        return _McapReader(file)
    if magic.startswith(_MAGICS[2]):
        _check_plain_tables(file)
        return Sqlite3Reader(Path(quote(str(file.absolute()))))  # rosbags puts the path into a URI without quoting
    raise InvalidInputError("it is neither a .bag of ROS 1 nor an .mcap or .db3 of ROS 2")


@contextmanager
def _decompressed(file: Path) -> Iterator[Path]:
    """The file itself, or a temporary decompressed copy if the whole file is compressed: FILE.db3.zstd."""
    if file.suffix.lower() != ".zstd":
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        copy, max_bytes = Path(folder) / file.stem, max(_ALWAYS_ALLOWED_BYTES, _MAX_EXPANSION * file.stat().st_size)
        max_disk_bytes = shutil.disk_usage(folder).free // 2
        with zstd.open(file, "rb") as packed, copy.open("wb") as unpacked:
            while piece := packed.read(1 << 20):
                if unpacked.write(piece) and unpacked.tell() > max_bytes:
                    raise InvalidInputError(f"it would decompress to more than {_MAX_EXPANSION} times its size")
                if unpacked.tell() > max_disk_bytes:
                    raise InvalidInputError(
                        f"it would decompress to more than {max_disk_bytes >> 20} MiB, half of the free space in "
                        f"{tempfile.gettempdir()}; decompress it elsewhere (zstd -d), and give the decompressed file",
                        status=413,
                    )
        yield copy


def _decompress(content: bytes, decompressor: Any, size: int | None = None) -> bytes:
    """``content`` decompressed. Raises ``InvalidInputError`` if it is truncated, too large or not of ``size``."""
    max_bytes = min(_MAX_BYTES, max(_ALWAYS_ALLOWED_BYTES, _MAX_EXPANSION * len(content)))
    if size is not None and size > max_bytes:
        raise InvalidInputError(
            f"a chunk of {len(content)} bytes states a decompressed size of {size}; at most {max_bytes} are accepted"
        )
    result: bytes = decompressor.decompress(content, max_length=max_bytes + 1 if size is None else max(size, 1))
    if not decompressor.eof or len(result) > max_bytes or (size is not None and len(result) != size):
        raise InvalidInputError("a chunk is damaged, or decompresses to more than its stated size")
    return result


# rosbags passes the size stated by the chunk, but compares it only after decompressing everything.
mcap.DECOMPRESSORS.update(
    lz4=lambda content, size: _decompress(content, lz4.frame.LZ4FrameDecompressor(), size),
    zstd=lambda content, size: _decompress(content, zstd.ZstdDecompressor(), size),
)


class _McapReader(mcap.McapReader):
    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Messages:
        """The messages of ``connections``, without the time limits ``start`` and ``stop``."""
        assert self.bio is not None
        if not self.chunks:
            yield from self.messages_scan(connections)
            return
        if sum(chunk.compressed_size for chunk in self.chunks) > self.path.stat().st_size:
            raise InvalidInputError("its chunks overlap in the file")
        wanted = {connection.id: connection for connection in connections}
        for chunk in sorted(self.chunks, key=lambda chunk: chunk.message_start_time):
            if chunk.channel_count and wanted.keys().isdisjoint(chunk.channel_count):
                continue
            for found in mcap.msgsrc(chunk, wanted, 0, mcap.MAXSIZE, self.bio):
                if found.connection is not None and found.data is not None:
                    yield found.connection, found.timestamp, found.data


class _Ros1Reader(ros1.Reader):
    def open(self) -> None:
        """Reads connections and chunk infos; the message counts come from the chunk infos."""
        super().open()
        counts: Counter[int] = Counter()
        for info in self.chunk_infos:
            counts.update(info.connection_counts)
        self.connections = [each._replace(msgcount=counts[each.id]) for each in self.connections]

    def read_index_data(self, pos: int, indexes: dict[int, list[ros1.IndexData]]) -> None:
        """Reads nothing, because an index entry for each message of all topics would use too much memory."""

    def messages(
        self, connections: Collection[Connection] = (), start: int | None = None, stop: int | None = None
    ) -> Messages:
        """The messages of ``connections``, without the time limits ``start`` and ``stop``."""
        wanted = {connection.id: connection for connection in connections}
        positions = {info.pos for info in self.chunk_infos if not wanted.keys().isdisjoint(info.connection_counts)}
        for position in sorted(positions):
            yield from self._messages_in_chunk(position, wanted)

    def _messages_in_chunk(self, position: int, wanted: dict[int, Connection]) -> Messages:
        assert self.bio is not None
        self.bio.seek(position)
        header = ros1.Header.read(self.bio, ros1.RecordType.CHUNK)
        compression, size = header.get_string("compression"), header.get_uint32("size")
        packed = ros1.read_bytes(self.bio, ros1.read_uint32(self.bio))
        content = packed if compression == "none" else _decompress(packed, _ROS1_DECOMPRESSORS[compression](), size)
        records = BytesIO(content)
        while records.tell() < len(content):
            header = ros1.Header.read(records)
            data_bytes = ros1.read_uint32(records)
            if header.get_uint8("op") == _OP_MESSAGE_DATA and (conn := header.get_uint32("conn")) in wanted:
                yield wanted[conn], header.get_time("time"), ros1.read_bytes(records, data_bytes)
            else:
                records.seek(data_bytes, 1)


_ROS1_DECOMPRESSORS: dict[str, Callable[[], Any]] = {"bz2": bz2.BZ2Decompressor, "lz4": lz4.frame.LZ4FrameDecompressor}


def _check_plain_tables(file: Path) -> None:
    """Raises ``InvalidInputError`` if tables of a database are computed: their queries could run forever."""
    with closing(sqlite3.connect(f"file:{quote(str(file.absolute()))}?immutable=1", uri=True)) as database:
        query = (
            "SELECT count(*) FROM sqlite_master WHERE type NOT IN ('table', 'index') "
            "OR sql LIKE '%virtual%' OR sql LIKE '%generated%' OR sql LIKE '% as %'"
        )
        if database.execute(query).fetchone()[0]:
            raise InvalidInputError("it has views or computed columns, which no recorder writes")
