"""``trivium keys``: the API keys of the servers on a store."""

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
    """Adds, lists or revokes keys. ``add`` prints only the key to standard output, and messages to standard error."""
    try:
        from shared.serve.settings import read_settings
        from shared.store.cases import is_store
        from shared.store.keys import Keys as StoredKeys
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"the store needs the package {error.name}; install trivium[serve]") from error
    if bool(command.name) == (command.action == "list"):
        problem = (
            "list takes no name"
            if command.name
            else f"name the owner, as in trivium keys {command.action} pacs-gateway"
        )
        raise InvalidInputError(problem)
    if command.action != "add" and (command.group is not None or command.role != "user"):
        raise InvalidInputError(f"{command.action} takes neither --group nor --role: both are set when a key is added")
    settings = read_settings(store=command.store)
    # Keys can be added before the server has ever run.
    exists = is_store(settings.store, settings.store_url)
    with closing(open_store(must_exist=command.action != "add" or exists, folder=command.store)) as store:
        keys, location = StoredKeys(store.engine), store.location
        match command.action:
            case "add":
                groups = {key.group for key in keys.all()}
                print(keys.add(command.name, command.role, command.group))
                who = command.role if command.group is None else f"{command.role} of the group {command.group}"
                print(f"the key of {command.name}, {who}, in {location}; it is shown only once", file=sys.stderr)
                if command.group is not None and command.group not in groups:
                    print(f"no other key has the group {command.group}; see trivium keys list", file=sys.stderr)
                if not exists and not store.shared:
                    print(
                        "this store is new: only a server on it (--store, TRIVIUM_STORE) has the key", file=sys.stderr
                    )
            case "revoke":
                keys.revoke(command.name)
                print(f"the key of {command.name} is revoked")
            case "list":
                rows = [
                    (key.name, key.role, key.group or "", f"{_format_time(key.created_ns)} UTC") for key in keys.all()
                ]
                print_table(Table(title=location, columns=("name", "role", "group", "added"), rows=rows))
    return 0


def _format_time(created_ns: int) -> str:
    return datetime.fromtimestamp(created_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M")
