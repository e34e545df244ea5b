"""Reads zip archives from untrusted sources.

Refuses archives with paths outside the target folder, links, encrypted members, or more unpacked content than the
limits allow. ``open_archive`` reads the members one at a time and writes nothing to disk; ``unpack`` and ``unpacked``
write them to a folder. Files that macOS adds are skipped.

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

_CHUNK_BYTES = 1 << 20
_MAX_EXPANSION = 200
"""The maximum of unpacked bytes per packed byte."""
_ALWAYS_ALLOWED_BYTES = 16 << 20
"""That limit does not apply to archives that unpack to at most this: constant data compresses to nearly
nothing."""

_DIRECTORY_BYTES_PER_FILE = 1024
_ENCRYPTED = 0x1 | 0x40 | 0x2000
"""Flags of APPNOTE 4.4.4: encrypted, strongly encrypted, encrypted central directory."""

_UNSUPPORTED_METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz"}
"""Names of compression methods that are not supported, APPNOTE 4.4.5."""

_READ_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
    *(OSError, EOFError, ValueError, RuntimeError),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveLimits:
    """The maximum number of files and unpacked bytes of an archive."""

    files: int = 10_000
    unpacked_bytes: int = 4 << 30


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """A file in an open archive. ``name`` is its name in the archive; ``path`` is the checked relative path.

    ``size`` is the unpacked size in bytes. The content is not cached: every call reads it again. Several threads may
    read members of one archive.
    """

    name: str
    path: PurePosixPath
    size: int
    _archive: zipfile.ZipFile
    _entry: zipfile.ZipInfo
    _archive_name: str
    _lock: threading.Lock

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """Yields the content in chunks. Raises ``InvalidInputError`` if it is damaged or longer than ``size``."""
        left = self.size
        try:
            with self._opened() as content:
                while chunk := content.read(_CHUNK_BYTES):
                    left -= len(chunk)
                    if left < 0:
                        raise zipfile.BadZipFile("it is longer than the archive's directory states")
                    yield chunk
        except _READ_ERRORS as error:
            raise InvalidInputError(
                f"{self._archive_name}: {self.name} cannot be unpacked ({error}); create the archive again"
            ) from error

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        # zipfile counts its open members without a lock.
        with self._lock:
            content = self._archive.open(self._entry)
        try:
            yield content
        finally:
            with self._lock:
                content.close()


class _BoundedFile(io.FileIO):
    """A file that raises ``_DirectoryTooLarge`` on reads of more than ``max_read_bytes``, if that is set."""

    max_read_bytes: int | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        requested = -1 if size is None else size
        left = os.fstat(self.fileno()).st_size - self.tell()
        if self.max_read_bytes is not None and (left if requested < 0 else min(requested, left)) > self.max_read_bytes:
            raise _DirectoryTooLarge
        return super().read(requested)


class _DirectoryTooLarge(Exception):
    pass


@contextmanager
def open_archive(file: Path, limits: ArchiveLimits = ArchiveLimits()) -> Iterator[list[ArchiveMember]]:
    """The files of the zip archive ``file`` in archive order, readable within the context.

    Raises ``InvalidInputError``: status 413 if it exceeds the limits, else 422. A member is decompressed only when it
    is read.
    """
    with _BoundedFile(file) as content:
        try:
            archive = _read_directory(content, limits)
        except _DirectoryTooLarge:
            raise InvalidInputError(
                f"{file.name} lists more than the maximum of {limits.files} files", status=413
            ) from None
        except _READ_ERRORS as error:
            raise InvalidInputError(
                f"{file.name} cannot be read as a zip archive ({error}); create it again, or send it again"
            ) from error
        with archive:
            yield _list_members(file, archive, limits)


def member_names(file: Path) -> list[str]:
    """The unchecked names in a zip archive; empty if the file is not an archive or its directory is too large."""
    try:
        with _BoundedFile(file) as content, _read_directory(content, ArchiveLimits()) as archive:
            return archive.namelist()
    except (_DirectoryTooLarge, *_READ_ERRORS):
        return []


def _read_directory(content: _BoundedFile, limits: ArchiveLimits) -> zipfile.ZipFile:
    # zipfile reads the whole directory into memory: a few hundred bytes per file.
    content.max_read_bytes = max(limits.files * _DIRECTORY_BYTES_PER_FILE, 1 << 16) + 64
    archive = zipfile.ZipFile(content)
    content.max_read_bytes = None
    return archive


def unpack(file: Path, folder: Path, limits: ArchiveLimits = ArchiveLimits()) -> list[Path]:
    """Writes the archive's files below ``folder`` and returns their paths. Raises the errors of ``open_archive``."""
    written = []
    with open_archive(file, limits) as members:
        for member in members:
            target = folder / member.path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                out = target.open("xb")
            except (FileExistsError, NotADirectoryError) as error:
                raise InvalidInputError(
                    f"{file.name} contains {member.name!r} twice; create the archive again"
                ) from error
            except OSError as error:
                raise InvalidInputError(
                    f"{file.name}: {member.name[:80]!r} cannot be written to disk ({error.strerror}); give it another "
                    "name in the archive"
                ) from error
            with out:
                for chunk in member.chunks():
                    out.write(chunk)
            written.append(target)
    return written


@contextmanager
def unpacked(file: Path, limits: ArchiveLimits = ArchiveLimits()) -> Iterator[Path]:
    """A temporary folder with the archive's files, named like the archive; deleted at the end of the context."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / file.name
        folder.mkdir()
        unpack(file, folder, limits)
        yield folder


def _list_members(file: Path, archive: zipfile.ZipFile, limits: ArchiveLimits) -> list[ArchiveMember]:
    # A name that ends with a slash is a folder, unless it has content.
    entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/") or entry.file_size]
    entries = [entry for entry in entries if not _added_by_macos(entry.filename)]
    if len(entries) > limits.files:
        raise InvalidInputError(f"{file.name} contains {len(entries)} files; the maximum is {limits.files}", status=413)
    size = sum(entry.file_size for entry in entries)
    packed = max(file.stat().st_size, 1)
    if size > min(limits.unpacked_bytes, max(_MAX_EXPANSION * packed, _ALWAYS_ALLOWED_BYTES)):
        raise InvalidInputError(
            f"{file.name} would unpack to {size / 2**20:,.1f} MiB, {size / packed:,.0f} times its size; the maximum "
            f"is {limits.unpacked_bytes / 2**20:,.1f} MiB and {_MAX_EXPANSION} times its size",
            status=413,
        )
    lock = threading.Lock()
    return [
        ArchiveMember(entry.filename, _checked_path(file, entry), entry.file_size, archive, entry, file.name, lock)
        for entry in entries
    ]


def _added_by_macos(name: str) -> bool:
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1] == ".DS_Store"


def _checked_path(file: Path, entry: zipfile.ZipInfo) -> PurePosixPath:
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise InvalidInputError(
            f"{file.name} contains {entry.filename!r}, which points outside the archive; create the archive again"
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InvalidInputError(f"{file.name} contains a link ({entry.filename}); add the file itself instead")
    if entry.flag_bits & _ENCRYPTED:
        raise InvalidInputError(f"{file.name} is encrypted ({entry.filename}); create it without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python decompresses bzip2 and LZMA without a size limit: 4 kB of bzip2 can expand to gigabytes.
        method = _UNSUPPORTED_METHODS.get(entry.compress_type, f"method {entry.compress_type}")
        raise InvalidInputError(f"{file.name} is compressed with {method} ({entry.filename}); compress it with deflate")
    return path
