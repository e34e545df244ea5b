"""``trivium models``."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from shared.app import App, Importer, Table, called, find, installed
from shared.cli.arguments import Models
from shared.cli.printing import print_table
from shared.errors import InvalidInputError


def run(command: Models) -> int:
    """Lists the recipes, artifacts, data sets and importers of the applications."""
    for app in [find(command.app)] if command.app else installed().values():
        print_table(Table(title=f"{app.name}: {app.title}", columns=("what", "name", "says"), rows=rows(app)))
        if app.models_table is not None:
            print_table(app.models_table())
    return 0


def rows(app: App) -> list[tuple[str, str, str]]:
    """The recipes, shipped artifacts, data sets and importers of an application: kind, name and summary of each."""
    recipes = [("recipe", name, _first_doc_line(called(build))) for name, build in app.recipes().items()]
    data = [
        ("data set", name, f"{_first_doc_line(data_class)} {_required_flags(data_class)}".strip())
        for name, data_class in app.data_sets().items()
    ]
    imports = [
        ("importer", _importer_usage(name, importer), importer.summary) for name, importer in app.importers().items()
    ]
    return [*recipes, *_shipped_rows(app), *data, *imports]


def _importer_usage(name: str, importer: Importer) -> str:
    """The name of an importer with its arguments and options."""
    options = (f"[--option {option}={values}]" for option, values in importer.options.items())
    return " ".join((name, *importer.arguments, *options))


def _shipped_rows(app: App) -> list[tuple[str, str, str]]:
    from shared.deploy.artifact import open_artifact

    shipped_rows = []
    for path in sorted(app.weights.glob("*/[0-9]*")):
        try:
            manifest = open_artifact(path).manifest
        except InvalidInputError as error:
            shipped_rows.append(("shipped", path.parent.name, str(error)))
            continue
        shipped_rows.append(
            ("shipped", f"{manifest.name} {manifest.version}", str(manifest.data.get("description", "")))
        )
    return shipped_rows


def _first_doc_line(documented: Any) -> str:
    """The first line of a docstring; empty for one that a dataclass generates."""
    text, name = (documented.__doc__ or "").strip(), getattr(documented, "__name__", "")
    return str(text.splitlines()[0]) if text and not text.startswith(f"{name}(") else ""


def _required_flags(data_class: type[Any]) -> str:
    """The settings of a data set that have no default, as flags."""
    required = [
        field.name for field in fields(data_class) if field.default is MISSING and field.default_factory is MISSING
    ]
    return " ".join(f"--data.{name.replace('_', '-')}" for name in required)
