"""What is kept of the files that were handed in: names, sizes and digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.store.records import InputFile


def describe_inputs(paths: Iterable[Path], kinds: Sequence[str] | None = None) -> tuple[InputFile, ...]:
    """Name, size and digest of files; those in a folder are named from it down.

    With ``kinds``, endings such as ``.nii.gz``, no name is kept: a file is called after the ending that it has.
    """
    found = []
    for path in paths:
        members = sorted(member for member in path.rglob("*") if member.is_file()) if path.is_dir() else [path]
        for member in members:
            if kinds is not None:
                name = _kind(member.name, kinds)
            else:
                name = member.relative_to(path.parent).as_posix() if path.is_dir() else member.name
            with member.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            found.append(InputFile(name=name, bytes=member.stat().st_size, sha256=digest))
    return tuple(found)


def digest_of_all(inputs: Iterable[InputFile]) -> str:
    """SHA-256 of all inputs together; their order does not matter."""
    lines = sorted(f"{item.sha256}  {item.name}\n" for item in inputs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _kind(name: str, kinds: Sequence[str]) -> str:
    # An ending that is not among them may be a part of a person's name.
    found = max((kind for kind in kinds if name.lower().endswith(kind)), key=len, default="")
    return f"{found[1:]} file" if found else "file"
