"""Reads a command line and runs its command.

Exit codes: 0 done, 1 failed, 2 refused (the input or the command line was wrong, and the message says how),
130 interrupted, 143 terminated, 138 stopped by SIGUSR1.
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import tyro

from shared.cli import arguments as commands
from shared.errors import InvalidInputError

_DESCRIPTION = "Lung nodules in chest CT, 3D object detection, anomalies in financial time series: one runtime."
_TAKE_SETTINGS = (
    *(commands.Train, commands.Evaluate, commands.Calibrate, commands.Import, commands.Quantize, commands.Gateway),
)
_MODULES: dict[type, str] = {
    commands.Import: "import_",
    **dict.fromkeys((commands.Backup, commands.Restore, commands.Purge), "store"),
}
"""The file of a command where that has not the command's name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    command, rest = tyro.cli(
        commands.Command,
        prog="trivium",
        description=_DESCRIPTION,
        args=sys.argv[1:] if arguments is None else list(arguments),
        return_unknown_args=True,
    )
    try:
        if rest and type(command) not in _TAKE_SETTINGS:
            raise InvalidInputError(f"unknown argument {rest[0]}; see trivium {type(command).__name__.lower()} --help")
        return run(command, [word for word in rest if word != "--"])
    except InvalidInputError as refusal:
        print(f"trivium: {refusal}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("trivium: interrupted; a training goes on from its last checkpoint when started again", file=sys.stderr)
        code = 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" for {error.filename}" if error.filename else ""
        print(
            f"trivium: no space is left on the disk{where}; free some and start the same command again: a training "
            "goes on from its newest checkpoint",
            file=sys.stderr,
        )
        code = 1
    except Exception as error:
        if (problem := _database_problem(error)) is None:
            raise
        print(f"trivium: {problem}", file=sys.stderr)
        code = 1
    if arguments is None:
        _leave_loading(code)
    return code


def _database_problem(error: Exception) -> str | None:
    """What is the matter with the store's database, where the error is one of that."""
    library = sys.modules.get("sqlalchemy.exc")
    if library is None or not isinstance(error, library.DBAPIError):
        return None
    reason = str(error.orig)
    locked = "locked" in reason or "busy" in reason
    do = (
        "another program holds it: start this again when that has ended"
        if locked
        else "where it is damaged, `trivium restore` brings a backup into an empty store"
    )
    return f"the store's database cannot be used ({reason}); {do}"


def _leave_loading(code: int) -> None:
    """Ends the process where a thread still loads a model, for which Python would wait."""
    from shared.deploy.reading_ahead import is_reading_ahead

    if is_reading_ahead():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(command: object, settings: Sequence[str]) -> int:
    """Runs ``command``; ``settings`` are the words of the command line that it does not name itself."""
    kind = type(command)
    module = import_module(f"shared.cli.{_MODULES.get(kind, kind.__name__.lower())}")
    code: int = module.run(command, settings) if kind in _TAKE_SETTINGS else module.run(command)
    return code
