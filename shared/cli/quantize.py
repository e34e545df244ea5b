"""``trivium quantize``."""

from __future__ import annotations

from collections.abc import Sequence

from shared.app import find
from shared.cli.arguments import Quantize
from shared.cli.printing import print_line
from shared.cli.settings import parse_data
from shared.deploy.artifact import open_artifact
from shared.errors import InvalidInputError
from shared.recipes import recipe_of


def run(command: Quantize, settings: Sequence[str]) -> int:
    """Quantises an artifact's network, compares the scores, and prints the latency."""
    artifact = open_artifact(command.artifact)
    app = find(artifact.manifest.app)
    if settings and command.data is None:
        raise InvalidInputError(f"unknown argument {settings[0]}; settings of a data set need --data NAME")
    for path in command.calibrate:
        if not path.exists():
            raise InvalidInputError(f"{path} does not exist; name existing input files to calibrate on")
    if command.data is not None:
        data = parse_data(app, command.data, settings, "quantize")
    else:
        data = recipe_of(app, artifact.recipe()).data
    from shared.deploy.quantize import quantize

    entry = quantize(
        app,
        artifact,
        data,
        method=command.int8,
        files=command.calibrate,
        cases=command.cases,
        force=command.force,
        into_artifact=command.into_artifact,
        report=print_line,
    )
    speedup = entry.scores["torch_ms"] / entry.latency_ms
    print_line(
        f"{artifact.manifest.name}: {entry.latency_ms} ms a call in INT8, {speedup:.2f} times torch's speed in fp32"
    )
    return 0
