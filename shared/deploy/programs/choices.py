"""Which program was chosen for an artifact on this machine, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
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
    return _read(_choice_file(artifact, place, _conditions(artifact, place.device)))


def choices(artifact: Artifact) -> list[Choice]:
    """The choices that hold for the artifact on this machine: for each number of threads, and for a GPU.

    What was chosen among other programs or by other versions of their runtimes holds no more.
    """
    on_cpu = _conditions(artifact, "cpu")
    places = (Placement("cpu", threads + 1) for threads in range(os.cpu_count() or 1))
    made = [_read(_choice_file(artifact, place, on_cpu)) for place in places]
    return [choice for choice in (*made, read_choice(artifact, Placement("cuda", 1))) if choice is not None]


def forget_choices(artifact: Artifact) -> None:
    """Has the next predictor measure again."""
    for file in folder_of(artifact).glob("choice-*.json"):
        file.unlink(missing_ok=True)


def write_choice(artifact: Artifact, place: Placement, choice: Choice) -> None:
    """Remembers a choice; where the cache cannot be written to, the log says so."""
    from shared.atomic_files import write_whole

    file = _choice_file(artifact, place, _conditions(artifact, place.device))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(choice), indent=2) + "\n")
    except OSError as error:
        log.warning("the chosen program cannot be remembered: %s", error)


def _conditions(artifact: Artifact, device: str) -> list[str]:
    """What a choice depends on besides the machine: the runtimes' versions, and the programs that there are."""
    versions = [f"{name} {runtime.version()}" for name, runtime in RUNTIMES.items() if _present(name, device)]
    return [*versions, *sorted(found_programs(artifact)[0]), _COMPILED]


def _choice_file(artifact: Artifact, place: Placement, conditions: Sequence[str]) -> Path:
    told = [machine(place.device, place.threads), *conditions]
    return folder_of(artifact) / f"choice-{hashlib.sha256(chr(10).join(told).encode()).hexdigest()[:16]}.json"


def _read(file: Path) -> Choice | None:
    try:
        return Choice(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _present(runtime: str, device: str) -> bool:
    return RUNTIMES[runtime].why_not("fp32", device) is None
