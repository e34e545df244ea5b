"""Remembers in the user's cache which program was chosen for an artifact on this machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from shared.atomic_files import write_whole
from shared.deploy.programs.machine import describe_machine
from shared.deploy.programs.program import Placement
from shared.deploy.programs.store import cache_folder, stored_programs
from shared.deploy.programs.table import RUNTIMES

if TYPE_CHECKING:
    from shared.deploy.artifact import Artifact

log = logging.getLogger("trivium.programs")
_CHOICE_VERSION = "INT8 beside bf16; outputs compared"
"""Part of the key of a choice. Change it when programs are compiled differently, so that they are measured again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A program and the reason for its choice; ``milliseconds`` has the latency of each measured program by name."""

    program: str
    reason: str
    milliseconds: dict[str, float]


def read_choice(artifact: Artifact, place: Placement) -> Choice | None:
    """The remembered choice for the artifact on this machine, or None."""
    return _read_file(_choice_file(artifact, place, _conditions(artifact, place.device)))


def valid_choices(artifact: Artifact) -> list[Choice]:
    """The remembered choices for the artifact on this machine: one for each number of threads, and one for a GPU.

    A choice made among other programs, or with other versions of their runtimes, is no longer valid.
    """
    on_cpu = _conditions(artifact, "cpu")
    places = (Placement("cpu", threads + 1) for threads in range(os.cpu_count() or 1))
    cpu_choices = [_read_file(_choice_file(artifact, place, on_cpu)) for place in places]
    return [choice for choice in (*cpu_choices, read_choice(artifact, Placement("cuda", 1))) if choice is not None]


def clear_choices(artifact: Artifact) -> None:
    """Deletes the remembered choices, so that the next predictor measures again."""
    for file in cache_folder(artifact).glob("choice-*.json"):
        file.unlink(missing_ok=True)


def write_choice(artifact: Artifact, place: Placement, choice: Choice) -> None:
    """Remembers a choice; logs a warning if the cache cannot be written."""
    file = _choice_file(artifact, place, _conditions(artifact, place.device))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(choice), indent=2) + "\n")
    except OSError as error:
        log.warning("the chosen program cannot be remembered: %s", error)


def _conditions(artifact: Artifact, device: str) -> list[str]:
    """What a choice depends on besides the machine: the runtimes' versions and the existing programs."""
    available = [(name, runtime) for name, runtime in RUNTIMES.items() if runtime.why_not("fp32", device) is None]
    versions = [f"{name} {version(runtime.package)}" for name, runtime in available]
    return [*versions, *sorted(stored_programs(artifact)[0]), _CHOICE_VERSION]


def _choice_file(artifact: Artifact, place: Placement, conditions: Sequence[str]) -> Path:
    key_parts = [describe_machine(place.device, place.threads), *conditions]
    return cache_folder(artifact) / f"choice-{hashlib.sha256(chr(10).join(key_parts).encode()).hexdigest()[:16]}.json"


def _read_file(file: Path) -> Choice | None:
    try:
        return Choice(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
