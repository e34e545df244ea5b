"""Opens a predictor and its codec, from the shipped artifacts, an artifact's directory, or a run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.app import App
from shared.deploy.artifact import Artifact, Manifest, open_artifact
from shared.deploy.predictor import Codec, Predictor, programs_of
from shared.deploy.programs.choosing import lazy_programs, use_program
from shared.deploy.registry import shipped
from shared.device import choose_device
from shared.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedPredictor:
    """A predictor on a device, its codec, and the manifests of its models, the default model first."""

    predictor: Predictor[Any, Any]
    codec: Codec[Any, Any]
    manifests: tuple[Manifest, ...]

    @property
    def title(self) -> str:
        """The names and versions of the models, for messages."""
        return ", ".join(f"{manifest.name} version {manifest.version}" for manifest in self.manifests)


def open_predictor(
    app: App,
    *,
    artifact: Path | None = None,
    run: Path | None = None,
    device: str | None = None,
    program: str | None = None,
    lazy: bool = False,
) -> OpenedPredictor:
    """Opens a predictor for the artifact in a directory, for a run's best checkpoint, or for the shipped artifacts.

    An artifact is opened together with the artifacts that it is served with, such as a second stage trained on its
    detections. The predictor uses ``program`` if given, else the fastest program on this machine. With ``lazy``, a
    model is loaded when an input first needs it. Raises ``InvalidInputError`` if both an artifact and a run are given.
    """
    if artifact is not None and run is not None:
        raise InvalidInputError("name an artifact or a run, not both")
    chosen_device = choose_device(device)
    if run is None:
        artifacts = shipped(app) if artifact is None else _with_partners(app, open_artifact(artifact))
        with use_program(program), lazy_programs() if lazy else nullcontext():
            opened = _open_artifacts(app, artifacts, chosen_device)
        _refuse_unused(app, program, opened.predictor)
        return opened
    from shared.deploy.export import export

    with tempfile.TemporaryDirectory(prefix="trivium-") as folder, use_program(program or "torch"):
        opened = _open_artifacts(app, [export(run, app, Path(folder), network=False)], chosen_device)
    _refuse_unused(app, program, opened.predictor)
    for program_of_run in programs_of(opened.predictor).values():
        program_of_run.version = None  # a run has no version
        if program is None:  # no other program was made for a run beforehand
            program_of_run.reason = "a run uses torch unless a program is named"
    return opened


def _refuse_unused(app: App, program: str | None, predictor: Predictor[Any, Any]) -> None:
    if program is not None and not programs_of(predictor):
        raise InvalidInputError(
            f"the predictor of {app.name} computes with modules of its own, not with a program such as {program}; "
            "leave out --program"
        )


def _with_partners(app: App, artifact: Artifact) -> list[Artifact]:
    artifact.must_belong_to(app.name)
    return [artifact, *app.served_with(artifact)]


def _open_artifacts(app: App, artifacts: Sequence[Artifact], device: str) -> OpenedPredictor:
    for artifact in artifacts:
        artifact.must_belong_to(app.name)
    predictor = app.predictor(artifacts, device)
    # For a second stage alone, the predictor also loads the detector.
    manifests = getattr(predictor, "manifests", None) or (artifact.manifest for artifact in artifacts)
    return OpenedPredictor(predictor=predictor, codec=app.codec(predictor), manifests=tuple(manifests))
