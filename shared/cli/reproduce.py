"""``trivium reproduce``."""

from __future__ import annotations

from shared.app import find
from shared.cli.arguments import Reproduce
from shared.cli.printing import print_table
from shared.errors import InvalidInputError


def run(command: Reproduce) -> int:
    """Prints the headline table."""
    app = find(command.app)
    if app.reproduce is None:
        raise InvalidInputError(f"{app.name} has no headline table")
    print_table(app.reproduce(command.quick))
    return 0
