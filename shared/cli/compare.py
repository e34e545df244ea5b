"""``trivium compare``."""

from __future__ import annotations

import json

from shared.app import find
from shared.atomic_files import write_whole
from shared.cli.arguments import Compare
from shared.cli.printing import print_table
from shared.errors import InvalidInputError


def run(command: Compare) -> int:
    """Prints what became of the findings since an earlier answer, and writes it where a file is named."""
    app = find(command.app)
    if app.compare is None:
        raise InvalidInputError(f"{app.name} does not compare two answers; read their result.json side by side")
    content, table = app.compare(command.now, command.before, command.days)
    if command.out is not None:
        write_whole(command.out, json.dumps(content, indent=2, allow_nan=False) + "\n")
    print_table(table)
    return 0
