"""Unpacks an uploaded zip without trusting it: no way out of the folder, no links, no bombs."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from shared.errors import InvalidInputError

MOST_BYTES = 1 << 30
MOST_FILES = 5000
_CHUNK = 1 << 20
_LINK = 0xA000


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """A folder that is called like the archive and holds its files for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / archive.name
        folder.mkdir()
        unpack(archive, folder)
        yield folder


def unpack(archive: Path, folder: Path, *, most_bytes: int = MOST_BYTES) -> None:
    """Writes the files of ``archive`` below ``folder``; refuses what would lie elsewhere, or be too much."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = [one for one in content.infolist() if not one.filename.endswith("/") or one.file_size]
            if len(members) > MOST_FILES:
                raise InvalidInputError(f"{archive.name} holds {len(members)} files; at most {MOST_FILES} are taken")
            left = most_bytes
            for member in members:
                if member.filename.startswith("__MACOSX/") or member.filename.endswith(".DS_Store"):
                    continue
                left -= _write(content, member, folder / _inside(archive, member), archive, left)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InvalidInputError(f"{archive.name} cannot be read as a zip: {error}") from error


def _inside(archive: Path, member: zipfile.ZipInfo) -> Path:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise InvalidInputError(f"{archive.name} names a file outside of itself ({member.filename}); it is not taken")
    if (member.external_attr >> 16) & 0xF000 == _LINK:
        raise InvalidInputError(f"{archive.name} holds a link ({member.filename}); put the file itself in")
    if member.flag_bits & 0x1:
        raise InvalidInputError(f"{archive.name} is encrypted; give it without a password")
    return Path(*path.parts)


def _write(content: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, archive: Path, left: int) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    # The size that the directory of a zip states need not be true, so bytes are counted as they come.
    with content.open(member) as source, target.open("wb") as out:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > left:
                raise InvalidInputError(
                    f"{archive.name} unpacks to too much; frames of up to {MOST_BYTES >> 20} MiB are taken"
                )
            out.write(chunk)
    return written
