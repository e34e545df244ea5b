"""``trivium doctor``."""

from __future__ import annotations

import os
from pathlib import Path

from shared.app import Table, installed
from shared.cli.printing import print_table
from shared.data.registry import read_registry
from shared.deploy.artifact import open_artifact
from shared.deploy.registry import misplaced
from shared.errors import InvalidInputError
from shared.observe.doctor import Check, examine


def run() -> int:
    """Prints what was found on this machine; fails where something needs a remedy."""
    checks = [*examine(), *_applications()]
    rows = [("ok" if check.ok else "fault", check.name, check.found, check.remedy) for check in checks]
    print_table(Table(title="This machine", columns=("", "what", "found", "remedy"), rows=rows))
    return 0 if all(check.ok for check in checks) else 1


def _artifacts(what: str, registry: Path) -> list[Check]:
    """Whether every version in a registry is whole, and what its folder says."""
    checks = []
    for path in sorted(registry.glob("*/[0-9]*")):
        try:
            manifest = open_artifact(path).manifest
            if (fault := misplaced(path)) is not None:
                raise InvalidInputError(fault)
            checks.append(Check(what, True, f"{manifest.name} version {manifest.version}"))
        except InvalidInputError as refusal:
            checks.append(Check(what, False, f"{path.parent.name} {path.name}", str(refusal)))
    return checks


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
