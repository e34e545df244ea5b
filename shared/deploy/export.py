"""Exports a run as an artifact: the best checkpoint's weights, the dense network as ONNX, recipe and manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.app import App, DenseNetwork
from shared.deploy.artifact import Artifact, Manifest, open_artifact
from shared.deploy.calibration_inputs import comparison_examples
from shared.deploy.writing import write_artifact
from shared.engine.checkpoint import Checkpoints, Progress, model_state, read_progress, read_while_training
from shared.engine.run import Run
from shared.errors import InvalidInputError
from shared.recipe_file import digest, read_recipe_file
from shared.recipes import recipe_of

_RECORDED_FIELDS = ("recipe", "steps", "seconds", "device", "began_from")


def export(
    run_dir: Path,
    app: App,
    registry: Path,
    *,
    network: bool = True,
    programs: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> Artifact:
    """Exports the best checkpoint of a run as the next version of its model in ``registry``.

    The version appears complete or not at all. With ``network=False`` it has no ONNX file. ``programs`` are further
    programs to make, which are compared with torch on the network's inputs on ``files``, or else on the application's
    samples. If the model has no dense network, or one that ONNX cannot express (``has_onnx``), there is no ONNX file,
    and ``training["without_onnx"]`` of the manifest says why.

    Raises ``InvalidInputError`` for a run without a checkpoint, for ``programs`` of a model without a dense network, or
    for a network that cannot be exported or is not as its ``DenseNetwork`` describes it,
    ``ArithmeticError`` if a program differs from torch, and ``ProgramError`` for a program that cannot be made on this
    machine.
    """
    run = Run(run_dir, app.name, "")
    document = read_recipe_file(run.recipe_file)
    recipe = recipe_of(app, document)
    best_weights, progress = read_while_training(lambda: _best_weights(run))
    model = recipe.model.build(recipe.input)
    model.load_state_dict(best_weights)
    model.eval()
    calibration: dict[str, Any] = app.calibrate(recipe, model) if app.calibrate is not None else {}
    origin = training_origin(recipe.init)
    manifest = Manifest(
        name=str(getattr(recipe.model, "name", app.models[0])),
        version=0,
        app=app.name,
        inputs=(),
        outputs=(),
        scores={name: value for name, value in progress.history[-1].items() if name != "step"},
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
            **({} if origin is None else {"began_from": origin}),
        },
    )
    dense: DenseNetwork | None = None
    if network:
        try:
            dense = app.dense(recipe, model)
            if not dense.has_onnx:
                raise NotImplementedError("the application says that its network cannot be exported (has_onnx)")
        except NotImplementedError as error:
            dense = None
            # A network without a dense part, such as one that was imported and then fine-tuned, is served by torch.
            manifest.training["without_onnx"] = str(error)
            if others := [name for name in programs if name != "onnx"]:
                raise InvalidInputError(f"{', '.join(others)} cannot be made: {error}; export without them") from error
    weights, recipe_text = model.state_dict(), run.recipe_file.read_text(encoding="utf-8")
    examples = None
    if dense is not None and programs:
        with tempfile.TemporaryDirectory(prefix="trivium-") as folder:
            artifact_without_network = write_artifact(
                Path(folder), manifest, weights=weights, recipe=recipe_text, dense=None
            )
            examples = comparison_examples(app, artifact_without_network, files)
    return write_artifact(
        registry, manifest, weights=weights, recipe=recipe_text, dense=dense, programs=programs, examples=examples
    )


def _best_weights(run: Run) -> tuple[dict[str, Tensor], Progress]:
    """The weights of the best checkpoint, and the progress of the run at that checkpoint."""
    checkpoints = Checkpoints(run.checkpoints, recipe_digest="")
    latest = checkpoints.latest()
    if latest is None:
        raise InvalidInputError(f"{run.path} has no checkpoint yet; `trivium train {run.app}` writes one")
    newest = read_progress(latest)
    if not (best := newest.best_step):
        if newest.history:
            raise InvalidInputError(f"limits.monitor of {run.path} was not a finite number in any of its evaluations")
        raise InvalidInputError(
            f"{latest} has not been evaluated yet; train to the end of an epoch, or to --limits.steps"
        )
    if (checkpoint := checkpoints.best()) is None:
        raise InvalidInputError(
            f"the best checkpoint of {run.path}, of step {best}, is missing or damaged; continue the training"
        )
    return model_state(checkpoint), read_progress(checkpoint)


def training_origin(initial: Path | None, visited: tuple[Path, ...] = ()) -> dict[str, Any] | None:
    """Describes the training of the weights that a run was initialised from; None if it was not.

    ``initial`` is the value of ``--init``: an artifact, a run or a file of weights. The training record of an artifact
    is copied, and that of a run is followed to its own origin. For a file, or if ``initial`` no longer exists, only the
    name is known.
    """
    if initial is None:
        return None
    try:
        if (initial / "manifest.json").is_file():
            manifest = open_artifact(initial).manifest
            record = {name: manifest.training[name] for name in _RECORDED_FIELDS if name in manifest.training}
            source = {"source": manifest.source} if manifest.source else {}
            return {"artifact": f"{manifest.name} {manifest.version}", **record, **source}
        if (initial / "recipe.yaml").is_file() and initial.resolve() not in visited:
            return _run_record(initial, (*visited, initial.resolve()))
    except InvalidInputError:
        pass
    return {"file": initial.name}


def _run_record(run: Path, visited: tuple[Path, ...]) -> dict[str, Any]:
    document = read_recipe_file(run / "recipe.yaml")
    checkpoints = Checkpoints(run / "checkpoints", recipe_digest="")
    checkpoint = checkpoints.best() or checkpoints.latest()
    if checkpoint is None:
        return {"file": run.name}
    progress = read_progress(checkpoint)
    record = {
        "recipe": document["name"],
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "device": progress.device,
    }
    initial = document["recipe"].get("init")
    origin = training_origin(Path(initial) if initial else None, visited)
    return record if origin is None else record | {"began_from": origin}
