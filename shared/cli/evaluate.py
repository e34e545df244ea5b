"""``trivium evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.app import App, Table, find
from shared.cli.arguments import Evaluate
from shared.cli.printing import print_scores, print_table
from shared.cli.settings import parse_data
from shared.deploy.registry import shipped
from shared.errors import InvalidInputError
from shared.recipe import DataConfig
from shared.recipes import recipe_of

if TYPE_CHECKING:
    from shared.deploy.predictor import Predictor

_LIBRARY_MODULES = "torch, by its library's own modules: it has no programs"


def run(command: Evaluate, settings: Sequence[str]) -> int:
    """Scores a model, or files of results, and prints the scores."""
    app = find(command.app)
    if command.run is not None and command.artifact is not None:
        raise InvalidInputError("name an artifact or a run, not both")
    if command.limit is not None and command.limit < 1:
        raise InvalidInputError(f"--limit is {command.limit}; it must be at least 1")
    if command.data is not None:
        data = parse_data(app, command.data, settings, f"evaluate {app.name}")
        if app.evaluate is None:
            return _evaluate_by_task(app, command, data)
        _evaluate_by_protocol(app.evaluate, app, command, data)
        return 0
    if settings:
        return _score_files(app, _parse_paths(settings))
    return _evaluate_by_task(app, command, None)


def _evaluate_by_protocol(
    evaluate: Callable[[Predictor[Any, Any], DataConfig, int | None], Table],
    app: App,
    command: Evaluate,
    data: DataConfig,
) -> None:
    """Prints the application's own table of scores for a predictor, and the program that each of its models used."""
    from shared.deploy.opening import open_predictor
    from shared.deploy.predictor import describe_programs

    opened = open_predictor(
        app, artifact=command.artifact, run=command.run, device=command.device, program=command.program
    )
    table, programs = evaluate(opened.predictor, data, command.limit), describe_programs(opened.predictor)
    program_notes = [
        # A run has no version.
        f"{manifest.name}{'' if command.run else f' version {manifest.version}'} was computed with "
        f"{programs.get(manifest.name, _LIBRARY_MODULES)}."
        for manifest in opened.manifests
    ]
    print_table(replace(table, notes=(*table.notes, *program_notes)))


def _score_files(app: App, paths: Mapping[str, Path]) -> int:
    if app.score_files is None:
        raise InvalidInputError(f"{app.name} cannot score files of results; unknown argument --{next(iter(paths))}")
    print_table(app.score_files(paths))
    return 0


def _parse_paths(words: Sequence[str]) -> dict[str, Path]:
    """Parses ``--submission FILE`` and ``--submission=FILE``; returns the paths by option name."""
    paths: dict[str, Path] = {}
    remaining = iter(words)
    for word in remaining:
        name, separator, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise InvalidInputError(f"unknown argument {word}; see trivium evaluate --help")
        path = value if separator else next(remaining, "")
        if not path or path.startswith("--"):
            raise InvalidInputError(f"--{name} needs a path")
        paths[name] = Path(path)
    return paths


def _evaluate_by_task(app: App, command: Evaluate, data: DataConfig | None) -> int:
    """Scores as training does: on the validation part of the recipe's data set, or of ``data``."""
    from shared.comms.joining import join
    from shared.deploy.artifact import open_artifact
    from shared.engine.checkpoint import best_weights
    from shared.engine.evaluate import evaluate
    from shared.engine.run import Run
    from shared.precision import autocast_dtype
    from shared.recipe_file import read_recipe_file
    from shared.threads import limit_torch_threads

    if command.limit is not None or command.program is not None:
        option = "--limit" if command.limit is not None else "--program"
        raise InvalidInputError(f"{option} needs --data NAME, and a protocol of {app.name} for that data set")
    if command.run is not None:
        run = Run(command.run, app.name, "")
        document = read_recipe_file(run.recipe_file)
        if (weights_of_best := best_weights(command.run)) is None:
            raise InvalidInputError(f"{command.run} has no checkpoint yet")
        weights, title = weights_of_best, str(command.run)
    else:
        artifact = open_artifact(command.artifact) if command.artifact else shipped(app)[0]
        artifact.must_belong_to(app.name)
        document, weights = artifact.recipe(), artifact.weights()
        title = f"{artifact.manifest.name} version {artifact.manifest.version}"
    if data is None and "data" not in document["recipe"]:
        raise InvalidInputError(f"{title} was not trained here; name a data set to score it on with --data NAME")
    recipe = recipe_of(app, document, data)
    limit_torch_threads()
    with join(command.device) as group:
        model = recipe.model.build(recipe.input)
        model.load_state_dict(weights)
        batch = recipe.limits.evaluation_batch or recipe.limits.batch
        dtype = autocast_dtype(recipe.precision, group.device)
        validation = recipe.data.validation(recipe.input)
        scores = evaluate(model.to(group.device), recipe.task.build(), validation, batch, group, dtype)
        if group.leader:
            where = f"its recipe, {document['name']}" if data is None else f"{command.data}"
            print_scores(f"{title} on the validation data of {where}", scores)
    return 0
