"""The files that a person handed in, one by one, in a folder, or in a zip archive, as names and contents.

An archive is read in memory: nothing of it is written to disk under a name of its own choosing.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from shared.errors import InvalidInputError

MOST_FILES = 10_000
MOST_BYTES = 4 << 30
"""What an archive may unpack to."""

MOST_EXPANSION = 200
"""An archive that unpacks to more than this times its size is taken for a bomb."""

_HARMLESS = (
    *(".txt", ".xml", ".json", ".csv", ".tsv", ".md", ".pdf", ".rtf", ".doc", ".docx", ".xls", ".xlsx", ".log", ".md5"),
    *(".htm", ".html", ".css", ".js", ".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ico", ".db"),
    *(".inf", ".ini", ".cfg", ".config", ".exe", ".dll", ".jar", ".bat", ".cmd", ".sh", ".app", ".chm"),
)
_HARMLESS_NAMES = ("DICOMDIR", "LICENSE", "README", "VERSION", "LOCKFILE")
"""What stands beside DICOM on media and in archives: notes, tables, pictures, a viewer and its files."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file by its name (in its folder or archive), and what reads its content; contents are not held."""

    label: str
    read: Callable[[], bytes]


def is_harmless(label: str) -> bool:
    """Whether a file may lie beside a CT and be passed over: what media hold besides it, and what systems hide."""
    parts = PurePosixPath(label.replace("\\", "/")).parts or ("",)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return hidden or parts[-1].upper() in _HARMLESS_NAMES or parts[-1].lower().endswith(_HARMLESS)


def some(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def members(files: Sequence[Path]) -> Iterator[list[Member]]:
    """Every file that may be DICOM: the files, those in folders, and those in archives, which stay open meanwhile."""
    with ExitStack() as opened:
        yield [member for file in files for member in _members(file, opened)]


def _members(file: Path, opened: ExitStack) -> list[Member]:
    if file.is_dir():
        found = sorted(path for path in file.rglob("*") if path.is_file())
        if len(found) > MOST_FILES:
            raise InvalidInputError(f"{file.name} holds {len(found)} files; hand in the folder of one series")
        return [Member(path.relative_to(file).as_posix(), path.read_bytes) for path in found]
    if zipfile.is_zipfile(file) or file.suffix.lower() == ".zip":
        return _of_archive(file, opened.enter_context(_archive(file)))
    return [Member(file.name, file.read_bytes)]


def _archive(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise InvalidInputError(
            f"{file.name} cannot be read as a zip ({error}); pack it anew, or send it again"
        ) from error


def _of_archive(file: Path, archive: zipfile.ZipFile) -> list[Member]:
    entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/") or entry.file_size]
    if len(entries) > MOST_FILES:
        raise InvalidInputError(f"{file.name} holds {len(entries)} files; pack one series, at most {MOST_FILES}")
    size = sum(entry.file_size for entry in entries)
    if size > MOST_BYTES or size > MOST_EXPANSION * max(file.stat().st_size, 1):
        raise InvalidInputError(f"{file.name} would unpack to {size >> 20} MiB; that is no CT series", status=413)
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise InvalidInputError(
                f"{file.name} holds {entry.filename!r}, which points outside the archive; pack it anew"
            )
        if entry.flag_bits & 1:
            raise InvalidInputError(f"{file.name} is encrypted ({entry.filename}); pack it without a password")
    return [Member(entry.filename, partial(_unpack, file, archive, entry)) for entry in entries]


def _unpack(file: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(entry) as content:
            # The directory states the size; the stream may lie.
            return content.read(entry.file_size + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, EOFError) as error:
        raise InvalidInputError(f"{file.name}: {entry.filename} cannot be unpacked ({error}); pack it anew") from error
