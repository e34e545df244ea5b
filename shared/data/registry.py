"""The data registry: the public files that an application can use, their sources, and whether they are available.

An app's ``datasets/registry.json`` lists entries with name, title, licence, source, and files. A file has a path, a
size in bytes, a SHA-256 and, if there is a direct public address, a url. Files are searched first in the folder that
the environment variable TRIVIUM_DATA names, then in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from shared.errors import InvalidInputError

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file: its path below the data folder, size, checksum, and public address if there is a direct one."""

    path: str
    bytes: int
    sha256: str
    url: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A named set of public files. ``source`` says who publishes them and how to get them manually."""

    name: str
    title: str
    licence: str
    source: str
    files: tuple[DataFile, ...]

    def locate(self) -> Path | None:
        """The folder that contains all files of the entry, or None if any of them is missing."""
        for root in _search_folders():
            if all((root / file.path).is_file() for file in self.files):
                return root
        return None

    def require(self) -> Path:
        """Like ``locate``, but raises ``InvalidInputError`` with a remedy if any file is missing."""
        root = self.locate()
        if root is None:
            raise InvalidInputError(f"the data set {self.name} is not on this machine; {self.how_to_get()}")
        return root

    def how_to_get(self) -> str:
        """What a user does to have the data set on this machine, and its source."""
        if all(file.url for file in self.files):
            return f"run `trivium data fetch {self.name}`. Source: {self.source}"
        return (
            f"get it from its source and put it into {cache_folder()}, or into a folder that TRIVIUM_DATA names, so "
            f"that this folder contains {self.files[0].path}. Source: {self.source}"
        )

    def verify(self) -> list[str]:
        """The problems of the files on this machine: missing, or a wrong size or checksum. Empty if there are none."""
        root = self.locate()
        if root is None:
            return [f"{self.name}: not on this machine"]
        return [
            f"{root / file.path}: {problem}"
            for file in self.files
            if (problem := _find_problem(root / file.path, file))
        ]

    def fetch(self) -> Path:
        """Downloads missing files to the user's cache and returns the folder.

        A file gets its final name only after its checksum is verified. Raises ``InvalidInputError`` if a file has no
        direct address, the download fails, or the content differs.
        """
        if (root := self.locate()) is not None:
            return root
        if not all(file.url for file in self.files):
            raise InvalidInputError(f"{self.name} cannot be downloaded file by file; {self.how_to_get()}")
        root = cache_folder()
        for file in self.files:
            target = root / file.path
            if target.is_file() and _find_problem(target, file) is None:
                continue
            assert file.url is not None
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".partial")
            try:
                with urllib.request.urlopen(file.url, timeout=60) as response, partial.open("wb") as out:
                    shutil.copyfileobj(response, out, _CHUNK_BYTES)
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise InvalidInputError(
                    f"{file.url} could not be downloaded: {error}; try again, or download it manually"
                ) from error
            if problem := _find_problem(partial, file):
                partial.unlink()
                raise InvalidInputError(f"{file.url} does not match the registry: {problem}")
            partial.rename(target)
        return root


def read_registry(path: Path) -> dict[str, Entry]:
    """The entries of a ``registry.json`` by name; empty if the file does not exist."""
    if not path.is_file():
        return {}
    entries = TypeAdapter(list[Entry]).validate_json(path.read_bytes())
    return {entry.name: entry for entry in entries}


def cache_folder() -> Path:
    """The folder of downloaded data: ``trivium/data`` in the user's cache folder (XDG base directories)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trivium" / "data"


def _search_folders() -> list[Path]:
    data_folder = os.environ.get("TRIVIUM_DATA")
    return [Path(data_folder), cache_folder()] if data_folder else [cache_folder()]


def _find_problem(path: Path, file: DataFile) -> str | None:
    if not path.is_file():
        return "missing"
    if path.stat().st_size != file.bytes:
        return f"{path.stat().st_size} bytes instead of {file.bytes}"
    with path.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
            return "its SHA-256 differs"
    return None
