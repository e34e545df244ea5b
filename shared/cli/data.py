"""``trivium data``."""

from __future__ import annotations

from shared.app import Table, installed
from shared.cli.arguments import Data
from shared.cli.printing import print_line, print_table
from shared.data.registry import read_registry
from shared.errors import InvalidInputError


def run(command: Data) -> int:
    """Lists, fetches or verifies data sets, or removes what was made for trainings."""
    if command.action == "clear":
        return _clear(command)
    entries = {name: entry for app in installed().values() for name, entry in read_registry(app.data_registry).items()}
    if unknown := sorted(set(command.names) - entries.keys()):
        raise InvalidInputError(f"there is no data set {', '.join(unknown)}; there are {', '.join(entries)}")
    chosen = [entries[name] for name in command.names or entries]
    if command.action == "fetch":
        if not command.names:
            raise InvalidInputError(f"name what to fetch: {', '.join(entries)}")
        for entry in chosen:
            print_line(f"{entry.name}: {entry.fetch()}")
        return 0
    if command.action == "verify":
        faults = [fault for entry in chosen if entry.locate() or command.names for fault in entry.verify()]
        present = sum(entry.locate() is not None for entry in chosen)
        for fault in faults:
            print_line(fault)
        print_line(f"{present} of {len(chosen)} data sets at hand, {len(faults)} faults")
        return 1 if faults else 0
    rows = [
        (e.name, e.title, f"{sum(f.bytes for f in e.files) / 1e6:.1f} MB", e.licence, str(e.locate() or "-"))
        for e in chosen
    ]
    print_table(Table(title="Data sets", columns=("name", "what", "size", "licence", "where"), rows=rows))
    return 0


def _clear(command: Data) -> int:
    from shared.data.build_cache import packs, remove_packs

    if command.names:
        raise InvalidInputError(f"trivium data clear takes no name: {packs()} is cleared as a whole")
    print_line(f"{remove_packs() / 1e6:,.0f} MB removed from {packs()}")
    return 0
