"""``trivium export``."""

from __future__ import annotations

from shared.app import find
from shared.cli.arguments import Export
from shared.cli.printing import print_line
from shared.recipe_file import read_recipe_file


def run(command: Export) -> int:
    """Exports a run's best checkpoint, compared with torch on the way."""
    app = find(str(read_recipe_file(command.run / "recipe.yaml")["app"]))
    from shared.deploy.export import export

    artifact = export(command.run, app, command.registry)
    sizes = ", ".join(f"{name} {entry['bytes'] / 1e6:.1f} MB" for name, entry in artifact.manifest.files.items())
    print_line(f"{artifact.path}: {sizes}")
    return 0
