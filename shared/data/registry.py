"""The data registry: which public files an application knows, where they come from, and whether they are at hand.

An app's ``datasets/registry.json`` lists entries: name, title, licence, source, and files with path,
size in bytes, SHA-256 and, where there is a direct public address, url. Files are looked for under the folder in the
environment variable TRIVIUM_DATA first, then in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from shared.errors import InvalidInputError

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """One file: its path below the data folder, size, digest, and public address where there is a direct one."""

    path: str
    bytes: int
    sha256: str
    url: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A named set of public files. ``source`` says whose they are and how to get them by hand."""

    name: str
    title: str
    licence: str
    source: str
    files: tuple[DataFile, ...]

    def locate(self) -> Path | None:
        """The folder below which all files of the entry lie, or None where any of them is missing."""
        for root in _roots():
            if all((root / file.path).is_file() for file in self.files):
                return root
        return None

    def require(self) -> Path:
        """Like ``locate``; refuses with how to get the data."""
        root = self.locate()
        if root is None:
            raise InvalidInputError(
                f"the data set {self.name} is not on this machine; run `trivium data fetch {self.name}`, or set "
                f"TRIVIUM_DATA to a folder that holds {self.files[0].path}. Source: {self.source}"
            )
        return root

    def verify(self) -> list[str]:
        """The faults of the files at hand: missing, or of another size or digest. Empty where all is well."""
        root = self.locate()
        if root is None:
            return [f"{self.name}: not on this machine"]
        return [f"{root / file.path}: {fault}" for file in self.files if (fault := _fault(root / file.path, file))]

    def fetch(self) -> Path:
        """Downloads what is missing into the user's cache, each file verified before it gets its name."""
        if (root := self.locate()) is not None:
            return root
        root = cache()
        for file in self.files:
            target = root / file.path
            if target.is_file() and _fault(target, file) is None:
                continue
            if file.url is None:
                raise InvalidInputError(
                    f"{file.path} has no direct address; get it by hand into {target}. Source: {self.source}"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".partial")
            try:
                with urllib.request.urlopen(file.url, timeout=60) as answer, partial.open("wb") as out:
                    shutil.copyfileobj(answer, out, _CHUNK)
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise InvalidInputError(
                    f"{file.url} could not be fetched: {error}; try again, or get it by hand"
                ) from error
            if fault := _fault(partial, file):
                partial.unlink()
                raise InvalidInputError(f"{file.url} is not what the registry knows: {fault}")
            partial.rename(target)
        return root


def read_registry(path: Path) -> dict[str, Entry]:
    """The entries in a ``registry.json`` by name."""
    if not path.is_file():
        return {}
    entries = TypeAdapter(list[Entry]).validate_python(json.loads(path.read_text(encoding="utf-8")))
    return {entry.name: entry for entry in entries}


def cache() -> Path:
    """Where fetched data is kept: ``trivium/data`` in the user's cache folder (XDG base directories)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trivium" / "data"


def _roots() -> list[Path]:
    named = os.environ.get("TRIVIUM_DATA")
    return [Path(named), cache()] if named else [cache()]


def _fault(path: Path, file: DataFile) -> str | None:
    if not path.is_file():
        return "missing"
    if path.stat().st_size != file.bytes:
        return f"{path.stat().st_size} bytes instead of {file.bytes}"
    with path.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
            return "its SHA-256 differs"
    return None
