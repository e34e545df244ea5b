"""Programs that were made on this machine for an artifact, in the user's cache; and those that the artifact holds.

What can be made of an artifact's weights in seconds is not shipped: no program but INT8, which takes minutes, and an
ONNX that is as small as to be read before torch is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from shared.atomic_files import file_lock, write_whole
from shared.deploy.artifact import MANIFEST, NETWORK, WEIGHTS, Artifact, ProgramEntry, describe_file
from shared.errors import InvalidInputError

_LAYOUT = 2
"""Of the networks that the applications export, and of how a program is chosen: what was made before is made anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """The content of ``programs.json``: programs by name, and the digests of their files."""

    programs: dict[str, ProgramEntry] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """A program's file, and what is said of it."""

    path: Path
    entry: ProgramEntry


def weights_digest(artifact: Artifact) -> str:
    """The SHA-256 of the artifact's weights."""
    return str(artifact.manifest.files.get(WEIGHTS, {}).get("sha256", ""))


def folder_of(artifact: Artifact) -> Path:
    """Where programs made for the artifact are kept: ``trivium/programs`` in the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trivium" / "programs"
    return home / f"{artifact.manifest.name}-{_LAYOUT}-{weights_digest(artifact)[:16]}"


def programs_folder(artifact: Artifact) -> Path:
    """``folder_of`` an artifact, made where it is missing; refuses a place that cannot be written to."""
    home = folder_of(artifact)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{home} cannot be made: {error.strerror}; set XDG_CACHE_HOME to a folder") from error
    return home


def found_programs(artifact: Artifact) -> tuple[dict[str, Found], tuple[str, ...]]:
    """The programs of an artifact whose files are there and unaltered, by name, and remarks on those that are not.

    An ONNX of which no entry says from which weights it was made is not among them: it may be that of others.
    One made on this machine takes the place of the artifact's own of its name, but where its score alone was refused.
    """
    found: dict[str, Found] = {}
    remarks = []
    weights = weights_digest(artifact)
    home = folder_of(artifact)
    made, remark = _read(home)
    remarks += [remark] if remark else []
    held = ((artifact.path, artifact.manifest.programs, artifact.manifest.files), (home, made.programs, made.files))
    for folder, programs, files in held:
        for name, entry in programs.items():
            if entry.weights != weights:
                remarks.append(f"{name} in {folder} was made from other weights than the artifact's")
            elif entry.file not in files or (folder == home and not _unaltered(folder, entry.file, files)):
                remarks.append(f"{name} in {folder} is missing or was altered; make it again: trivium programs")
            elif not (name in found and is_accepted(found[name].entry) and is_refused(entry)):
                found[name] = Found(folder / entry.file, entry)
    if NETWORK in artifact.manifest.files and not {"onnx"} & {*artifact.manifest.programs, *found}:
        remarks.append(
            f"{NETWORK} in {artifact.path} is not used: {MANIFEST} does not say from which weights it was made; "
            f"`trivium programs {artifact.manifest.app} --artifact {artifact.path} --make onnx` makes one, and "
            "`trivium export` an artifact that says it"
        )
    return found, tuple(remarks)


def is_accepted(entry: ProgramEntry) -> bool:
    """Whether the domain's score of a quantised program was good enough."""
    return bool(entry.scores.get("accepted"))


def is_refused(entry: ProgramEntry) -> bool:
    """Whether a quantised program lost too much of the domain's score."""
    return entry.scores.get("accepted") is False


def keep(artifact: Artifact, folder: Path, programs: Mapping[str, ProgramEntry]) -> None:
    """Moves the files in ``folder`` and what is said of them into the artifact's place in the cache."""
    home = programs_folder(artifact)
    with file_lock(home / ".lock"):
        before, _ = _read(home)
        files = {file.name: describe_file(file) for file in sorted(folder.iterdir())}
        for file in list(folder.iterdir()):
            aside = Path(tempfile.mkdtemp(prefix=".aside-", dir=home))
            shutil.move(file, aside / file.name)
            (aside / file.name).replace(home / file.name)
            aside.rmdir()
        now = Made(programs={**before.programs, **programs}, files={**before.files, **files})
        write_whole(home / "programs.json", json.dumps(asdict(now), indent=2) + "\n")


def _read(home: Path) -> tuple[Made, str | None]:
    try:
        return TypeAdapter(Made).validate_json((home / "programs.json").read_bytes()), None
    except FileNotFoundError:
        return Made(), None
    except (OSError, ValidationError):
        return Made(), f"{home / 'programs.json'} cannot be read; make the programs again: trivium programs"


def _unaltered(folder: Path, file: str, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a program's file, and that of its weights where it has one beside it, are as their digests say."""
    names = [name for name in files if Path(name).stem == Path(file).stem] or [file]
    return all((folder / name).is_file() and describe_file(folder / name) == files.get(name) for name in names)
