"""The dense network of an artifact: as torch modules with its weights, and as ONNX."""

from __future__ import annotations

import logging
from pathlib import Path

from shared.app import App, DenseNetwork, find
from shared.atomic_files import file_lock
from shared.deploy.artifact import NETWORK, WEIGHTS, Artifact, load_weights
from shared.deploy.programs.choosing import Network, open_program
from shared.deploy.programs.program import Program
from shared.deploy.programs.store import create_cache_folder, stored_programs, weights_digest
from shared.errors import InvalidInputError
from shared.recipes import recipe_of

log = logging.getLogger("trivium.programs")


def dense_network(app: App, artifact: Artifact) -> DenseNetwork:
    """The dense network that ``trivium export`` would write. Raises ``NotImplementedError`` if the model has none."""
    recipe = recipe_of(app, artifact.recipe())
    return app.dense(recipe, load_weights(recipe.model.build(recipe.input), artifact, "cpu"))


def open_network(app: App, artifact: Artifact, device: str = "cpu") -> Program:
    """Opens the artifact's dense network, for the predictor of an application: maps inputs by name to outputs by name.

    The program is the one that the user requests, else the fastest on this machine, timed once on the example inputs
    that ``App.dense`` returns. A predictor with ``programs = {artifact.manifest.name: program}`` can be quantised.
    """

    def build() -> DenseNetwork:
        return dense_network(app, artifact)

    return open_program(Network(artifact=artifact, build=build, example=lambda: build().inputs), device)


def onnx_file(artifact: Artifact) -> Path:
    """The path of the network as ONNX: the artifact's own file, or one exported once and kept in the user's cache.

    The artifact's own file is not used if the manifest says that it was made from other weights; if the manifest does
    not name the weights, a warning is logged. Exporting takes seconds and imports torch. Raises ``InvalidInputError``
    for an artifact without a dense network, or of an application that is not installed.
    """
    entry = artifact.manifest.programs.get("onnx")
    if NETWORK in artifact.manifest.files and (entry is None or entry.weights == weights_digest(artifact)):
        if entry is None and WEIGHTS in artifact.manifest.files:
            log.warning(
                "%s is served although its manifest does not say from which weights it was made", artifact.network
            )
        return artifact.network
    if not artifact.manifest.has_network:
        raise InvalidInputError(f"{artifact.path} has no dense network that can be run on its own")
    with file_lock(create_cache_folder(artifact) / ".onnx.lock"):
        if (stored := stored_programs(artifact)[0].get("onnx")) is not None:
            return stored.path
        from shared.deploy.programs.making import cache_onnx

        return cache_onnx(artifact, dense_network(find(artifact.manifest.app), artifact))
