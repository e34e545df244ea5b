"""``trivium doctor``."""

from __future__ import annotations

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


def _applications() -> list[Check]:
    """Whether each application's shipped weights are whole, and which of its data sets are at hand."""
    checks = []
    for app in installed().values():
        for path in sorted(app.weights.glob("*/[0-9]*")):
            try:
                manifest = open_artifact(path).manifest
                if (fault := misplaced(path)) is not None:
                    raise InvalidInputError(fault)
                checks.append(Check(f"{app.name} weights", True, f"{manifest.name} version {manifest.version}"))
            except InvalidInputError as refusal:
                checks.append(Check(f"{app.name} weights", False, path.parent.name, str(refusal)))
        entries = read_registry(app.data_registry).values()
        present = [entry.name for entry in entries if entry.locate() is not None]
        checks.append(Check(f"{app.name} data", True, f"{len(present)} of {len(entries)} data sets at hand"))
    return checks
