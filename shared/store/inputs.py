"""The record of the input files of a case: names, sizes and digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.store.records import InputFile


def describe_inputs(paths: Iterable[Path], kinds: Sequence[str] | None = None) -> tuple[InputFile, ...]:
    """The name, size and SHA-256 of each file. Files in a folder have their path from that folder on as the name.

    With ``kinds``, suffixes such as ``.nii.gz``, no file name is kept: the name is made from the suffix, such as
    "nii.gz file".
    """
    described = []
    for path in paths:
        members = sorted(member for member in path.rglob("*") if member.is_file()) if path.is_dir() else [path]
        for member in members:
            if kinds is not None:
                name = _kind(member.name, kinds)
            else:
                name = member.relative_to(path.parent).as_posix() if path.is_dir() else member.name
            with member.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            described.append(InputFile(name=name, bytes=member.stat().st_size, sha256=digest))
    return tuple(described)


def digest_of_all(inputs: Iterable[InputFile]) -> str:
    """The SHA-256 of all inputs together, independent of their order."""
    lines = sorted(f"{item.sha256}  {item.name}\n" for item in inputs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _kind(name: str, kinds: Sequence[str]) -> str:
    # Another suffix may be part of a person's name.
    suffix = max((kind for kind in kinds if name.lower().endswith(kind)), key=len, default="")
    return f"{suffix[1:]} file" if suffix else "file"
