"""The files of ROS bags, one at a time: ROS 1 ``.bag``, ROS 2 ``.mcap`` and ``.db3``, read by rosbags.

What is in a bag is not trusted, and messages on other topics cost no memory: chunks are gone through one after another
(rosbags would merge all of them by time, and keep an entry for each message of a ``.bag``), and none is inflated to
more than it states. The message definitions that a bag holds are not read: rosbags would compile them to Python code.
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
"""Of a chunk, or of a message, once it is inflated."""
_ALWAYS_BYTES, _EXPANSION = 1 << 24, 200
"""More is inflated to at most so many times its size: real clouds give 2 to 10."""
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGICS = (b"#ROSBAG V", b"\x89MCAP0\r\n", b"SQLite format 3\0")
_MENDING = {
    ".bag": "rosbag reindex mends a recording that was not closed",
    ".mcap": "mcap recover saves what is whole of a recording that was cut",
    ".db3": "sqlite3 FILE .recover saves what is whole of a recording that was cut",
}
_RECORD_DATA = 2
"""The op of a record that holds a message, in a .bag."""


class Message(NamedTuple):
    """A message as it was recorded, and when, in ns; serialized as in ROS 1, or as CDR (ROS 2)."""

    data: bytes
    time_ns: int
    ros1: bool


def topics(file: Path) -> Counter[tuple[str, str]]:
    """How many messages there are of each topic and type, such as sensor_msgs/msg/PointCloud2."""
    with _damage_named(file), _opened(file) as reader:
        counts: Counter[tuple[str, str]] = Counter()
        for connection in reader.connections:
            counts[connection.topic, connection.msgtype] += connection.msgcount
        return counts


def messages(file: Path, topic: str, kind: str) -> Iterator[Message]:
    """The messages of a topic and type, by time but where chunks overlap. Raises ``InvalidInputError`` at damage."""
    with _damage_named(file), _opened(file) as reader:
        connections = [one for one in reader.connections if (one.topic, one.msgtype) == (topic, kind)]
        for _, time_ns, data in reader.messages(connections) if connections else ():
            if data.startswith(_ZSTD):  # compressed one by one; CDR begins with a zero
                data = _inflated(data, zstd.ZstdDecompressor())
            yield Message(data, time_ns, isinstance(reader, _Ros1Reader))


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except InvalidInputError as refusal:
        raise InvalidInputError(f"{file.name}: {refusal}", status=refusal.status) from refusal
    except Exception as error:  # rosbags raises whatever it meets in a damaged file
        said = " ".join(str(error).split())[:200] if isinstance(error, ros1.ReaderError | Ros2Error) else ""
        mending = next((hint for suffix, hint in _MENDING.items() if suffix in file.name.lower()), "")
        raise InvalidInputError(
            f"{file.name} is damaged or not a bag that is read: {said.rstrip('.') or type(error).__name__}; {mending}"
        ) from error


@contextmanager
def _opened(file: Path) -> Iterator[_Ros1Reader | _McapReader | Sqlite3Reader]:
    with _whole(file) as whole:
        reader = _reader(whole)
        reader.open()
        try:
            yield reader
        finally:
            reader.close()


def _reader(file: Path) -> _Ros1Reader | _McapReader | Sqlite3Reader:
    """By what the file begins with, whatever its name ends in."""
    with file.open("rb") as content:
        begins = content.read(16)
    if not begins:
        raise InvalidInputError("the file is empty")
    if begins.startswith(_MAGICS[0]):
        return _Ros1Reader(file)
    if begins.startswith(_MAGICS[1]):
        return _McapReader(file)
    if begins.startswith(_MAGICS[2]):
        _refuse_programs(file)
        return Sqlite3Reader(Path(quote(str(file.absolute()))))  # rosbags makes a URI of it as it is
    raise InvalidInputError("it begins neither as a .bag of ROS 1 nor as an .mcap or .db3 of ROS 2")


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """The file, or what is in it where all of it was compressed: FILE.db3.zstd."""
    if file.suffix.lower() != ".zstd":
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        whole, most = Path(folder) / file.stem, max(_ALWAYS_BYTES, _EXPANSION * file.stat().st_size)
        room = shutil.disk_usage(folder).free // 2
        with zstd.open(file, "rb") as packed, whole.open("wb") as unpacked:
            while piece := packed.read(1 << 20):
                if unpacked.write(piece) and unpacked.tell() > most:
                    raise InvalidInputError(f"it would be inflated to more than {_EXPANSION} times its size")
                if unpacked.tell() > room:
                    raise InvalidInputError(
                        f"it would be inflated to more than {room >> 20} MiB, half of what is free under "
                        f"{tempfile.gettempdir()}; inflate it elsewhere (zstd -d), and hand in what comes of it",
                        status=413,
                    )
        yield whole


def _inflated(content: bytes, decompressor: Any, size: int | None = None) -> bytes:
    """``content`` decompressed; refuses what does not end, or is not of the stated ``size``."""
    most = min(_MAX_BYTES, max(_ALWAYS_BYTES, _EXPANSION * len(content)))
    if size is not None and size > most:
        raise InvalidInputError(f"a chunk of {len(content)} bytes states {size}; {most} at most are inflated")
    whole: bytes = decompressor.decompress(content, max_length=most + 1 if size is None else max(size, 1))
    if not decompressor.eof or len(whole) > most or (size is not None and len(whole) != size):
        raise InvalidInputError("a chunk is damaged, or is inflated to more than it states")
    return whole


# These are called with the size that the chunk states, which rosbags compares only after all of it was inflated.
mcap.DECOMPRESSORS.update(
    lz4=lambda content, size: _inflated(content, lz4.frame.LZ4FrameDecompressor(), size),
    zstd=lambda content, size: _inflated(content, zstd.ZstdDecompressor(), size),
)


class _McapReader(mcap.McapReader):
    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Messages:
        """Those of ``connections``; all of them, whatever ``start`` and ``stop`` say."""
        assert self.bio is not None
        if not self.chunks:
            yield from self.messages_scan(connections)
            return
        if sum(chunk.compressed_size for chunk in self.chunks) > self.path.stat().st_size:
            raise InvalidInputError("its chunks lie in one another")
        wanted = {one.id: one for one in connections}
        for chunk in sorted(self.chunks, key=lambda one: one.message_start_time):
            if chunk.channel_count and wanted.keys().isdisjoint(chunk.channel_count):
                continue
            for found in mcap.msgsrc(chunk, wanted, 0, mcap.MAXSIZE, self.bio):
                if found.connection is not None and found.data is not None:
                    yield found.connection, found.timestamp, found.data


class _Ros1Reader(ros1.Reader):
    def open(self) -> None:
        """Reads connections and chunks; how many messages there are is said by the chunks' records."""
        super().open()
        counts: Counter[int] = Counter()
        for info in self.chunk_infos:
            counts.update(info.connection_counts)
        self.connections = [one._replace(msgcount=counts[one.id]) for one in self.connections]

    def read_index_data(self, pos: int, indexes: dict[int, list[ros1.IndexData]]) -> None:
        """Reads none: an entry for each message of all topics is not kept."""

    def messages(
        self, connections: Collection[Connection] = (), start: int | None = None, stop: int | None = None
    ) -> Messages:
        """Those of ``connections``; all of them, whatever ``start`` and ``stop`` say."""
        wanted = {one.id: one for one in connections}
        places = {info.pos for info in self.chunk_infos if not wanted.keys().isdisjoint(info.connection_counts)}
        for place in sorted(places):
            yield from self._in_chunk(place, wanted)

    def _in_chunk(self, place: int, wanted: dict[int, Connection]) -> Messages:
        assert self.bio is not None
        self.bio.seek(place)
        header = ros1.Header.read(self.bio, ros1.RecordType.CHUNK)
        compression, size = header.get_string("compression"), header.get_uint32("size")
        packed = ros1.read_bytes(self.bio, ros1.read_uint32(self.bio))
        content = packed if compression == "none" else _inflated(packed, _ROS1[compression](), size)
        records = BytesIO(content)
        while records.tell() < len(content):
            header = ros1.Header.read(records)
            data_bytes = ros1.read_uint32(records)
            if header.get_uint8("op") == _RECORD_DATA and (conn := header.get_uint32("conn")) in wanted:
                yield wanted[conn], header.get_time("time"), ros1.read_bytes(records, data_bytes)
            else:
                records.seek(data_bytes, 1)


_ROS1: dict[str, Callable[[], Any]] = {"bz2": bz2.BZ2Decompressor, "lz4": lz4.frame.LZ4FrameDecompressor}


def _refuse_programs(file: Path) -> None:
    """Refuses a database whose tables are queries: they could compute for ever."""
    with closing(sqlite3.connect(f"file:{quote(str(file.absolute()))}?immutable=1", uri=True)) as database:
        query = (
            "SELECT count(*) FROM sqlite_master WHERE type NOT IN ('table', 'index') "
            "OR sql LIKE '%virtual%' OR sql LIKE '%generated%' OR sql LIKE '% as %'"
        )
        if database.execute(query).fetchone()[0]:
            raise InvalidInputError("it holds views or computed columns, which no recorder writes")
