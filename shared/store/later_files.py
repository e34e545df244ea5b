"""Case files that are generated on the first request. Until then, the case folder has their sources."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from shared.store.records import Bytes, Outputs

_LIST, _SOURCE, _LASTING, _INPUT = ".later.json", ".source-", ".lasting-", ".input-"
_MAX_GROWTH_BYTES = 1_000_000


def write(folder: Path, outputs: Outputs) -> None:
    """Writes the inputs and sources of a new case and, if files are to be generated, the list of their sources."""
    for name, content in outputs.inputs.items():
        write_private(folder / f"{_INPUT}{name}", content)
    for name, content in outputs.sources.items():
        if name in outputs.lasting:
            write_private(folder / f"{_LASTING}{name}", content)
        elif outputs.later:
            write_private(folder / f"{_SOURCE}{name}", content)
    if not outputs.later:
        return
    write_private(folder / _LIST, json.dumps({name: list(needed) for name, needed in outputs.later.items()}).encode())


def sources(folder: Path, name: str) -> dict[str, Path | bytes] | None:
    """The sources of the file ``name``, by name; None if the file is not in the list or a source is missing."""
    needed = _read_list(folder).get(name)
    if needed is None:
        return None
    paths: dict[str, Path | bytes] = {source: _source_path(folder, source) for source in needed}
    return paths if all(Path(str(path)).is_file() for path in paths.values()) else None


def lasting(folder: Path, name: str) -> Path | None:
    """The path of a source that is kept as long as its case; None if there is none of this name."""
    source = folder / f"{_LASTING}{name}"
    return source if source.is_file() else None


def kept_input(folder: Path, name: str) -> Path | None:
    """The path of a kept input; None if it was not kept."""
    path = folder / f"{_INPUT}{name}"
    return path if path.is_file() else None


def keep(folder: Path, name: str, content: Bytes) -> int:
    """Keeps a generated file, removes sources that no other file needs, and returns the size of the folder in bytes.

    A file that takes much more space than the sources that only it needs is not kept, but generated on each request.
    """
    later = _read_list(folder)
    shared = {source for file, needed in later.items() if file != name for source in needed}
    own = [folder / f"{_SOURCE}{source}" for source in later.get(name, ()) if source not in shared]
    freed = sum(path.stat().st_size for path in own if path.is_file())
    if not freed or len(content) < freed + _MAX_GROWTH_BYTES:
        _replace(folder, name, content)
        still_needed = {source for file, needed in later.items() if not (folder / file).is_file() for source in needed}
        for path in folder.glob(f"{_SOURCE}*"):
            if path.name.removeprefix(_SOURCE) not in still_needed:
                path.unlink(missing_ok=True)
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _replace(folder: Path, name: str, content: Bytes) -> None:
    temporary = folder / f".partial-{os.urandom(4).hex()}"
    try:
        write_private(temporary, content)
        temporary.replace(folder / name)
    finally:
        temporary.unlink(missing_ok=True)


def write_private(path: Path, content: Bytes) -> None:
    """Writes a new file that only the server's account can read."""
    with open(path, "xb", opener=lambda file_path, flags: os.open(file_path, flags, mode=0o600)) as file:
        file.write(content)


def _read_list(folder: Path) -> Mapping[str, Sequence[str]]:
    try:
        sources_by_file: Mapping[str, Sequence[str]] = json.loads((folder / _LIST).read_bytes())
    except FileNotFoundError:
        return {}
    return sources_by_file


def _source_path(folder: Path, name: str) -> Path:
    source = folder / f"{_SOURCE}{name}"
    return source if source.is_file() else lasting(folder, name) or folder / name
