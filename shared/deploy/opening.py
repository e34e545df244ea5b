"""A predictor and its codec, ready to use: of a shipped artifact, of one in a directory, or of a run."""

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
from shared.deploy.programs.choosing import asked_program, programs_on_use
from shared.deploy.registry import shipped
from shared.device import choose_device
from shared.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A predictor on a device, the codec around it, and the manifests of its models, the default first."""

    predictor: Predictor[Any, Any]
    codec: Codec[Any, Any]
    manifests: tuple[Manifest, ...]

    @property
    def title(self) -> str:
        """What it is called in sentences."""
        return ", ".join(f"{manifest.name} version {manifest.version}" for manifest in self.manifests)


def open_predictor(
    app: App,
    *,
    artifact: Path | None = None,
    run: Path | None = None,
    device: str | None = None,
    program: str | None = None,
    on_use: bool = False,
) -> Opened:
    """The predictor of the artifact in a directory, of a run's best checkpoint, or else of the shipped artifacts.

    With an artifact come those that it is always served with, such as a second stage that has learnt from its marks.
    It computes with ``program`` where one is named, else with the fastest on this machine. With ``on_use`` a model is
    loaded when the first input needs it.
    """
    if artifact is not None and run is not None:
        raise InvalidInputError("name an artifact or a run, not both")
    place = choose_device(device)
    if run is None:
        artifacts = shipped(app) if artifact is None else _with_partners(app, open_artifact(artifact))
        with asked_program(program), programs_on_use() if on_use else nullcontext():
            return _open(app, artifacts, place)
    from shared.deploy.export import export

    with tempfile.TemporaryDirectory(prefix="trivium-") as folder, asked_program(program or "torch"):
        opened = _open(app, [export(run, app, Path(folder), network=False)], place)
    for one in programs_of(opened.predictor).values():
        one.version = None  # it is of no registry
        if program is None:  # of a run no other was made beforehand
            one.reason = "a run has no other unless one is named"
    return opened


def _with_partners(app: App, artifact: Artifact) -> list[Artifact]:
    artifact.must_belong_to(app.name)
    return [artifact, *app.served_with(artifact)]


def _open(app: App, artifacts: Sequence[Artifact], device: str) -> Opened:
    for artifact in artifacts:
        artifact.must_belong_to(app.name)
    predictor = app.predictor(artifacts, device)
    # Of a second stage alone the predictor brings the detector.
    manifests = getattr(predictor, "manifests", None) or (artifact.manifest for artifact in artifacts)
    return Opened(predictor=predictor, codec=app.codec(predictor), manifests=tuple(manifests))
