"""``trivium reproduce``."""

from __future__ import annotations

from shared.app import App, find
from shared.cli.arguments import Reproduce
from shared.cli.printing import print_line, print_table
from shared.errors import InvalidInputError


def run(command: Reproduce) -> int:
    """Prints the headline table."""
    app = find(command.app)
    if app.reproduce is None:
        raise InvalidInputError(f"{app.name} has no headline table")
    print_table(app.reproduce(command.quick))
    for line in shipped_trainings(app):
        print_line(line)
    return 0


def shipped_trainings(app: App) -> list[str]:
    """How long each shipped model was trained, the newest version of each."""
    from shared.deploy.registry import shipped
    from shared.deploy.training_record import trained_for

    manifests = [artifact.manifest for artifact in shipped(app)]
    return [f"{one.name} {one.version} was trained for {trained_for(one.training)}." for one in manifests]
