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

import tyro

from shared.cli import arguments as commands
from shared.errors import InvalidInputError

_DESCRIPTION = "Lung nodules in chest CT, 3D object detection, anomalies in financial time series: one runtime."
_TAKE_SETTINGS = (
    *(commands.Train, commands.Evaluate, commands.Calibrate, commands.Import, commands.Quantize),
    commands.Gateway,
)


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
        if rest and not isinstance(command, _TAKE_SETTINGS):
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
    match command:
        case commands.Train():
            from shared.cli import train

            return train.run(command, settings)
        case commands.Runs():
            from shared.cli import runs

            return runs.run(command)
        case commands.Evaluate():
            from shared.cli import evaluate

            return evaluate.run(command, settings)
        case commands.Calibrate():
            from shared.cli import calibrate

            return calibrate.run(command, settings)
        case commands.Import():
            from shared.cli import import_

            return import_.run(command, settings)
        case commands.Models():
            from shared.cli import models

            return models.run(command)
        case commands.Predict():
            from shared.cli import predict

            return predict.run(command)
        case commands.Export():
            from shared.cli import export

            return export.run(command)
        case commands.Programs():
            from shared.cli import programs

            return programs.run(command)
        case commands.Quantize():
            from shared.cli import quantize

            return quantize.run(command, settings)
        case commands.Serve():
            from shared.cli import serve

            return serve.run(command)
        case commands.Gateway():
            from shared.cli import gateway

            return gateway.run(command, settings)
        case commands.Backup() | commands.Restore() | commands.Purge():
            from shared.cli import store

            return store.run(command)
        case commands.Keys():
            from shared.cli import keys

            return keys.run(command)
        case commands.Versions():
            from shared.cli import versions

            return versions.run(command)
        case commands.Reproduce():
            from shared.cli import reproduce

            return reproduce.run(command)
        case commands.Data():
            from shared.cli import data

            return data.run(command)
        case commands.Topology():
            from shared.cli import topology

            return topology.run(command)
        case commands.Plan():
            from shared.cli import plan

            return plan.run(command)
        case commands.Doctor():
            from shared.cli import doctor

            return doctor.run()
        case _:
            raise TypeError(f"{command!r} is not a command")
