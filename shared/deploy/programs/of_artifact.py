"""The dense network of an artifact, built from torch's modules with its weights."""

from __future__ import annotations

from shared.app import App, DenseNetwork
from shared.deploy.artifact import Artifact, load_weights
from shared.recipes import recipe_of


def dense_network(app: App, artifact: Artifact) -> DenseNetwork:
    """The network that ``trivium export`` would write. Raises ``NotImplementedError`` for a model that has none."""
    recipe = recipe_of(app, artifact.recipe())
    return app.dense(recipe, load_weights(recipe.model.build(recipe.input), artifact, "cpu"))
