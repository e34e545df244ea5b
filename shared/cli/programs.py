"""``trivium programs``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.app import App, Table, find, installed
from shared.cli.arguments import Programs
from shared.cli.printing import print_line, print_table
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from shared.deploy.artifact import Artifact, ProgramEntry


def run(command: Programs) -> int:
    """Compiles the requested programs, measures the fastest again, and prints the program of each model."""
    from shared.deploy.artifact import open_artifact
    from shared.deploy.programs.choices import clear_choices
    from shared.deploy.registry import shipped, ships_models

    apps = [find(command.app)] if command.app else list(installed().values())
    if command.artifact is not None and not command.app:
        raise InvalidInputError("name the application of the artifact: trivium programs APP --artifact DIR")
    failed = False
    for app in apps:
        if command.artifact is None and not command.app and not ships_models(app):
            continue
        artifacts = shipped(app) if command.artifact is None else [open_artifact(command.artifact)]
        for artifact in artifacts:
            artifact.must_belong_to(app.name)
            if command.make:
                failed |= not _make_all(app, artifact, command.make.split(","))
                clear_choices(artifact)
        table = _program_table(app, artifacts, command.device)
        if table.rows:
            print_table(table)
        else:
            print_line(f"{app.name}: its predictor computes with modules of its own, so no program is chosen for it")
    return 1 if failed else 0


def _make_all(app: App, artifact: Artifact, names: list[str]) -> bool:
    """Compiles the programs one by one, prints why one cannot be made, and returns whether all were made."""
    from shared.deploy.calibration_inputs import comparison_examples
    from shared.deploy.programs.artifact_network import dense_network
    from shared.deploy.programs.making import make_programs, random_examples
    from shared.deploy.programs.program import ProgramError
    from shared.deploy.programs.store import add_to_cache, weights_digest

    try:
        dense = dense_network(app, artifact)
    except NotImplementedError as error:
        print_line(f"{artifact.manifest.name}: {error}")
        return True
    all_made, examples = True, comparison_examples(app, artifact) or random_examples(dense)
    with tempfile.TemporaryDirectory(prefix="trivium-programs-") as folder:
        entries: dict[str, ProgramEntry] = {}
        for name in names:
            try:
                entries |= make_programs(
                    dense,
                    [name],
                    Path(folder),
                    weights_digest(artifact),
                    examples,
                    report=lambda line: print_line(f"{artifact.manifest.name}: {line}"),
                )
            except (ProgramError, ArithmeticError) as error:
                print_line(f"{artifact.manifest.name}: {error}")
                all_made = False
        add_to_cache(artifact, Path(folder), entries)
    return all_made


def _program_table(app: App, artifacts: Sequence[Artifact], device: str | None) -> Table:
    """A row for each model: the program that it uses on this machine, and why."""
    from shared.deploy.predictor import programs_of
    from shared.device import choose_device

    predictor = app.predictor(artifacts, choose_device(device))
    rows = [
        (name, program.name, "; ".join((program.reason, *program.remarks)))
        for name, program in programs_of(predictor).items()
    ]
    return Table(title=app.title, columns=("model", "program", "why"), rows=rows)
