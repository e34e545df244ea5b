"""``trivium data``."""

from __future__ import annotations

from shared.app import Table, installed
from shared.cli.arguments import Data
from shared.cli.printing import print_line, print_table
from shared.data.registry import read_registry
from shared.errors import InvalidInputError


def run(command: Data) -> int:
    """Lists, fetches or verifies data sets, or clears the cache of packed training data."""
    if command.action == "clear":
        return _clear(command)
    entries = {name: entry for app in installed().values() for name, entry in read_registry(app.data_registry).items()}
    if unknown := sorted(set(command.names) - entries.keys()):
        raise InvalidInputError(f"there is no data set {', '.join(unknown)}; there are {', '.join(entries)}")
    selected = [entries[name] for name in command.names or entries]
    if command.action == "fetch":
        if not command.names:
            raise InvalidInputError(f"name the data sets to fetch: {', '.join(entries)}")
        for entry in selected:
            print_line(f"{entry.name}: {entry.fetch()}")
        return 0
    if command.action == "verify":
        problems = [problem for entry in selected if entry.locate() or command.names for problem in entry.verify()]
        present = sum(entry.locate() is not None for entry in selected)
        for problem in problems:
            print_line(problem)
        print_line(f"{present} of {len(selected)} data sets present, {len(problems)} problems")
        return 1 if problems else 0
    rows = [
        (
            entry.name,
            entry.title,
            f"{sum(file.bytes for file in entry.files) / 1e6:.1f} MB",
            entry.licence,
            str(entry.locate() or "-"),
        )
        for entry in selected
    ]
    print_table(Table(title="Data sets", columns=("name", "what", "size", "licence", "where"), rows=rows))
    for entry in selected if command.names else ():
        if entry.locate() is None:
            print_line(f"{entry.name}: {entry.how_to_get()}")
    return 0


def _clear(command: Data) -> int:
    from shared.data.build_cache import packs_folder, remove_packs

    if command.names:
        raise InvalidInputError(f"trivium data clear takes no names: it clears all of {packs_folder()}")
    print_line(f"{remove_packs() / 1e6:,.0f} MB removed from {packs_folder()}")
    return 0
