"""``trivium reproduce``."""

from __future__ import annotations

from shared.app import find
from shared.cli.arguments import Reproduce
from shared.cli.printing import print_table


def run(command: Reproduce) -> int:
    """Prints the headline table."""
    print_table(find(command.app).reproduce(command.quick))
    return 0
