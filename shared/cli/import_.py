"""``trivium import``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shared.app import App, Importer, find
from shared.cli.arguments import Import
from shared.cli.options import named_options
from shared.cli.printing import print_line
from shared.cli.settings import parse_data
from shared.errors import InvalidInputError


def run(command: Import, settings: Sequence[str]) -> int:
    """Reads a public checkpoint and writes it as an artifact."""
    app = find(command.app)
    name, importer, arguments = _find_importer(app, command.importer, command.arguments)
    if command.data is None and settings:
        raise InvalidInputError(f"unknown argument {settings[0]}; see trivium import --help")
    data = None
    if command.data is not None:
        data = parse_data(app, command.data, settings, f"import {app.name} {name}")
    options = named_options(command.option)
    if unknown := sorted(options.keys() - importer.options.keys()):
        known = ", ".join(f"{option}={values}" for option, values in importer.options.items())
        raise InvalidInputError(f"{name} has no option {unknown[0]}; it has {known or 'none'}")
    # Both steps may take a minute. The output is that of the manifest, so what happens is told on standard error.
    sys.stderr.write(f"reading {arguments[0]} ({name})\n")
    sys.stderr.flush()
    imported = importer.load(arguments, data, **options)
    from shared.deploy.writing import write_imported

    sys.stderr.write(f"writing the artifact to {command.registry}, with its network as ONNX if possible\n")
    sys.stderr.flush()
    artifact = write_imported(app, name, imported, command.registry)
    for key, value in artifact.manifest.source.items():
        print_line(f"{key}: {('; '.join(map(str, value)) or 'none') if isinstance(value, list) else value}")
    print_line(f"{artifact.path}")
    return 0


def _find_importer(app: App, name_given: str, words: Sequence[str]) -> tuple[str, Importer, Sequence[str]]:
    """Returns the importer's name, the importer and its arguments; an application's only importer need not be named."""
    if not (importers := app.importers()):
        raise InvalidInputError(f"{app.name} imports no checkpoints")
    name, arguments = name_given, list(words)
    if name_given not in importers and len(importers) == 1:
        name, arguments = next(iter(importers)), [name_given, *words]
    if name not in importers:
        raise InvalidInputError(f"{app.name} has no importer {name_given!r}; it has {', '.join(importers)}")
    importer = importers[name]
    max_arguments = len(importer.arguments)
    min_arguments = sum(not argument.startswith("[") for argument in importer.arguments)
    if not min_arguments <= len(arguments) <= max_arguments:
        usage = " ".join((name, *importer.arguments))
        count = max_arguments if min_arguments == max_arguments else f"{min_arguments} to {max_arguments}"
        raise InvalidInputError(f"{name} takes {count} arguments: trivium import {app.name} {usage}")
    return name, importer, arguments
