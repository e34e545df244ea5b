"""``trivium backup``, ``trivium restore`` and ``trivium purge``: a server's store, looked after from outside."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING

from shared.cli.arguments import Backup, Purge, Restore
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from shared.store.cases import CaseStore

_AGE = re.compile(r"(\d+(?:\.\d+)?)([dh])\Z")


def run(command: Backup | Restore | Purge) -> int:
    """Runs the command on the store that the server's settings name, and says what was done."""
    try:
        from shared.store.backup import backup, restore
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"the store needs the package {error.name}; install trivium[serve]") from error
    match command:
        case Backup():
            with closing(open_store(beside=True)) as store:
                print(f"{command.file}: {backup(store.engine, store.folder, command.file)} cases")
        case Restore():
            with closing(open_store(beside=False)) as store:
                print(f"{store.folder}: {restore(store.engine, store.folder, command.file)} cases")
        case Purge():
            _purge(command)
    return 0


def _purge(command: Purge) -> None:
    from shared.store.disk import full_disk_named
    from shared.store.jobs import JobStore

    days = _days(command.older_than)
    with full_disk_named("not all that is old could be deleted"), closing(open_store(beside=True)) as store:
        jobs = JobStore(store.engine, store.folder, server="purge")
        known = {*store.apps(), *jobs.apps()}
        for app in sorted(known) if command.app is None else [command.app]:
            cases, ended = store.expire(app, days=days), jobs.expire(app, days)
            print(f"{app}: {cases} cases deleted, {ended} jobs that had ended")
        if not known:
            print(f"{store.folder}: no cases, no jobs")


def open_store(beside: bool, folder: Path | None = None) -> CaseStore:
    """The store that the server's settings name; ``beside`` one that is there, which a server may have.

    ``folder`` takes the place of that in the settings.
    """
    from shared.serve.settings import read_settings
    from shared.store.cases import CaseStore

    settings = read_settings(store=folder)
    setting = "TRIVIUM_STORE" if folder is None else "--store"
    return CaseStore(settings.store, settings.store_url, beside=beside, setting=setting)


def _days(age: str) -> float:
    if (found := _AGE.match(age)) is None:
        raise InvalidInputError(f"--older-than {age}: say days or hours, as 30d or 12h")
    return float(found[1]) / (24 if found[2] == "h" else 1)
