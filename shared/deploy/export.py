"""From a run to an artifact: the best checkpoint's weights, the dense network as ONNX, recipe and manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.app import App, DenseNetwork
from shared.deploy.artifact import Artifact, Manifest, open_artifact
from shared.deploy.calibration_inputs import compared_examples
from shared.deploy.writing import write_artifact
from shared.engine.checkpoint import Checkpoints, Progress, model_state, read_progress, read_while_training
from shared.engine.run import Run
from shared.errors import InvalidInputError
from shared.recipe_file import digest, read_recipe_file
from shared.recipes import recipe_of

_STATED = ("recipe", "steps", "seconds", "device", "began_from")


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

    The version appears whole or not at all; without ``network`` it holds no ONNX, and ``programs`` are made besides.
    They are compared with torch on what the network sees of ``files``, else of the application's samples.
    Refuses a run without a checkpoint; raises ``ArithmeticError`` where a program and torch differ, and
    ``ProgramError`` for a program that cannot be made here.
    """
    run = Run(run_dir, app.name, "")
    document = read_recipe_file(run.recipe_file)
    recipe = recipe_of(app, document)
    best, progress = read_while_training(lambda: _best(run))
    model = recipe.model.build(recipe.input)
    model.load_state_dict(best)
    model.eval()
    calibration: dict[str, Any] = app.calibrate(recipe, model) if app.calibrate is not None else {}
    earlier = began_from(recipe.init)
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
            **({} if earlier is None else {"began_from": earlier}),
        },
    )
    dense: DenseNetwork | None = None
    if network:
        try:
            dense = app.dense(recipe, model)
        except NotImplementedError as error:
            # A network without a dense part, such as one that was imported and trained further: torch serves it.
            manifest.training["without_onnx"] = str(error)
    weights, text = model.state_dict(), run.recipe_file.read_text(encoding="utf-8")
    examples = None
    if dense is not None and programs:
        with tempfile.TemporaryDirectory(prefix="trivium-") as folder:
            without = write_artifact(Path(folder), manifest, weights=weights, recipe=text, dense=None)
            examples = compared_examples(app, without, files)
    return write_artifact(
        registry, manifest, weights=weights, recipe=text, dense=dense, programs=programs, examples=examples
    )


def _best(run: Run) -> tuple[dict[str, Tensor], Progress]:
    """The weights of the best checkpoint, and what the run knew when it wrote it."""
    checkpoints = Checkpoints(run.checkpoints, recipe_digest="")
    latest = checkpoints.latest()
    if latest is None:
        raise InvalidInputError(f"{run.path} has no checkpoint yet; `trivium train {run.app}` writes one")
    if not (best := read_progress(latest).best_step):
        raise InvalidInputError(
            f"{latest} has not been evaluated yet; train to the end of an epoch, or to --limits.steps"
        )
    if (checkpoint := checkpoints.best()) is None:
        raise InvalidInputError(
            f"the best checkpoint of {run.path}, that of step {best}, is missing or torn; train further"
        )
    return model_state(checkpoint), read_progress(checkpoint)


def began_from(initial: Path | None, within: tuple[Path, ...] = ()) -> dict[str, Any] | None:
    """What is known of the training of the weights that a run began from; None where it began from nothing.

    ``initial`` is what ``--init`` named: an artifact, a run or a file of weights. An artifact's own record is copied,
    a run's followed further; of a file, and of what is gone, only the name is known.
    """
    if initial is None:
        return None
    try:
        if (initial / "manifest.json").is_file():
            manifest = open_artifact(initial).manifest
            stated = {name: manifest.training[name] for name in _STATED if name in manifest.training}
            source = {"source": manifest.source} if manifest.source else {}
            return {"artifact": f"{manifest.name} {manifest.version}", **stated, **source}
        if (initial / "recipe.yaml").is_file() and initial.resolve() not in within:
            return _of_run(initial, (*within, initial.resolve()))
    except InvalidInputError:
        pass
    return {"file": initial.name}


def _of_run(run: Path, within: tuple[Path, ...]) -> dict[str, Any]:
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
    named = document["recipe"].get("init")
    earlier = began_from(Path(named) if named else None, within)
    return record if earlier is None else record | {"began_from": earlier}
