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
from shared.deploy.registry import misplaced
from shared.errors import InvalidInputError
from shared.observe.doctor import Check, examine

_LARGE_CACHE = 5e9


def run(command: Doctor) -> int:
    """Prints what was found on this machine; fails where something needs a remedy."""
    checks = [*examine(), *_cache(), *_server(), *_applications()]
    rows = [("ok" if check.ok else "fault", check.name, check.found, check.remedy) for check in checks]
    print_table(Table(title="This machine", columns=("", "what", "found", "remedy"), rows=rows))
    return 0 if all(check.ok for check in checks) else 1


def _cache() -> list[Check]:
    """What has been kept, and how it is removed."""
    from shared.data.build_cache import packs, size_of

    kept = size_of(packs())
    there = next(folder for folder in (packs(), *packs().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    found = f"{kept / 1e9:.1f} GB made for trainings in {packs()}; {free / 1e9:.0f} GB free"
    return [Check("cache", True, found, "trivium data clear removes it" if kept > _LARGE_CACHE else "")]


def _server() -> list[Check]:
    """Where the models of a server would compute."""
    try:
        from shared.serve.runtime.models import half_of_memory, processes_wanted
        from shared.serve.settings import read_settings
        from shared.serve.worker.messages import SUPPORTED

        settings = read_settings()
    except ModuleNotFoundError as error:
        return [Check("server", True, f"not installed ({error.name}); trivium[serve] brings it")]
    except InvalidInputError as refusal:
        return [Check("server", False, "settings", str(refusal))]
    if not processes_wanted(settings):
        why = "TRIVIUM_WORKERS is 0" if SUPPORTED else "this system has no memfd and SOCK_SEQPACKET"
        remedy = "" if SUPPORTED else "a crash of a model ends the server; run it on Linux"
        return [Check("server", True, f"models compute in its own process: {why}", remedy)]
    most = settings.worker_memory_bytes or half_of_memory()
    limit = "" if most is None else f", each of at most {most / 1e9:.1f} GB"
    return [Check("server", True, f"{len(settings.worker_devices)} worker process for each model{limit}")]


def _artifacts(what: str, registry: Path) -> list[Check]:
    """Whether every version in a registry is whole, and what its folder says."""
    checks = []
    for path in sorted(registry.glob("*/[0-9]*")):
        try:
            artifact = open_artifact(path)
            manifest = artifact.manifest
            if (fault := misplaced(path)) is not None:
                raise InvalidInputError(fault)
            checks.append(Check(what, True, f"{manifest.name} version {manifest.version}"))
            checks += [Check("program", True, f"{manifest.name}: {told}") for told in _programs(artifact)]
        except InvalidInputError as refusal:
            checks.append(Check(what, False, f"{path.parent.name} {path.name}", str(refusal)))
    return checks


def _programs(artifact: Artifact) -> list[str]:
    """What the artifact's network computes with here and why, and what cannot be used."""
    from shared.deploy.programs.choices import choices
    from shared.deploy.programs.store import found_programs

    _, remarks = found_programs(artifact)
    chosen = [f"{choice.program}, {choice.reason}" for choice in choices(artifact)]
    return [*(chosen or ["not measured yet; trivium programs does"]), *remarks]


def _applications() -> list[Check]:
    """Whether one's own and each application's weights are whole, and which data sets are at hand."""
    own = os.environ.get("TRIVIUM_REGISTRY")
    checks = _artifacts("own weights", Path(own)) if own else []
    for app in installed().values():
        checks += _artifacts(f"{app.name} weights", app.weights)
        entries = read_registry(app.data_registry).values()
        present = [entry.name for entry in entries if entry.locate() is not None]
        checks.append(Check(f"{app.name} data", True, f"{len(present)} of {len(entries)} data sets at hand"))
    return checks
