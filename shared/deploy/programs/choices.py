"""Which program was chosen for an artifact on this machine, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.deploy.programs.machine import machine
from shared.deploy.programs.program import Placement
from shared.deploy.programs.store import folder_of, found_programs
from shared.deploy.programs.table import RUNTIMES

if TYPE_CHECKING:
    from shared.deploy.artifact import Artifact

log = logging.getLogger("trivium.programs")
_COMPILED = "INT8 beside bf16; outputs compared"
"""How programs are compiled; changed with it, so that what was measured otherwise is measured again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A program and why it was chosen; ``milliseconds`` of all that were measured, by name."""

    program: str
    reason: str
    milliseconds: dict[str, float]


def read_choice(artifact: Artifact, place: Placement) -> Choice | None:
    """The choice that was made before for the artifact on this machine, or None."""
    try:
        return Choice(**json.loads(_choice_file(artifact, place).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def choices(artifact: Artifact) -> list[Choice]:
    """All choices that were made for the artifact in this cache: by device, threads and versions."""
    found = []
    for file in sorted(folder_of(artifact).glob("choice-*.json")):
        try:
            found.append(Choice(**json.loads(file.read_bytes())))
        except (OSError, ValueError, TypeError):
            continue
    return found


def forget_choices(artifact: Artifact) -> None:
    """Has the next predictor measure again."""
    for file in folder_of(artifact).glob("choice-*.json"):
        file.unlink(missing_ok=True)


def write_choice(artifact: Artifact, place: Placement, choice: Choice) -> None:
    """Remembers a choice; where the cache cannot be written to, the log says so."""
    from shared.atomic_files import write_whole

    file = _choice_file(artifact, place)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(choice), indent=2) + "\n")
    except OSError as error:
        log.warning("the chosen program cannot be remembered: %s", error)


def _choice_file(artifact: Artifact, place: Placement) -> Path:
    found, _ = found_programs(artifact)
    versions = [f"{name} {runtime.version()}" for name, runtime in RUNTIMES.items() if _present(name, place.device)]
    told = [machine(place.device, place.threads), *versions, *sorted(found), _COMPILED]
    return folder_of(artifact) / f"choice-{hashlib.sha256(chr(10).join(told).encode()).hexdigest()[:16]}.json"


def _present(runtime: str, device: str) -> bool:
    return RUNTIMES[runtime].why_not("fp32", device) is None
