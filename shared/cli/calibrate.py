"""``trivium calibrate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared.app import find
from shared.cli.arguments import Calibrate
from shared.cli.printing import print_line
from shared.cli.settings import parse_data
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.recipes import recipe_of

_LINE_LENGTH = 120


def run(command: Calibrate, settings: Sequence[str]) -> int:
    """Finds the operating point on a data set and writes the artifact's next version.

    If the artifact is served with a second stage, the operating point is that of both together, and the next version of
    the second stage is written.
    """
    app = find(command.app)
    if app.calibrate is None:
        raise InvalidInputError(f"{app.name} has no operating point to set")
    if command.data is None:
        raise InvalidInputError(
            f"name a data set: trivium calibrate {app.name} --data NAME; `trivium models` lists them"
        )
    data = parse_data(app, command.data, settings, f"calibrate {app.name}")
    from shared.deploy.artifact import load_weights, open_artifact
    from shared.deploy.writing import write_recalibrated

    if command.artifact:
        artifact = open_artifact(command.artifact)
    else:
        # The artifact that a server of this registry uses. Otherwise the next version would be of another network.
        artifact = Registry(command.registry, app.weights).serving(app)[0]
    artifact.must_belong_to(app.name)
    print_line(f"calibrating {artifact.path}")
    second_stage = next(iter(app.served_with(artifact, command.registry)), None)
    if second_stage is not None and app.calibrate_second is not None:
        # Both models decide together, and the second stage holds their operating point.
        detector, artifact = artifact, second_stage
        recipe = recipe_of(app, artifact.recipe(), data)
        model = load_weights(recipe.model.build(recipe.input), artifact, "cpu")
        calibration = app.calibrate_second(recipe, model, detector)
    else:
        recipe = recipe_of(app, artifact.recipe(), data)
        model = load_weights(recipe.model.build(recipe.input), artifact, "cpu")
        calibration = app.calibrate(recipe, model)
    written = write_recalibrated(command.registry, artifact, calibration, data.fingerprint())
    before, after = artifact.manifest.calibration, written.manifest.calibration
    for line in _changes(before, after):
        print_line(line)
    if unchanged := [name for name, value in after.items() if before.get(name) == value]:
        print_line(f"unchanged: {', '.join(unchanged)}")
    print_line(f"{written.path}")
    return 0


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A line for each setting that has changed; values too long for a line, such as tables, are not printed."""
    lines = []
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, Mapping):
            changes = _changes(old if isinstance(old, Mapping) else {}, value)
            lines += [f"{name}.{line}" for line in changes]
        elif value != old:
            change = f"{name}: {'-' if old is None else old} -> {value}"
            lines.append(change if len(change) <= _LINE_LENGTH else f"{name}: changed")
    return lines
