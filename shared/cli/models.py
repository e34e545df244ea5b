"""``trivium models``."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from shared.app import App, Importer, Table, find, installed
from shared.cli.arguments import Models
from shared.cli.printing import print_table
from shared.errors import InvalidInputError


def run(command: Models) -> int:
    """Lists what the applications can run."""
    for app in [find(command.app)] if command.app else installed().values():
        print_table(Table(title=f"{app.name}: {app.title}", columns=("what", "name", "says"), rows=rows(app)))
        if app.models_table is not None:
            print_table(app.models_table())
    return 0


def rows(app: App) -> list[tuple[str, str, str]]:
    """Recipes, shipped artifacts, data sets and importers, each with its name and a sentence."""
    recipes = [("recipe", name, _first_line(make)) for name, make in app.recipes().items()]
    sets = app.data_sets() if app.data_sets is not None else {}
    data = [("data set", name, f"{_first_line(kind)} {_required(kind)}".strip()) for name, kind in sets.items()]
    importers = app.importers() if app.importers is not None else {}
    imports = [("importer", _usage(name, importer), importer.summary) for name, importer in importers.items()]
    return [*recipes, *_shipped(app), *data, *imports]


def _usage(name: str, importer: Importer) -> str:
    """An importer's name, its arguments and its options."""
    options = (f"[--option {option}={values}]" for option, values in importer.options.items())
    return " ".join((name, *importer.arguments, *options))


def _shipped(app: App) -> list[tuple[str, str, str]]:
    from shared.deploy.artifact import open_artifact

    found = []
    for path in sorted(app.weights.glob("*/[0-9]*")):
        try:
            manifest = open_artifact(path).manifest
        except InvalidInputError as refusal:
            found.append(("shipped", path.parent.name, str(refusal)))
            continue
        found.append(("shipped", f"{manifest.name} {manifest.version}", str(manifest.data.get("description", ""))))
    return found


def _first_line(documented: Any) -> str:
    text = (documented.__doc__ or "").strip()
    return str(text.splitlines()[0]) if text and not text.startswith(f"{documented.__name__}(") else ""


def _required(kind: type[Any]) -> str:
    """The settings of a data set that have no default, as flags."""
    needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    return " ".join(f"--data.{name.replace('_', '-')}" for name in needed)
