"""Writes an artifact as the next version of its model in a registry. The version appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from shared.app import App, DenseNetwork, Imported
from shared.atomic_files import file_lock, publish, write_whole
from shared.deploy.artifact import (
    NETWORK,
    RECIPE,
    WEIGHTS,
    Artifact,
    Manifest,
    describe_file,
    open_artifact,
    write_manifest,
)
from shared.deploy.onnx_network import tensor_spec, write_onnx
from shared.deploy.programs.making import Examples, make_programs, random_examples
from shared.deploy.triton import triton_config
from shared.errors import InvalidInputError
from shared.recipe_file import to_mapping


def write_artifact(
    registry: Path,
    manifest: Manifest,
    *,
    weights: Mapping[str, Tensor],
    recipe: str,
    dense: DenseNetwork | None,
    programs: Sequence[str] = (),
    examples: Examples | None = None,
) -> Artifact:
    """Writes the next version of the model ``manifest.name``: its weights, its recipe file, and ``dense`` as ONNX.

    ``programs`` are made of ``dense`` besides. They and the ONNX are measured on ``examples``, by default on the
    network's own; the manifest says of each from which weights it was made.

    Version, tensors, files and time of creation of ``manifest`` are filled in. Raises ``ArithmeticError`` where the
    exported network and torch differ.
    """

    def fill(folder: Path) -> Manifest:
        stored = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
        save_file(stored, folder / WEIGHTS)
        (folder / RECIPE).write_text(recipe, encoding="utf-8")
        if dense is None:
            return manifest
        outputs = write_onnx(dense, folder / NETWORK)
        return replace(
            manifest,
            inputs=tuple(tensor_spec(key, value, dense) for key, value in dense.inputs.items()),
            outputs=tuple(tensor_spec(key, value, dense) for key, value in outputs.items()),
            programs=make_programs(
                dense,
                list(dict.fromkeys(("onnx", *programs))),
                folder,
                describe_file(folder / WEIGHTS)["sha256"],
                examples or random_examples(dense),
            ),
        )

    return _next_version(registry, manifest.name, fill)


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


def write_recalibrated(
    registry: Path, artifact: Artifact, calibration: Mapping[str, Any], data: Mapping[str, Any]
) -> Artifact:
    """Writes ``artifact`` as the next version in ``registry``, with the calibration found on the data ``data``.

    Its number is above that of ``artifact`` too, which may lie elsewhere: two of one number would be two models.
    """
    old = artifact.manifest
    new = replace(
        old,
        calibration={**old.calibration, **calibration},
        training={**old.training, "calibrated_on": dict(data), "calibrated_from": old.version},
    )

    def fill(folder: Path) -> Manifest:
        for name in old.files:
            shutil.copy(artifact.path / name, folder / name)
        return new

    return _next_version(registry, old.name, fill, after=old.version)


def _next_version(registry: Path, name: str, fill: Callable[[Path], Manifest], after: int = 0) -> Artifact:
    home = registry / name
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{home} cannot be made: {error.strerror}; name another folder with --registry"
        ) from error
    with file_lock(home / ".lock"):
        version = max((int(entry.name) for entry in home.iterdir() if entry.name.isdecimal()), default=0)
        version = max(version, after) + 1
        aside = Path(tempfile.mkdtemp(prefix=".export-", dir=home))
        try:
            manifest = fill(aside)
            written = replace(
                manifest,
                version=version,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                files={file.name: describe_file(file) for file in sorted(aside.iterdir())},
            )
            write_manifest(aside, written)
            aside.chmod(0o755)
            for file in aside.iterdir():
                file.chmod(0o644)
            publish(aside, home / str(version))
            if written.has_network:
                write_whole(home / "config.pbtxt", triton_config(written))
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return open_artifact(home / str(version))
