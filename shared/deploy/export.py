"""From a run to an artifact: weights, the dense network as ONNX checked against torch, recipe and manifest."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from shared.app import App, DenseNetwork
from shared.atomic_files import file_lock, publish, write_whole
from shared.deploy.artifact import (
    NETWORK,
    RECIPE,
    WEIGHTS,
    Artifact,
    Manifest,
    TensorSpec,
    describe_file,
    load_weights,
    open_artifact,
    write_manifest,
)
from shared.engine.checkpoint import Checkpoints, model_state, read_progress
from shared.engine.run import Run
from shared.errors import InvalidInputError
from shared.recipe import Recipe
from shared.recipe_file import digest, from_mapping, read_recipe_file

_DATATYPES = {
    torch.float32: "FP32",
    torch.float16: "FP16",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.bool: "BOOL",
}
_TRITON = {"FP32": "TYPE_FP32", "FP16": "TYPE_FP16", "INT64": "TYPE_INT64", "INT32": "TYPE_INT32", "BOOL": "TYPE_BOOL"}
__all__ = ["export", "load_weights", "rebuild", "triton_config", "write_onnx"]
TOLERANCE = 1e-3
"""How far ONNX Runtime may be from torch at export, relative to the largest output."""


def export(run_dir: Path, app: App, registry: Path) -> Artifact:
    """Exports the best checkpoint of a run as the next version of its model in ``registry``.

    The version appears whole or not at all. Refuses a run without a checkpoint; raises ``ArithmeticError`` where the
    exported network and torch differ by more than ``TOLERANCE``.
    """
    run = Run(run_dir, app.name, "")
    document = read_recipe_file(run.recipe_file)
    recipe = rebuild(app, document)
    checkpoints = Checkpoints(run.checkpoints, recipe_digest=document["digest"])
    latest = checkpoints.latest()
    if latest is None:
        raise InvalidInputError(f"{run_dir} has no checkpoint yet; `trivium train {app.name}` writes one")
    if not (best := read_progress(latest).best_step):
        raise InvalidInputError(
            f"{latest} has not been evaluated yet; train to the end of an epoch, or to --limits.steps"
        )
    if (checkpoint := checkpoints.best()) is None:
        raise InvalidInputError(
            f"the best checkpoint of {run_dir}, that of step {best}, is missing or torn; train further"
        )
    model = recipe.model.build(recipe.input)
    model.load_state_dict(model_state(checkpoint))
    model.eval()
    progress = read_progress(checkpoint)
    scores = {name: value for name, value in progress.history[-1].items() if name != "step"}
    calibration = app.calibrate(recipe, model) if app.calibrate is not None else {}
    dense = app.dense(recipe, model)

    name = str(getattr(recipe.model, "name", app.models[0]))
    home = registry / name
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{home} cannot be made: {error.strerror}; name another folder with --registry"
        ) from error
    with file_lock(home / ".lock"):
        version = max((int(entry.name) for entry in home.iterdir() if entry.name.isdecimal()), default=0) + 1
        aside = Path(tempfile.mkdtemp(prefix=".export-", dir=home))
        try:
            weights = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
            save_file(weights, aside / WEIGHTS)
            shutil.copy(run.recipe_file, aside / RECIPE)
            outputs = write_onnx(dense, aside / NETWORK)
            inputs = tuple(_spec(key, value, dense) for key, value in dense.inputs.items())
            manifest = Manifest(
                name=name,
                version=version,
                app=app.name,
                inputs=inputs,
                outputs=tuple(_spec(key, value, dense) for key, value in outputs.items()),
                scores=scores,
                data=recipe.data.fingerprint(),
                calibration=calibration,
                training={
                    "recipe": document["name"],
                    "recipe_digest": digest(recipe),
                    "steps": progress.step,
                    "seconds": round(progress.seconds, 1),
                    "device": progress.device,
                    "torch": torch.__version__,
                    "parameters": sum(p.numel() for p in model.parameters()),
                },
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                files={file: describe_file(aside / file) for file in (WEIGHTS, NETWORK, RECIPE)},
            )
            write_manifest(aside, manifest)
            aside.chmod(0o755)
            for file in aside.iterdir():
                file.chmod(0o644)
            publish(aside, home / str(version))
            write_whole(home / "config.pbtxt", triton_config(manifest))
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return open_artifact(home / str(version))


def rebuild(app: App, document: Mapping[str, Any]) -> Recipe:
    """The recipe in a ``recipe.yaml`` document, as the class of the app's recipe of that name."""
    if document["app"] != app.name:
        raise InvalidInputError(f"the run belongs to {document['app']}, not to {app.name}")
    recipes = app.recipes()
    if document["name"] not in recipes:
        raise InvalidInputError(f"{app.name} has no recipe {document['name']!r}; it has {', '.join(recipes)}")
    return from_mapping(recipes[document["name"]](), document["recipe"])


