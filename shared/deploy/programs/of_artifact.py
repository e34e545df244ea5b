"""The dense network of an artifact, built from torch's modules with its weights, and as ONNX."""

from __future__ import annotations

from pathlib import Path

from shared.app import App, DenseNetwork, find
from shared.atomic_files import file_lock
from shared.deploy.artifact import NETWORK, Artifact, load_weights
from shared.deploy.programs.store import found_programs, programs_folder
from shared.errors import InvalidInputError
from shared.recipes import recipe_of


def dense_network(app: App, artifact: Artifact) -> DenseNetwork:
    """The network that ``trivium export`` would write. Raises ``NotImplementedError`` for a model that has none."""
    recipe = recipe_of(app, artifact.recipe())
    return app.dense(recipe, load_weights(recipe.model.build(recipe.input), artifact, "cpu"))


def onnx_file(artifact: Artifact) -> Path:
    """The network as ONNX: the artifact's own, or one that is made of its weights once and kept in the user's cache.

    Making it takes seconds and imports torch. Raises ``InvalidInputError`` for an artifact without a dense network, or
    of an application that is not installed.
    """
    if NETWORK in artifact.manifest.files:
        return artifact.network
    if not artifact.manifest.has_network:
        raise InvalidInputError(f"{artifact.path} has no dense network that could be computed by itself")
    with file_lock(programs_folder(artifact) / ".onnx.lock"):
        if (found := found_programs(artifact)[0].get("onnx")) is not None:
            return found.path
        from shared.deploy.programs.making import keep_onnx

        return keep_onnx(artifact, dense_network(find(artifact.manifest.app), artifact))
