"""``trivium reproduce``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.app import App, find
from shared.cli.arguments import Reproduce
from shared.cli.printing import print_line, print_table
from shared.errors import InvalidInputError


def run(command: Reproduce) -> int:
    """Prints the headline table, and how long each shipped model was trained."""
    app = find(command.app)
    if app.reproduce is None:
        raise InvalidInputError(f"{app.name} has no headline table")
    print_table(app.reproduce(command.quick))
    for line in shipped_trainings(app):
        print_line(line)
    return 0


def shipped_trainings(app: App) -> list[str]:
    """One sentence for each shipped model: how long its newest version was trained."""
    from shared.deploy.registry import shipped

    manifests = [artifact.manifest for artifact in shipped(app)]
    return [
        f"{manifest.name} {manifest.version} was trained for {training_history(manifest.training)}."
        for manifest in manifests
    ]


def training_history(training: Mapping[str, Any]) -> str:
    """Steps and hours of each training, newest first: ``9,600 steps in 0.6 h (cpu), after 11,200 in 1.0 h (cpu)``."""
    parts: list[str] = []
    record: Any = training
    while isinstance(record, Mapping):
        if "steps" in record:
            hours = float(record.get("seconds", 0)) / 3600
            label = "steps in" if not parts else "in"
            parts.append(f"{int(record['steps']):,} {label} {hours:.1f} h ({record.get('device', 'device unknown')})")
        elif "artifact" in record or "file" in record:
            parts.append(f"weights of {record.get('artifact', record.get('file'))}")
        record = record.get("began_from")
    return ", after ".join(parts)