def write_onnx(dense: DenseNetwork, path: Path) -> dict[str, Tensor]:
    """Writes the network as one ONNX file and returns its outputs on the example inputs, after comparing the two."""
    import onnxruntime as ort

    module = dense.module.cpu().eval()
    example = tuple(value.cpu() for value in dense.inputs.values())
    dynamic = {
        name: {axis: torch.export.Dim(label) for axis, label in axes.items()} for name, axes in _axes(dense).items()
    }
    shapes = tuple(dynamic.get(name, {}) for name in dense.inputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = module(*example)
        program = torch.onnx.export(
            module,
            example,
            input_names=list(dense.inputs),
            output_names=list(dense.outputs),
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in zip(dense.inputs, example, strict=True)}
    found = session.run(list(dense.outputs), feeds)
    for name, one, other in zip(dense.outputs, expected, found, strict=True):
        difference = float(np.abs(one.numpy() - other).max()) / max(float(one.abs().max()), 1e-6)
        if not difference < TOLERANCE:
            raise ArithmeticError(f"the exported network's output {name} differs from torch's by {difference:.2e}")
    for kind, tensors in ((session.get_inputs(), dense.inputs), (session.get_outputs(), dense.outputs)):
        # The exporter fixes an axis without a word where the network's code does.
        for tensor in kind:
            fixed = [axis for axis in _axes(dense).get(tensor.name, {}) if isinstance(tensor.shape[axis], int)]
            if tensor.name in tensors and fixed:
                raise ArithmeticError(
                    f"axis {fixed[0]} of {tensor.name} was exported as {tensor.shape}, not as dynamic"
                )
    return dict(zip(dense.outputs, expected, strict=True))


def _axes(dense: DenseNetwork) -> dict[str, dict[int, str]]:
    if dense.dynamic is None:
        return {name: {0: "batch"} for name in (*dense.inputs, *dense.outputs)}
    return {name: dict(axes) for name, axes in dense.dynamic.items()}


def _spec(name: str, value: Tensor, dense: DenseNetwork) -> TensorSpec:
    moving = _axes(dense).get(name, {})
    shape = tuple(-1 if axis in moving else size for axis, size in enumerate(value.shape))
    return TensorSpec(name=name, datatype=_DATATYPES[value.dtype], shape=shape)


def triton_config(manifest: Manifest) -> str:
    """The model's ``config.pbtxt`` for Triton's ONNX Runtime backend."""

    def tensors(kind: str, specs: tuple[TensorSpec, ...], drop: int) -> str:
        items = []
        for spec in specs:
            # Triton wants at least one dimension besides the batch.
            dims = ", ".join(map(str, spec.shape[drop:])) or "1"
            reshape = "" if spec.shape[drop:] else " reshape: { shape: [ ] }"
            items.append(f'  {{ name: "{spec.name}" data_type: {_TRITON[spec.datatype]} dims: [ {dims} ]{reshape} }}')
        return f"{kind} [\n" + ",\n".join(items) + "\n]\n"

    batched = all(spec.shape[:1] == (-1,) for spec in (*manifest.inputs, *manifest.outputs))
    head = f'name: "{manifest.name}"\nbackend: "onnxruntime"\nmax_batch_size: {8 if batched else 0}\n'
    tail = "dynamic_batching { max_queue_delay_microseconds: 2000 }\n" if batched else ""
    drop = 1 if batched else 0
    return head + tensors("input", manifest.inputs, drop) + tensors("output", manifest.outputs, drop) + tail
