"""``trivium backup``, ``trivium restore`` and ``trivium purge``: maintenance of a server's store."""

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
    """Runs the command on the store named in the server's settings, and prints what was done."""
    try:
        from shared.store.backup import backup, restore
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"the store needs the package {error.name}; install trivium[serve]") from error
    match command:
        case Backup():
            with closing(open_store(must_exist=True, folder=command.store)) as store:
                print(f"{command.file}: {backup(store.engine, store.folder, command.file)} cases")
        case Restore():
            with closing(open_store(must_exist=False, folder=command.store)) as store:
                print(f"{store.folder}: {restore(store.engine, store.folder, command.file)} cases")
        case Purge():
            _purge(command)
    return 0


def _purge(command: Purge) -> None:
    from shared.store.disk import raising_disk_full
    from shared.store.groups import check_group
    from shared.store.jobs import JobStore

    days = _age_in_days(command.older_than)
    with (
        raising_disk_full("not all old cases and jobs could be deleted"),
        closing(open_store(must_exist=True, folder=command.store)) as store,
    ):
        if command.group is not None:
            check_group(store.engine, command.group)
        jobs = JobStore(store.engine, store.folder, server="purge")
        known_apps = {*store.apps(), *jobs.apps()}
        for app in sorted(known_apps) if command.app is None else [command.app]:
            num_cases = store.expire(app, days=days, group=command.group)
            num_jobs = jobs.expire(app, days, command.group)
            print(f"{app}: {num_cases} cases and {num_jobs} ended jobs deleted")
        if not known_apps:
            print(f"{store.folder}: no cases, no jobs")


def open_store(*, must_exist: bool, folder: Path | None) -> CaseStore:
    """Opens the store in ``folder``, or else the one named in the server's settings.

    With ``must_exist`` the store must exist; a running server may be using it.
    """
    from shared.serve.settings import read_settings
    from shared.store.cases import CaseStore

    settings = read_settings(store=folder)
    setting = "TRIVIUM_STORE" if folder is None else "--store"
    return CaseStore(settings.store, settings.store_url, shared_with_server=must_exist, setting=setting)


def _age_in_days(age: str) -> float:
    if (match := _AGE.match(age)) is None:
        raise InvalidInputError(f"--older-than {age}: give days or hours, such as 30d or 12h")
    return float(match[1]) / (24 if match[2] == "h" else 1)
