"""Parses the command line and runs the command.

Exit codes: 0 success, 1 failure, 2 invalid input or command line (the message says what is wrong), 130 interrupted,
143 terminated, 138 stopped by SIGUSR1. Heavy packages are imported only by the commands that need them.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module

import tyro

from shared.cli import arguments as commands
from shared.errors import DISK_FULL, InvalidInputError
from shared.threads import limit_library_threads

_DESCRIPTION = "Lung nodules in chest CT, 3D object detection, anomalies in financial time series: one runtime."
_COMMANDS_WITH_SETTINGS = (
    *(commands.Train, commands.Evaluate, commands.Calibrate, commands.Import, commands.Quantize, commands.Gateway),
)
_COMMANDS_THAT_PREDICT = (commands.Predict, commands.Evaluate)
_MODULES: dict[type, str] = {
    commands.Import: "import_",
    **dict.fromkeys((commands.Backup, commands.Restore, commands.Purge), "store"),
}
"""The module of each command whose module is not named after the command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale such as zh_CN.GBK lacks some characters of our tables
    command, unknown = tyro.cli(
        commands.Command,
        prog="trivium",
        description=_DESCRIPTION,
        args=sys.argv[1:] if arguments is None else list(arguments),
        return_unknown_args=True,
    )
    try:
        if unknown and type(command) not in _COMMANDS_WITH_SETTINGS:
            raise InvalidInputError(
                f"unknown argument {unknown[0]}; see trivium {type(command).__name__.lower()} --help"
            )
        if arguments is None:  # the command has the process to itself
            limit_library_threads()
        return run(command, [word for word in unknown if word != "--"])
    except InvalidInputError as refusal:
        print(f"trivium: {refusal}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("trivium: interrupted; run a training again to resume it from its last checkpoint", file=sys.stderr)
        code = 130
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = f" for {error.filename}" if error.filename else ""
        print(
            f"trivium: no space is left on the disk{where}; free some space and run the same command again: a training "
            "resumes from its newest checkpoint",
            file=sys.stderr,
        )
        code = 1
    except Exception as error:
        if (problem := _database_problem(error)) is None:
            raise
        print(f"trivium: {problem}", file=sys.stderr)
        code = 1
    if arguments is None:
        _exit_if_loading(code)
    return code


def _database_problem(error: Exception) -> str | None:
    """Describes an error of the store's database and its remedy; returns None for any other error."""
    sqlalchemy_errors = sys.modules.get("sqlalchemy.exc")
    if sqlalchemy_errors is None or not isinstance(error, sqlalchemy_errors.DBAPIError):
        return None
    reason = str(error.orig)
    locked = "locked" in reason or "busy" in reason
    remedy = (
        "another program has locked it: run this command again when that program has finished"
        if locked
        else "if it is damaged, restore a backup into an empty store with `trivium restore`"
    )
    return f"the store's database cannot be used ({reason}); {remedy}"


def _exit_if_loading(code: int) -> None:
    """Exits at once if a thread is still loading a model: Python would wait for the thread."""
    from shared.deploy.preloading import is_preloading

    if is_preloading():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(command: object, settings: Sequence[str]) -> int:
    """Runs ``command``. ``settings`` are the words of the command line that are not arguments of the command."""
    command_class = type(command)
    module = import_module(f"shared.cli.{_MODULES.get(command_class, command_class.__name__.lower())}")
    with _program_log_printed() if command_class in _COMMANDS_THAT_PREDICT else nullcontext():
        code: int = module.run(command, settings) if command_class in _COMMANDS_WITH_SETTINGS else module.run(command)
    return code


@contextmanager
def _program_log_printed() -> Iterator[None]:
    """Prints to standard error what is slow at the first use of a model: its programs are exported and timed."""
    log, handler = logging.getLogger("trivium.programs"), logging.StreamHandler()
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    # MONAI calls logging.info, which adds a handler to the root logger: it would print the lines again.
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
