"""The files that a user provided, as single files, folders or zip archives: their names and how to read them.

Archive members are read into memory one at a time, within the limits of ``shared/data/archive``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shared.data.archive import open_archive
from shared.errors import InvalidInputError

MAX_FILES = 10_000
_HARMLESS = (
    *(".txt", ".xml", ".json", ".csv", ".tsv", ".md", ".pdf", ".rtf", ".doc", ".docx", ".xls", ".xlsx", ".log", ".md5"),
    *(".htm", ".html", ".css", ".js", ".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ico", ".db"),
    *(".inf", ".ini", ".cfg", ".config", ".exe", ".dll", ".jar", ".bat", ".cmd", ".sh", ".app", ".chm"),
)
_HARMLESS_NAMES = ("DICOMDIR", "LICENSE", "README", "VERSION", "LOCKFILE")
"""Files that accompany DICOM on media and in archives: notes, tables, pictures, a viewer and its files."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file: its path within the folder or archive, and a function that reads its content, which is not kept."""

    label: str
    read: Callable[[], bytes]


def is_harmless(label: str) -> bool:
    """Whether a file beside a CT can be ignored: usual other files on DICOM media, and hidden files."""
    parts = PurePosixPath(label.replace("\\", "/")).parts or ("",)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return hidden or parts[-1].upper() in _HARMLESS_NAMES or parts[-1].lower().endswith(_HARMLESS)


def first_few(names: Sequence[str]) -> str:
    """The first three names, and the number of further names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def members(files: Sequence[Path]) -> Iterator[list[Member]]:
    """All files that may be DICOM, including those in folders and archives. Archives stay open within the context."""
    with ExitStack() as opened:
        yield [member for file in files for member in _members(file, opened)]


def _members(file: Path, opened: ExitStack) -> list[Member]:
    if file.is_dir():
        found = sorted(path for path in file.rglob("*") if path.is_file())
        if len(found) > MAX_FILES:
            raise InvalidInputError(f"{file.name} holds {len(found)} files; provide the folder of a single series")
        return [Member(path.relative_to(file).as_posix(), path.read_bytes) for path in found]
    if zipfile.is_zipfile(file) or file.suffix.lower() == ".zip":
        return [Member(member.name, member.read) for member in opened.enter_context(open_archive(file))]
    return [Member(file.name, file.read_bytes)]
