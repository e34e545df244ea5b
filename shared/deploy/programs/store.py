"""The programs of an artifact: those in the artifact itself, and those made on this machine, in the user's cache.

Programs that can be made from an artifact's weights in seconds are not shipped. The exceptions are ONNX files small
enough to be loaded before torch is imported. INT8 programs take minutes to make and are shipped.
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

_CACHE_VERSION = 2
"""Increase it when exported networks or the choice of programs change: older programs are then made again."""

_WITH_CODE = ("aotinductor", "torchscript")
"""Programs whose file runs as a program does: machine code, and TorchScript, which can also read and write files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramIndex:
    """The content of ``programs.json``: programs by name, and the digests of their files."""

    programs: dict[str, ProgramEntry] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredProgram:
    """A program's file and its entry."""

    path: Path
    entry: ProgramEntry


def weights_digest(artifact: Artifact) -> str:
    """The SHA-256 of the artifact's weights."""
    return str(artifact.manifest.files.get(WEIGHTS, {}).get("sha256", ""))


def cache_folder(artifact: Artifact) -> Path:
    """The folder for programs made for the artifact, below ``trivium/programs`` in the user's cache folder."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trivium" / "programs"
    return root / f"{artifact.manifest.name}-{_CACHE_VERSION}-{weights_digest(artifact)[:16]}"


def create_cache_folder(artifact: Artifact) -> Path:
    """Returns ``cache_folder`` and creates it if needed. Raises ``InvalidInputError`` if it cannot be created."""
    folder = cache_folder(artifact)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{folder} cannot be created: {error.strerror}; set XDG_CACHE_HOME to a writable folder"
        ) from error
    return folder


def stored_programs(artifact: Artifact) -> tuple[dict[str, StoredProgram], tuple[str, ...]]:
    """Returns the usable programs of an artifact by name, and remarks on missing or altered ones.

    An ONNX file without an entry is not used: it may have been made from other weights. A program made on this machine
    replaces the artifact's program of the same name, unless it was rejected for its score and the artifact's was
    accepted.
    """
    found: dict[str, StoredProgram] = {}
    remarks = []
    weights = weights_digest(artifact)
    cache = cache_folder(artifact)
    index, remark = _read_index(cache)
    remarks += [remark] if remark else []
    sources = (
        (artifact.path, artifact.manifest.programs, artifact.manifest.files),
        (cache, index.programs, index.files),
    )
    for folder, programs, files in sources:
        for name, entry in programs.items():
            if entry.weights != weights:
                remarks.append(f"{name} in {folder} was made from weights other than the artifact's")
            elif entry.file not in files or (folder == cache and not _matches_digests(folder, entry.file, files)):
                remarks.append(f"{name} in {folder} is missing or was altered; make it again: trivium programs")
            elif not (name in found and is_accepted(found[name].entry) and is_rejected(entry)):
                found[name] = StoredProgram(folder / entry.file, entry)
    if NETWORK in artifact.manifest.files and not {"onnx"} & {*artifact.manifest.programs, *found}:
        remarks.append(
            f"{NETWORK} in {artifact.path} is not used: {MANIFEST} does not say from which weights it was made; "
            f"`trivium programs {artifact.manifest.app} --artifact {artifact.path} --make onnx` makes a new one, and "
            "`trivium export` makes an artifact that records its weights"
        )
    return found, tuple(remarks)


def usable_programs(artifact: Artifact, requested: str | None) -> tuple[dict[str, StoredProgram], tuple[str, ...]]:
    """``stored_programs`` without programs of the artifact itself that contain code, unless one is ``requested``.

    Opening an artifact from others must not run their code. Programs in the cache were made on this machine.
    """
    found, remarks = stored_programs(artifact)
    withheld = [name for name in _WITH_CODE if name in found and found[name].path.parent == artifact.path]
    for name in withheld:
        if name != requested:
            del found[name]
            remarks += (f"{name} in {artifact.path} contains code, so it is used only on request: --program {name}",)
    return found, remarks


def is_accepted(entry: ProgramEntry) -> bool:
    """Whether a quantised program was accepted by its domain score."""
    return bool(entry.scores.get("accepted"))


def is_rejected(entry: ProgramEntry) -> bool:
    """Whether a quantised program was rejected because its domain score fell too far."""
    return entry.scores.get("accepted") is False


def add_to_cache(artifact: Artifact, folder: Path, programs: Mapping[str, ProgramEntry]) -> None:
    """Moves the files in ``folder`` into the artifact's cache folder, and adds the entries to its index."""
    cache = create_cache_folder(artifact)
    with file_lock(cache / ".lock"):
        old_index, _ = _read_index(cache)
        files = {file.name: describe_file(file) for file in sorted(folder.iterdir())}
        for file in list(folder.iterdir()):
            staging = Path(tempfile.mkdtemp(prefix=".aside-", dir=cache))
            shutil.move(file, staging / file.name)
            (staging / file.name).replace(cache / file.name)
            staging.rmdir()
        new_index = ProgramIndex(programs={**old_index.programs, **programs}, files={**old_index.files, **files})
        write_whole(cache / "programs.json", json.dumps(asdict(new_index), indent=2) + "\n")


def _read_index(cache: Path) -> tuple[ProgramIndex, str | None]:
    try:
        return TypeAdapter(ProgramIndex).validate_json((cache / "programs.json").read_bytes()), None
    except FileNotFoundError:
        return ProgramIndex(), None
    except (OSError, ValidationError):
        return ProgramIndex(), f"{cache / 'programs.json'} cannot be read; make the programs again: trivium programs"


def _matches_digests(folder: Path, file: str, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a program's file, and its weights file if it has one, match their digests."""
    names = [name for name in files if Path(name).stem == Path(file).stem] or [file]
    return all((folder / name).is_file() and describe_file(folder / name) == files.get(name) for name in names)
