"""What the commands do. Imported once a command line has been understood."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable

from shared import cli
from shared.app import App, Table, find, installed, shipped
from shared.errors import InvalidInputError
from shared.observe.doctor import Check, examine

if TYPE_CHECKING:
    from shared.deploy.predictor import Predictor, Response

console = Console()


def carry_out(command: object, rest: list[str]) -> int:
    """Carries out one command of the command line; ``rest`` are the words that it did not know."""
    match command:
        case cli.Train():
            return train(command, rest)
        case cli.Evaluate():
            return evaluate(command)
        case cli.Predict():
            return predict(command)
        case cli.Export():
            return export(command)
        case cli.Serve():
            return serve(command)
        case cli.Reproduce():
            return reproduce(command)
        case cli.Data():
            return data(command)
        case cli.Doctor():
            return doctor()
        case _:
            raise TypeError(f"{command!r} is not a command")


def train(command: cli.Train, rest: Sequence[str]) -> int:
    """Trains, and prints the best scores. An existing run of the same recipe goes on where it stopped."""
    app = find(command.app)
    recipes = app.recipes()
    if command.recipe not in recipes:
        raise InvalidInputError(f"{app.name} has no recipe {command.recipe!r}; it has {', '.join(recipes)}")
    import tyro

    base = recipes[command.recipe]()
    # The recipe has chosen its optimizer and schedule; their settings are settings like any other.
    flat = (tyro.conf.AvoidSubcommands,)
    recipe = tyro.cli(type(base), default=base, args=list(rest), prog=f"trivium train {app.name}", config=flat)
    from shared.engine.loop import fit
    from shared.engine.run import Run

    run = Run(command.out or Path("runs") / f"{app.name}-{command.recipe}", app.name, command.recipe)
    result = fit(recipe, recipe.task.build(), run, device=command.device)
    if int(os.environ.get("RANK", "0")) == 0:
        _scores(
            f"{run.path}: {result.steps} steps, ended by {result.reason}, best at {result.best_step}", result.scores
        )
    return 0


def evaluate(command: cli.Evaluate) -> int:
    """Scores the weights of a run or an artifact on the validation data of the recipe that made them."""
    from shared.comms.group import join
    from shared.deploy.artifact import open_artifact
    from shared.deploy.export import rebuild
    from shared.engine import loop
    from shared.engine.checkpoint import Checkpoints, model_state
    from shared.engine.run import Run
    from shared.precision import autocast_dtype
    from shared.recipe_file import read_recipe_file

    app = find(command.app)
    if command.run is not None:
        run = Run(command.run, app.name, "")
        document = read_recipe_file(run.recipe_file)
        checkpoints = Checkpoints(run.checkpoints, recipe_digest=document["digest"])
        checkpoint = checkpoints.best() or checkpoints.latest()
        if checkpoint is None:
            raise InvalidInputError(f"{command.run} has no checkpoint yet")
        weights, title = model_state(checkpoint), str(command.run)
    else:
        artifact = open_artifact(command.artifact) if command.artifact else shipped(app)[0]
        document, weights = artifact.recipe(), artifact.weights()
        title = f"{artifact.manifest.name} version {artifact.manifest.version}"
    recipe = rebuild(app, document)
    with join(command.device) as group:
        model = recipe.model.build(recipe.input)
        model.load_state_dict(weights)
        batch = recipe.limits.evaluation_batch or recipe.limits.batch
        dtype = autocast_dtype(recipe.precision, group.device)
        validation = recipe.data.validation(recipe.input)
        scores = loop.evaluate(model.to(group.device), recipe.task.build(), validation, batch, group, dtype)
        if group.leader:
            _scores(f"{title} on the validation data of its recipe, {document['name']}", scores)
    return 0


def predict(command: cli.Predict) -> int:
    """Predicts and writes result.json, picture.png and the app's own files; nothing is left half-written."""
    app = find(command.app)
    options = dict(_option(text) for text in command.option)
    if not command.inputs:
        raise InvalidInputError(f"name a file or a folder: trivium predict {app.name} INPUT --out DIR")
    for path in command.inputs:
        if not path.exists():
            raise InvalidInputError(f"{path} does not exist; name a file or a folder to predict on")
    if command.out.exists() and not command.out.is_dir():
        raise InvalidInputError(f"{command.out} is a file; name a directory for what comes out")
    if command.each:
        return _predict_each(app, command, options)
    try:
        command.out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{command.out.name}-", dir=command.out.parent))
    except OSError as error:
        raise InvalidInputError(
            f"{command.out} cannot be made: {error.strerror}; name another directory with --out"
        ) from error
    try:
        response = _answer(app, command, options)
        (aside / "result.json").write_text(
            json.dumps(response.result, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        (aside / "picture.png").write_bytes(response.picture)
        for name, content in response.files.items():
            (aside / name).write_bytes(content)
        command.out.mkdir(exist_ok=True)
        for file in aside.iterdir():
            file.replace(command.out / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _findings(app, response.result)
    console.print(f"Wrote {command.out / 'result.json'}, {command.out / 'picture.png'}", soft_wrap=True)
    return 0


def _predict_each(app: App, command: cli.Predict, options: dict[str, str]) -> int:
    if app.each is None:
        raise InvalidInputError(f"{app.name} does not go through folders one by one; leave --each out")
    if len(command.inputs) != 1 or not command.inputs[0].is_dir():
        raise InvalidInputError(f"--each takes one folder: trivium predict {app.name} FOLDER --each --out DIR")

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    left_out = app.each(_predictor(app, command), command.inputs[0], command.out, options, say)
    return 1 if left_out else 0


def _answer(app: App, command: cli.Predict, options: dict[str, str]) -> Response:
    from shared.deploy.predictor import Request, answer, with_codec

    predictor, codec = with_codec(app, _predictor(app, command))
    return answer(predictor, Request(files=command.inputs, options=options), codec)


def _predictor(app: App, command: cli.Predict) -> Predictor[Any, Any]:
    from shared.deploy.artifact import open_artifact

    artifacts = [open_artifact(command.artifact)] if command.artifact else shipped(app)
    artifacts[0].must_belong_to(app.name)
    return app.predictor(artifacts, _device(command.device))


def export(command: cli.Export) -> int:
    """Exports a run's best checkpoint, compared with torch on the way."""
    from shared.deploy import export as exporting
    from shared.recipe_file import read_recipe_file

    app = find(str(read_recipe_file(command.run / "recipe.yaml")["app"]))
    artifact = exporting.export(command.run, app, command.registry)
    sizes = ", ".join(f"{name} {entry['bytes'] / 1e6:.1f} MB" for name, entry in artifact.manifest.files.items())
    console.print(f"{artifact.path}: {sizes}", soft_wrap=True)
    return 0


def serve(command: cli.Serve) -> int:
    """Serves until it is interrupted."""
    try:
        from shared.serve.server import run
        from shared.serve.settings import read_settings
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"serving needs the package {error.name}; install trivium[serve]") from error

    settings = read_settings(host=command.host, port=command.port, registry=command.registry, device=command.device)
    run(settings, demo=command.demo)
    return 0


def reproduce(command: cli.Reproduce) -> int:
    """Prints the headline table."""
    _table(find(command.app).reproduce(command.quick))
    return 0


def data(command: cli.Data) -> int:
    """Lists, fetches or verifies data sets."""
    from shared.data.registry import read_registry

    entries = {name: entry for app in installed().values() for name, entry in read_registry(app.data_registry).items()}
    if unknown := sorted(set(command.names) - entries.keys()):
        raise InvalidInputError(f"there is no data set {', '.join(unknown)}; there are {', '.join(entries)}")
    chosen = [entries[name] for name in command.names or entries]
    if command.action == "fetch":
        if not command.names:
            raise InvalidInputError(f"name what to fetch: {', '.join(entries)}")
        for entry in chosen:
            console.print(f"{entry.name}: {entry.fetch()}", soft_wrap=True)
        return 0
    if command.action == "verify":
        faults = [fault for entry in chosen if entry.locate() or command.names for fault in entry.verify()]
        present = sum(entry.locate() is not None for entry in chosen)
        for fault in faults:
            console.print(fault, soft_wrap=True)
        console.print(f"{present} of {len(chosen)} data sets at hand, {len(faults)} faults")
        return 1 if faults else 0
    rows = [
        (e.name, e.title, f"{sum(f.bytes for f in e.files) / 1e6:.1f} MB", e.licence, str(e.locate() or "-"))
        for e in chosen
    ]
    _table(Table(title="Data sets", columns=("name", "what", "size", "licence", "where"), rows=rows))
    return 0


def doctor() -> int:
    """Prints what was found on this machine; fails where something needs a remedy."""
    checks = [*examine(), *_applications()]
    rows = [("ok" if check.ok else "fault", check.name, check.found, check.remedy) for check in checks]
    _table(Table(title="This machine", columns=("", "what", "found", "remedy"), rows=rows))
    return 0 if all(check.ok for check in checks) else 1


def _applications() -> list[Check]:
    """Whether each application's shipped weights are whole, and which of its data sets are at hand."""
    from shared.data.registry import read_registry
    from shared.deploy.artifact import open_artifact

    checks = []
    for app in installed().values():
        for path in sorted(app.weights.glob("*/[0-9]*")):
            try:
                manifest = open_artifact(path).manifest
                checks.append(Check(f"{app.name} weights", True, f"{manifest.name} version {manifest.version}"))
            except InvalidInputError as refusal:
                checks.append(Check(f"{app.name} weights", False, path.parent.name, str(refusal)))
        entries = read_registry(app.data_registry).values()
        present = [entry.name for entry in entries if entry.locate() is not None]
        checks.append(Check(f"{app.name} data", True, f"{len(present)} of {len(entries)} data sets at hand"))
    return checks


def _device(asked: str | None) -> str:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("there is no GPU that torch can use here; leave --device out, or say --device cpu")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def _option(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise InvalidInputError(f"--option {text}: write it as name=value")
    return name, value


def _scores(title: str, scores: dict[str, float]) -> None:
    rows = [(name, f"{value:.4g}") for name, value in scores.items()]
    _table(Table(title=title, columns=("score", "value"), rows=rows))


def _findings(app: App, result: dict[str, Any], most: int = 10) -> None:
    """What a result says in sentences, then its list of objects as a table."""
    for sentence in _sentences(result):
        console.print(sentence, soft_wrap=True)
    key = next(name for name in ("findings", "boxes", "events") if name in result)
    items = result[key]
    more = f", the first {most} shown" if len(items) > most else ""
    title = f"{app.title}: {key}: {len(items)}{more}"
    if not items:
        console.print(title, soft_wrap=True)
        return
    columns = [
        name
        for name, value in items[0].items()
        if (not isinstance(value, (dict, list)) or len(value) <= 3) and any(item[name] is not None for item in items)
    ]
    _table(
        Table(title=title, columns=columns, rows=[[_short(item[name]) for name in columns] for item in items[:most]])
    )


def _sentences(result: dict[str, Any]) -> Iterator[str]:
    for name, value in result.items():
        if name in ("remarks", "notes"):
            yield from value
        elif isinstance(value, dict):
            yield from _sentences(value)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, list):
        return ", ".join(_short(item) for item in value)
    return str(value)


def _table(table: Table) -> None:
    shown = RichTable(title=table.title, title_justify="left")
    for column in table.columns:
        shown.add_column(column, overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    (console if sys.stdout.isatty() else Console(width=150)).print(shown)
    for note in table.notes:
        console.print(note, soft_wrap=True)
