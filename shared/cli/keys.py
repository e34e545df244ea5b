"""``trivium keys``: who may use the servers of a store."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import UTC, datetime

from shared.app import Table
from shared.cli.arguments import Keys
from shared.cli.printing import print_table
from shared.cli.store import open_store
from shared.errors import InvalidInputError


def run(command: Keys) -> int:
    """Adds, lists or revokes; of a key that is added nothing but the key goes to the standard output."""
    try:
        from shared.serve.settings import read_settings
        from shared.store.cases import is_store
        from shared.store.keys import Keys as StoredKeys
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"the store needs the package {error.name}; install trivium[serve]") from error
    if bool(command.name) == (command.action == "list"):
        words = "list takes no name" if command.name else f"say whose, as in trivium keys {command.action} pacs-gateway"
        raise InvalidInputError(words)
    if command.action != "add" and (command.group is not None or command.role != "user"):
        raise InvalidInputError(
            f"{command.action} takes neither --group nor --role: both are said where a key is added"
        )
    settings = read_settings()
    # Keys may be there before the server has ever run.
    there = is_store(settings.store, settings.store_url)
    with closing(open_store(beside=command.action != "add" or there)) as store:
        keys, folder = StoredKeys(store.engine), store.folder.absolute()
        match command.action:
            case "add":
                groups = {key.group for key in keys.all()}
                print(keys.add(command.name, command.role, command.group))
                who = command.role if command.group is None else f"{command.role} of the group {command.group}"
                print(f"the key of {command.name}, {who}, in {folder}; it is shown only now", file=sys.stderr)
                if command.group is not None and command.group not in groups:
                    print(f"no other key is of the group {command.group}; see trivium keys list", file=sys.stderr)
                if not there:
                    print("that store is new: only a server whose TRIVIUM_STORE it is knows the key", file=sys.stderr)
            case "revoke":
                keys.revoke(command.name)
                print(f"the key of {command.name} lets nobody in any more")
            case "list":
                rows = [(key.name, key.role, key.group or "", f"{_moment(key.created_ns)} UTC") for key in keys.all()]
                print_table(Table(title=f"{folder}", columns=("name", "role", "group", "added"), rows=rows))
    return 0


def _moment(created_ns: int) -> str:
    return datetime.fromtimestamp(created_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M")
