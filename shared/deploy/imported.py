"""From a model that an importer made to an artifact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
import yaml

from shared.app import App, Imported
from shared.deploy.artifact import Artifact, Manifest
from shared.deploy.writing import write_artifact
from shared.recipe_file import to_mapping


def write_imported(app: App, importer: str, imported: Imported, registry: Path) -> Artifact:
    """Writes an imported model as the next version of its name in ``registry``.

    The recipe file holds what describes the network, ``model`` and ``input``. The network is exported as ONNX where
    the application can; where torch's exporter cannot, the artifact is whole without it, and ``source`` says why.
    """
    recipe, network = imported.recipe, imported.network.cpu().eval()
    settings = {name: value for name, value in to_mapping(recipe).items() if name in ("model", "input")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    document = {"app": app.name, "name": importer, "digest": digest, "recipe": settings}
    manifest = Manifest(
        name=str(getattr(recipe.model, "name", app.models[0])),
        version=0,
        app=app.name,
        inputs=(),
        outputs=(),
        scores={},
        data={"description": "trained elsewhere; see source", "synthetic": False},
        calibration=dict(imported.calibration),
        training={"torch": torch.__version__, "parameters": sum(p.numel() for p in network.parameters())},
        source={"importer": importer, **imported.source},
    )
    text = yaml.safe_dump(document, sort_keys=False)
    weights = network.state_dict()
    try:
        dense = app.dense(recipe, network)
        return write_artifact(registry, manifest, weights=weights, recipe=text, dense=dense)
    except (ArithmeticError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        manifest.source["without_onnx"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        return write_artifact(registry, manifest, weights=weights, recipe=text, dense=None)
