"""``trivium import``."""

from __future__ import annotations

from collections.abc import Sequence

from shared.app import App, Importer, find
from shared.cli.arguments import Import
from shared.cli.options import named_options
from shared.cli.printing import print_line
from shared.cli.settings import parse_data
from shared.errors import InvalidInputError
from shared.recipes import named_data_set


def run(command: Import, settings: Sequence[str]) -> int:
    """Reads a public checkpoint and writes it as an artifact."""
    app = find(command.app)
    name, importer, arguments = _importer(app, command.importer, command.arguments)
    if command.data is None and settings:
        raise InvalidInputError(f"unknown argument {settings[0]}; see trivium import --help")
    data = None
    if command.data is not None:
        kind = named_data_set(app, command.data)
        data = parse_data(kind, settings, f"trivium import {app.name} {name} --data {command.data} --")
    options = named_options(command.option)
    if unknown := sorted(options.keys() - importer.options.keys()):
        known = ", ".join(f"{option}={values}" for option, values in importer.options.items())
        raise InvalidInputError(f"{name} has no option {unknown[0]}; it has {known or 'none'}")
    imported = importer.load(arguments, data, **options)
    from shared.deploy.writing import write_imported

    artifact = write_imported(app, name, imported, command.registry)
    for key, value in artifact.manifest.source.items():
        print_line(f"{key}: {('; '.join(map(str, value)) or 'none') if isinstance(value, list) else value}")
    print_line(f"{artifact.path}")
    return 0


def _importer(app: App, word: str, words: Sequence[str]) -> tuple[str, Importer, Sequence[str]]:
    """The importer called ``word``; an application's only one need not be named."""
    importers = app.importers() if app.importers is not None else {}
    if not importers:
        raise InvalidInputError(f"{app.name} imports no checkpoints")
    name, arguments = word, list(words)
    if word not in importers and len(importers) == 1:
        name, arguments = next(iter(importers)), [word, *words]
    if name not in importers:
        raise InvalidInputError(f"{app.name} has no importer {word!r}; it has {', '.join(importers)}")
    importer = importers[name]
    most, least = len(importer.arguments), sum(not word.startswith("[") for word in importer.arguments)
    if not least <= len(arguments) <= most:
        usage = " ".join((name, *importer.arguments))
        count = most if least == most else f"{least} to {most}"
        raise InvalidInputError(f"{name} takes {count} arguments: trivium import {app.name} {usage}")
    return name, importer, arguments
