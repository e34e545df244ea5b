"""``trivium compare``."""

from __future__ import annotations

import json

from shared.app import find
from shared.atomic_files import write_whole
from shared.cli.arguments import Compare
from shared.cli.printing import print_table
from shared.errors import InvalidInputError


def run(command: Compare) -> int:
    """Prints how the findings changed since an earlier scan; also writes the comparison as JSON if a file is given."""
    app = find(command.app)
    if app.compare is None:
        raise InvalidInputError(f"{app.name} cannot compare two results; compare their result.json files instead")
    content, table = app.compare(command.now, command.before, command.days)
    if command.out is not None:
        write_whole(command.out, json.dumps(content, indent=2, allow_nan=False) + "\n")
    print_table(table)
    return 0
