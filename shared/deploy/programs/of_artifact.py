"""The dense network of an artifact, built from torch's modules with its weights, and as ONNX."""

from __future__ import annotations

import logging
from pathlib import Path

from shared.app import App, DenseNetwork, find
from shared.atomic_files import file_lock
from shared.deploy.artifact import NETWORK, WEIGHTS, Artifact, load_weights
from shared.deploy.programs.store import found_programs, programs_folder, weights_digest
from shared.errors import InvalidInputError
from shared.recipes import recipe_of

log = logging.getLogger("trivium.programs")


def dense_network(app: App, artifact: Artifact) -> DenseNetwork:
    """The network that ``trivium export`` would write. Raises ``NotImplementedError`` for a model that has none."""
    recipe = recipe_of(app, artifact.recipe())
    return app.dense(recipe, load_weights(recipe.model.build(recipe.input), artifact, "cpu"))


def onnx_file(artifact: Artifact) -> Path:
    """The network as ONNX: the artifact's own, or one that is made of its weights once and kept in the user's cache.

    Its own is not taken where the manifest says that it was made from other weights; where it does not say from which,
    the log has a warning. Making one takes seconds and imports torch. Raises ``InvalidInputError`` for an artifact
    without a dense network, or of an application that is not installed.
    """
    entry = artifact.manifest.programs.get("onnx")
    if NETWORK in artifact.manifest.files and (entry is None or entry.weights == weights_digest(artifact)):
        if entry is None and WEIGHTS in artifact.manifest.files:
            log.warning(
                "%s serves the tensors as it is: no entry says from which weights it was made", artifact.network
            )
        return artifact.network
    if not artifact.manifest.has_network:
        raise InvalidInputError(f"{artifact.path} has no dense network that could be computed by itself")
    with file_lock(programs_folder(artifact) / ".onnx.lock"):
        if (found := found_programs(artifact)[0].get("onnx")) is not None:
            return found.path
        from shared.deploy.programs.making import keep_onnx

        return keep_onnx(artifact, dense_network(find(artifact.manifest.app), artifact))
