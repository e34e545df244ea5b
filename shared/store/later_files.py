"""Files of a case that are made when somebody asks for them: until then there is what they are made from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from shared.store.records import Bytes, Outputs

_LIST, _SOURCE, _LASTING, _INPUT = ".later.json", ".source-", ".lasting-", ".input-"
_MUCH = 1_000_000


def write(folder: Path, outputs: Outputs) -> None:
    """Writes inputs and sources of a new case, and which file is made from which; no list where none is for later."""
    for name, content in outputs.inputs.items():
        write_private(folder / f"{_INPUT}{name}", content)
    for name, content in outputs.sources.items():
        if name in outputs.lasting:
            write_private(folder / f"{_LASTING}{name}", content)
        elif outputs.later:
            write_private(folder / f"{_SOURCE}{name}", content)
    if not outputs.later:
        return
    write_private(folder / _LIST, json.dumps({name: list(found) for name, found in outputs.later.items()}).encode())


def sources(folder: Path, name: str) -> dict[str, Path | bytes] | None:
    """What the file ``name`` is made from; None where it is none of those, or something is gone."""
    wanted = _later(folder).get(name)
    if wanted is None:
        return None
    found: dict[str, Path | bytes] = {one: _place(folder, one) for one in wanted}
    return found if all(Path(str(path)).is_file() for path in found.values()) else None


def lasting(folder: Path, name: str) -> Path | None:
    """Where a source lies that stays as long as its case; None where there is none of that name."""
    source = folder / f"{_LASTING}{name}"
    return source if source.is_file() else None


def kept_input(folder: Path, name: str) -> Path | None:
    """Where what was analysed lies; None where it was not kept."""
    place = folder / f"{_INPUT}{name}"
    return place if place.is_file() else None


def keep(folder: Path, name: str, content: Bytes) -> int:
    """Keeps a file that was made, removes the sources that no other needs, and returns what the folder takes.

    One that takes much more than what it alone is made from is not kept: it is made again when it is asked for again.
    """
    later = _later(folder)
    shared = {one for file, wanted in later.items() if file != name for one in wanted}
    own = [folder / f"{_SOURCE}{one}" for one in later.get(name, ()) if one not in shared]
    freed = sum(source.stat().st_size for source in own if source.is_file())
    if not freed or len(content) < freed + _MUCH:
        _replace(folder, name, content)
        needed = {one for file, wanted in later.items() if not (folder / file).is_file() for one in wanted}
        for source in folder.glob(f"{_SOURCE}*"):
            if source.name.removeprefix(_SOURCE) not in needed:
                source.unlink(missing_ok=True)
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _replace(folder: Path, name: str, content: Bytes) -> None:
    aside = folder / f".partial-{os.urandom(4).hex()}"
    try:
        write_private(aside, content)
        aside.replace(folder / name)
    finally:
        aside.unlink(missing_ok=True)


def write_private(path: Path, content: Bytes) -> None:
    """Writes a new file that only the account of the server can read."""
    with open(path, "xb", opener=lambda place, flags: os.open(place, flags, mode=0o600)) as file:
        file.write(content)


def _later(folder: Path) -> Mapping[str, Sequence[str]]:
    try:
        found: Mapping[str, Sequence[str]] = json.loads((folder / _LIST).read_bytes())
    except FileNotFoundError:
        return {}
    return found


def _place(folder: Path, name: str) -> Path:
    source = folder / f"{_SOURCE}{name}"
    return source if source.is_file() else lasting(folder, name) or folder / name
