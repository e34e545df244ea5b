"""Zip archives that a person handed in, read without trusting them.

Refused are archives whose members would lie outside of the folder that they are unpacked into, links, members under a
password, and what would unpack to more than the limits. ``open_archive`` reads the members one at a time and writes
nothing to disk; ``unpack`` and ``unpacked`` write them into a folder. What macOS adds is passed over.

Format: APPNOTE.TXT 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
"""

from __future__ import annotations

import io
import os
import stat
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from shared.errors import InvalidInputError

_CHUNK = 1 << 20
_ALWAYS_TAKEN_BYTES = 16 << 20
"""An archive that unpacks to this little may be of one value throughout, and expand as much as it likes."""

_DIRECTORY_BYTES_PER_FILE = 1024
_ENCRYPTED = 0x1 | 0x40 | 0x2000
"""Flags of APPNOTE 4.4.4: encrypted, strongly encrypted, encrypted central directory."""

_METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz"}
"""Ways to compress that are not read, APPNOTE 4.4.5."""

_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
    *(OSError, EOFError, ValueError, RuntimeError),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveLimits:
    """The most that an archive may hold: files, bytes once unpacked, and bytes unpacked for each byte packed."""

    files: int = 10_000
    unpacked_bytes: int = 4 << 30
    expansion: int = 200


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """A file in an open archive. ``path`` is relative and stays below the archive; ``name`` is as the archive has it.

    ``size`` is in bytes, once unpacked. The content is not held; it is read each time that it is asked for, and several
    threads may read members of one archive.
    """

    name: str
    path: PurePosixPath
    size: int
    _archive: zipfile.ZipFile
    _entry: zipfile.ZipInfo
    _label: str
    _lock: threading.Lock

    def read(self) -> bytes:
        """The whole content."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The content piece by piece. Refuses what is damaged, and what goes on beyond the stated size."""
        left = self.size
        try:
            with self._opened() as content:
                while chunk := content.read(_CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        raise zipfile.BadZipFile("it is longer than the archive's directory states")
                    yield chunk
        except _UNREADABLE as error:
            raise InvalidInputError(f"{self._label}: {self.name} cannot be unpacked ({error}); pack it anew") from error

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        # zipfile counts what is open without a lock of its own.
        with self._lock:
            content = self._archive.open(self._entry)
        try:
            yield content
        finally:
            with self._lock:
                content.close()


class _BoundedFile(io.FileIO):
    """A file of which at most ``most`` bytes are read at once, where that is set."""

    most: int | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        asked = -1 if size is None else size
        left = os.fstat(self.fileno()).st_size - self.tell()
        if self.most is not None and (left if asked < 0 else min(asked, left)) > self.most:
            raise _DirectoryTooLarge
        return super().read(asked)


class _DirectoryTooLarge(Exception):
    pass


@contextmanager
def open_archive(file: Path, limits: ArchiveLimits = ArchiveLimits()) -> Iterator[list[ArchiveMember]]:
    """The files of the zip archive ``file``, in its order; they can be read for as long as the block lasts.

    Raises ``InvalidInputError``: 413 where it holds too much, else 422. Nothing is decompressed before it is read.
    """
    with _BoundedFile(file) as content:
        try:
            archive = _directory(content, limits)
        except _DirectoryTooLarge:
            raise InvalidInputError(
                f"{file.name} lists more files than the {limits.files} that are taken", status=413
            ) from None
        except _UNREADABLE as error:
            raise InvalidInputError(
                f"{file.name} cannot be read as a zip ({error}); pack it anew, or send it again"
            ) from error
        with archive:
            yield _members(file, archive, limits)


def member_names(file: Path) -> list[str]:
    """The names in a zip archive, whatever they are; none where the file is no archive, or its directory too large."""
    try:
        with _BoundedFile(file) as content, _directory(content, ArchiveLimits()) as archive:
            return archive.namelist()
    except (_DirectoryTooLarge, *_UNREADABLE):
        return []


def _directory(content: _BoundedFile, limits: ArchiveLimits) -> zipfile.ZipFile:
    # It is read whole into memory, at some hundred bytes a file.
    content.most = max(limits.files * _DIRECTORY_BYTES_PER_FILE, 1 << 16) + 64
    archive = zipfile.ZipFile(content)
    content.most = None
    return archive


def unpack(file: Path, folder: Path, limits: ArchiveLimits = ArchiveLimits()) -> list[Path]:
    """Writes the archive's files below ``folder`` and returns their paths. Refuses as ``open_archive`` does."""
    written = []
    with open_archive(file, limits) as members:
        for member in members:
            target = folder / member.path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                out = target.open("xb")
            except (FileExistsError, NotADirectoryError) as error:
                raise InvalidInputError(f"{file.name} holds {member.name!r} twice; pack it anew") from error
            except OSError as error:
                raise InvalidInputError(
                    f"{file.name}: {member.name[:80]!r} cannot be written here ({error.strerror}); pack it under "
                    "another name"
                ) from error
            with out:
                for chunk in member.chunks():
                    out.write(chunk)
            written.append(target)
    return written


@contextmanager
def unpacked(file: Path, limits: ArchiveLimits = ArchiveLimits()) -> Iterator[Path]:
    """A temporary folder that is called like the archive and holds its files for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / file.name
        folder.mkdir()
        unpack(file, folder, limits)
        yield folder


def _members(file: Path, archive: zipfile.ZipFile, limits: ArchiveLimits) -> list[ArchiveMember]:
    # A name that ends in a slash is a folder's, unless it has content.
    entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/") or entry.file_size]
    entries = [entry for entry in entries if not _of_macos(entry.filename)]
    if len(entries) > limits.files:
        raise InvalidInputError(f"{file.name} holds {len(entries)} files; at most {limits.files} are taken", status=413)
    size = sum(entry.file_size for entry in entries)
    packed = max(file.stat().st_size, 1)
    if size > min(limits.unpacked_bytes, max(limits.expansion * packed, _ALWAYS_TAKEN_BYTES)):
        raise InvalidInputError(
            f"{file.name} would unpack to {size / 2**20:,.1f} MiB, {size / packed:,.0f} times its size; at most "
            f"{limits.unpacked_bytes / 2**20:,.1f} MiB and {limits.expansion} times its size are taken",
            status=413,
        )
    lock = threading.Lock()
    return [
        ArchiveMember(entry.filename, _checked_path(file, entry), entry.file_size, archive, entry, file.name, lock)
        for entry in entries
    ]


def _of_macos(name: str) -> bool:
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1] == ".DS_Store"


def _checked_path(file: Path, entry: zipfile.ZipInfo) -> PurePosixPath:
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise InvalidInputError(f"{file.name} holds {entry.filename!r}, which points outside the archive; pack it anew")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InvalidInputError(f"{file.name} holds a link ({entry.filename}); put the file itself in")
    if entry.flag_bits & _ENCRYPTED:
        raise InvalidInputError(f"{file.name} is encrypted ({entry.filename}); pack it without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python decompresses bzip2 and LZMA without a bound: 4 kB of bzip2 can be gigabytes.
        way = _METHODS.get(entry.compress_type, f"method {entry.compress_type}")
        raise InvalidInputError(f"{file.name} is compressed with {way} ({entry.filename}); pack it with deflate")
    return path
