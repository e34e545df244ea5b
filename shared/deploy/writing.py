"""Writes an artifact as the next version of its model in a registry. The version appears complete or not at all."""

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
from shared.deploy.provenance import UNKNOWN_DATA
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
    """Writes the next version of the model ``manifest.name``: weights, recipe file, and ``dense`` as ONNX.

    ``programs`` are further programs made from ``dense``. All programs are measured on ``examples``, by default the
    network's own example. Their manifest entries have the digest of the weights that they were made from.

    The version, tensors, files and creation time of ``manifest`` are filled in. Raises ``ArithmeticError`` if the
    exported network differs from torch.
    """

    def fill(folder: Path) -> Manifest:
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
        save_file(tensors, folder / WEIGHTS)
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

    The recipe file has only the settings that describe the network, ``model`` and ``input``. The network is exported as
    ONNX if possible; otherwise the artifact has no ONNX file, and ``source`` says why.
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
        data={"description": UNKNOWN_DATA, "synthetic": None},
        calibration=dict(imported.calibration),
        training={"torch": torch.__version__, "parameters": sum(p.numel() for p in network.parameters())},
        source={"importer": importer, **imported.source},
    )
    text = yaml.safe_dump(document, sort_keys=False)
    weights = network.state_dict()
    try:
        dense = app.dense(recipe, network)
        return write_artifact(registry, manifest, weights=weights, recipe=text, dense=dense)
    except (
        ArithmeticError,
        ImportError,
        InvalidInputError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        is_refusal = isinstance(error, (InvalidInputError, NotImplementedError)) and reason
        manifest.source["without_onnx"] = reason if is_refusal else f"{type(error).__name__}: {reason}"
        return write_artifact(registry, manifest, weights=weights, recipe=text, dense=None)


def write_recalibrated(
    registry: Path, artifact: Artifact, calibration: Mapping[str, Any], data: Mapping[str, Any]
) -> Artifact:
    """Writes ``artifact`` as the next version in ``registry``, with the calibration found on the data set ``data``.

    The new number is also higher than that of ``artifact``, which may be in another registry, so that no two different
    versions have the same number.
    """
    old_manifest = artifact.manifest
    new_manifest = replace(
        old_manifest,
        calibration={**old_manifest.calibration, **calibration},
        training={**old_manifest.training, "calibrated_on": dict(data), "calibrated_from": old_manifest.version},
    )

    def fill(folder: Path) -> Manifest:
        for name in old_manifest.files:
            shutil.copy(artifact.path / name, folder / name)
        return new_manifest

    return _next_version(registry, old_manifest.name, fill, after=old_manifest.version)


def _next_version(registry: Path, name: str, fill: Callable[[Path], Manifest], after: int = 0) -> Artifact:
    model_folder = registry / name
    try:
        model_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{model_folder} cannot be created: {error.strerror}; name another folder with --registry"
        ) from error
    with file_lock(model_folder / ".lock"):
        version = max((int(entry.name) for entry in model_folder.iterdir() if entry.name.isdecimal()), default=0)
        version = max(version, after) + 1
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=model_folder))
        try:
            manifest = fill(staging)
            complete_manifest = replace(
                manifest,
                version=version,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                files={file.name: describe_file(file) for file in sorted(staging.iterdir())},
            )
            write_manifest(staging, complete_manifest)
            staging.chmod(0o755)
            for file in staging.iterdir():
                file.chmod(0o644)
            publish(staging, model_folder / str(version))
            if complete_manifest.has_network:
                write_whole(model_folder / "config.pbtxt", triton_config(complete_manifest))
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return open_artifact(model_folder / str(version))
