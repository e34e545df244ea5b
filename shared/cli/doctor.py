"""``trivium doctor``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from shared.app import Table, installed
from shared.cli.arguments import Doctor
from shared.cli.printing import print_table
from shared.data.registry import read_registry
from shared.deploy.artifact import Artifact, open_artifact
from shared.deploy.registry import misplacement
from shared.errors import InvalidInputError
from shared.observe.doctor import Check, examine

_LARGE_CACHE_BYTES = 5e9


def run(command: Doctor) -> int:
    """Prints the checks of this machine; returns 1 if one of them failed."""
    checks = [*examine(), *_cache_check(), *_server_check(), *_application_checks()]
    rows = [("ok" if check.ok else "fault", check.name, check.found, check.remedy) for check in checks]
    print_table(Table(title="This machine", columns=("", "what", "found", "remedy"), rows=rows))
    return 0 if all(check.ok for check in checks) else 1


def _cache_check() -> list[Check]:
    """The size of the cache, and how to clear it."""
    from shared.data.build_cache import packs_folder, size_of

    size = size_of(packs_folder())
    existing = next(folder for folder in (packs_folder(), *packs_folder().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    found = f"{size / 1e9:.1f} GB of packed training data in {packs_folder()}; {free / 1e9:.0f} GB free"
    return [Check("cache", True, found, "trivium data clear removes it" if size > _LARGE_CACHE_BYTES else "")]


def _server_check() -> list[Check]:
    """Where a server's models would run: in worker processes or in the server's own process."""
    try:
        from shared.serve.runtime.models import half_of_memory, uses_worker_processes
        from shared.serve.settings import read_settings
        from shared.serve.worker.messages import SUPPORTED

        settings = read_settings()
    except ModuleNotFoundError as error:
        return [Check("server", True, f"not installed ({error.name}); trivium[serve] brings it")]
    except InvalidInputError as refusal:
        return [Check("server", False, "settings", str(refusal))]
    if not uses_worker_processes(settings):
        why = "TRIVIUM_WORKERS is 0" if SUPPORTED else "this system has no memfd and SOCK_SEQPACKET"
        remedy = "" if SUPPORTED else "a crash of a model ends the server; run the server on Linux"
        return [Check("server", True, f"models compute in the server's own process: {why}", remedy)]
    max_bytes = settings.worker_memory_bytes or half_of_memory()
    limit = "" if max_bytes is None else f", each of at most {max_bytes / 1e9:.1f} GB"
    count = len(settings.worker_devices)
    return [Check("server", True, f"{count} worker process{'es' if count > 1 else ''} for each model{limit}")]


def _artifact_checks(check_name: str, registry: Path) -> list[Check]:
    """Whether every version in a registry is complete and in the folder of its name and version."""
    checks = []
    for path in sorted(registry.glob("*/[0-9]*")):
        try:
            artifact = open_artifact(path)
            manifest = artifact.manifest
            if (problem := misplacement(path)) is not None:
                raise InvalidInputError(problem)
            checks.append(Check(check_name, True, f"{manifest.name} version {manifest.version}"))
            checks += [
                Check("program", True, f"{manifest.name}: {description}")
                for description in _program_descriptions(artifact)
            ]
        except InvalidInputError as error:
            checks.append(Check(check_name, False, f"{path.parent.name} {path.name}", str(error)))
    return checks


def _program_descriptions(artifact: Artifact) -> list[str]:
    """The program that the artifact's network uses on this machine and why, and remarks on unusable programs."""
    from shared.deploy.programs.choices import valid_choices
    from shared.deploy.programs.store import stored_programs

    _, remarks = stored_programs(artifact)
    descriptions = [f"{choice.program}, {choice.reason}" for choice in valid_choices(artifact)]
    return [*(descriptions or ["not measured yet; trivium programs measures it"]), *remarks]


def _application_checks() -> list[Check]:
    """Whether the user's and each application's weights are complete, and how many data sets are present."""
    own_registry = os.environ.get("TRIVIUM_REGISTRY")
    checks = _artifact_checks("own weights", Path(own_registry)) if own_registry else []
    for app in installed().values():
        checks += _artifact_checks(f"{app.name} weights", app.weights)
        entries = read_registry(app.data_registry).values()
        present = [entry.name for entry in entries if entry.locate() is not None]
        checks.append(Check(f"{app.name} data", True, f"{len(present)} of {len(entries)} data sets present"))
    return checks
