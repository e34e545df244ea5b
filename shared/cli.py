"""The command ``trivium``: what it can be told, and how each command is carried out.

Exit codes: 0 done, 1 failed, 2 refused (the input or the command line was wrong, and the message says how).
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro
from tyro.conf import Positional, arg, subcommand

from shared.errors import InvalidInputError

AppName: TypeAlias = Annotated[Positional[str], arg(metavar="APP")]
Device: TypeAlias = Annotated[Literal["cpu", "cuda"] | None, arg(metavar="cpu|cuda")]
Folder: TypeAlias = Annotated[Path | None, arg(metavar="DIR")]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a recipe, or go on with a run that was interrupted.

    Any setting of the recipe can be given on the command line; `trivium train finance --recipe tiny -- --help`
    lists them. Under torchrun the processes share every batch.

    Example: trivium train finance --recipe tiny --out runs/first --limits.epochs 2

    Example: torchrun --nproc-per-node 2 -m shared.cli train finance --recipe tiny
    """

    app: AppName
    """The application: medical, driving or finance."""
    recipe: str = "small"
    """The name of the recipe."""
    out: Folder = None
    """The run's directory; runs/APP-RECIPE by default."""
    device: Device = None
    """Where to compute; the GPU by default where there is one."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a run or an artifact on the validation data of its recipe.

    Example: trivium evaluate finance

    Example: trivium evaluate finance --run runs/first
    """

    app: AppName
    """The application."""
    run: Folder = None
    """A run's directory; its best checkpoint is scored."""
    artifact: Folder = None
    """An artifact's directory; the one that ships with the application by default."""
    device: Device = None
    """Where to compute."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict on files and write result.json and picture.png.

    Example: trivium predict finance tests/data/metric.csv --out out
    """

    app: AppName
    """The application."""
    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="INPUT [INPUT ...]")]
    """A file, several files, or a folder."""
    out: Annotated[Path, arg(metavar="DIR")]
    """The directory for what comes out."""
    artifact: Folder = None
    """An artifact's directory; the one that ships with the application by default."""
    device: Device = None
    """Where to compute."""
    option: tuple[str, ...] = ()
    """Options of the application, as name=value."""
    each: bool = False
    """Go through a folder of any number of cases one by one, on from where it stopped (driving)."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a run's best checkpoint: safetensors, ONNX and a manifest, as the next version in a registry.

    Example: trivium export runs/first --registry models
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run's directory."""
    registry: Path = Path("models")
    """A directory in Triton's repository layout; made where it is missing."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve the applications: forms, JSON routes, the Open Inference Protocol and metrics.

    Example: trivium serve --port 8000

    Example: trivium serve --registry models
    """

    host: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """The address to listen on; TRIVIUM_HOST, or 127.0.0.1."""
    port: Annotated[int | None, arg(metavar="PORT")] = None
    """The port to listen on; TRIVIUM_PORT, or 8000."""
    registry: Folder = None
    """Your own artifacts (see export), served before those that ship under the same name; TRIVIUM_REGISTRY."""
    device: Device = None
    """Where to compute; TRIVIUM_DEVICE, or the GPU where there is one."""
    demo: bool = False
    """Say in the terminal what to open."""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Print an application's headline table: published claim, peer and ours.

    Example: trivium reproduce finance --quick
    """

    app: AppName
    """The application."""
    quick: bool = False
    """A smaller run of minutes on two cores."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """List, fetch or verify the public data sets that the applications know.

    Example: trivium data list
    """

    action: Positional[Literal["list", "fetch", "verify"]]
    """What to do."""
    names: Positional[tuple[str, ...]] = ()
    """Names of data sets; all of them where none is named (list and verify)."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look at this machine: versions, devices, applications, weights and data, with a remedy for each fault.

    Example: trivium doctor
    """


Command: TypeAlias = (
    Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Predict, subcommand("predict")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[Reproduce, subcommand("reproduce")]
    | Annotated[Data, subcommand("data")]
    | Annotated[Doctor, subcommand("doctor")]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    description = "Lung nodules in chest CT, 3D object detection, anomalies in financial time series: one runtime."
    words = sys.argv[1:] if arguments is None else arguments
    command, rest = tyro.cli(
        Command,
        prog="trivium",
        description=description,
        args=words,
        return_unknown_args=True,
    )
    try:
        if rest and not isinstance(command, Train):
            raise InvalidInputError(f"unknown argument {rest[0]}; see trivium {type(command).__name__.lower()} --help")
        from shared import commands

        return commands.carry_out(command, [word for word in rest if word != "--"])
    except InvalidInputError as refusal:
        print(f"trivium: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("trivium: interrupted; a training goes on from its last checkpoint when started again", file=sys.stderr)
        return 1


if __name__ == "__main__":
    # The module by its name, so that its commands are the ones that shared.commands knows.
    from shared import cli

    raise SystemExit(cli.main())
