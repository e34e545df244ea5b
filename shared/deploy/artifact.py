"""A trained model, ready to serve: weights, exported network, recipe and manifest in one directory.

The directory is a version in a Triton model repository: ``<registry>/<name>/<version>/model.onnx`` beside
``<registry>/<name>/config.pbtxt``. Weights are safetensors; nothing in an artifact is a pickle. Weights that come with
an application may lack ``model.onnx``, a second copy of them: ``programs.of_artifact.onnx_file`` makes it once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from shared.errors import InvalidInputError
from shared.recipe_file import read_recipe_file

if TYPE_CHECKING:
    from torch import Tensor, nn

MANIFEST, WEIGHTS, NETWORK, RECIPE = "manifest.json", "weights.safetensors", "model.onnx", "recipe.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """A tensor of the Open Inference Protocol: ``datatype`` is FP32, INT64, ...; -1 in ``shape`` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramEntry:
    """What an artifact says of one of its programs (``shared/deploy/programs``).

    ``file`` is the artifact's file that its runtime reads; ``weights`` the SHA-256 of the weights that it was made
    from; ``version`` the runtime's. ``error`` is the largest difference of an output from eager torch in fp32, in
    parts of that output's largest value, and ``latency_ms`` what one call takes, both on ``inputs`` and on ``machine``.
    ``scores`` are the domain's before and after where the program is quantised, with the count that they rest on.
    """

    file: str
    weights: str
    version: str
    error: float
    latency_ms: float
    inputs: str
    machine: str
    scores: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an artifact says of itself.

    ``data`` is the fingerprint of the training data (``description``, ``synthetic``, ...), ``scores`` what the
    validation gave, ``calibration`` what turns the network's outputs into decisions, ``files`` the size and SHA-256 of
    every file of the artifact; a file that is not among them is not read. ``source`` says where weights that were not
    trained here come from. ``inputs`` and ``outputs`` are empty where there is no exported network. ``programs`` are
    those that were made for it, by name.
    """

    name: str
    version: int
    app: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    scores: dict[str, float]
    data: dict[str, Any]
    calibration: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    programs: dict[str, ProgramEntry] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def has_network(self) -> bool:
        """Whether there is a dense network, which can be served by itself."""
        return bool(self.inputs)


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact on disk whose files have been found complete and unaltered."""

    path: Path
    manifest: Manifest

    def recipe(self) -> dict[str, Any]:
        """The document in ``recipe.yaml``; its key ``recipe`` holds the settings, among them the model's."""
        document = read_recipe_file(self._verified(RECIPE))
        settings = document["recipe"]
        parts = (settings.get("model"), settings.get("input") or {}) if isinstance(settings, dict) else (None,)
        if not all(isinstance(part, dict) for part in parts):
            raise InvalidInputError(f"{self.path / RECIPE} holds no settings of a model; export or import it again")
        return document

    def weights(self) -> dict[str, Tensor]:
        """The state dict, on the CPU. Refuses a file that is damaged, and weights that are not finite."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._verified(WEIGHTS)
        try:
            found: dict[str, Tensor] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InvalidInputError(f"{path} cannot be read as a safetensors file: {error}") from error
        for name, tensor in found.items():
            if not tensor.isfinite().all():
                raise InvalidInputError(f"{path}: {name} is not finite; train or import the model anew")
        return found

    @property
    def network(self) -> Path:
        """The dense network as ONNX, as it lies in the artifact."""
        return self._verified(NETWORK)

    def must_belong_to(self, app: str) -> None:
        """Refuses an artifact that another application made."""
        if self.manifest.app != app:
            raise InvalidInputError(f"{self.path} is a model of {self.manifest.app}, not of {app}")

    def _verified(self, name: str) -> Path:
        if name not in self.manifest.files:
            raise InvalidInputError(f"{self.path / MANIFEST} states no digest of {name}; export the run again")
        return self.path / name


def load_weights(model: nn.Module, artifact: Artifact, device: str) -> nn.Module:
    """The model with the artifact's weights, in evaluation mode on ``device``; refuses weights of another model."""
    try:
        model.load_state_dict(artifact.weights())
    except RuntimeError as error:
        # torch lists what is missing, extra or of another shape, a line each.
        differences = " ".join(str(error).split())
        raise InvalidInputError(
            f"{artifact.path / WEIGHTS} does not fit the model that {RECIPE} describes: {differences}"
        ) from error
    return model.to(device).eval()


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, as in a manifest."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json`` into the directory ``path``."""
    (path / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def manifest_bytes(path: Path) -> bytes:
    """What ``manifest.json`` in the directory ``path`` holds. Raises ``OSError`` where it is no regular file."""
    if not (path / MANIFEST).is_file():  # a pipe would be waited for, and a device read for ever
        raise FileNotFoundError(f"{path / MANIFEST} is no regular file")
    return (path / MANIFEST).read_bytes()


def open_artifact(path: Path) -> Artifact:
    """Opens the artifact in directory ``path``; refuses one that is incomplete or was altered."""
    try:
        manifest = TypeAdapter(Manifest).validate_json(manifest_bytes(path))
    except OSError as error:
        raise InvalidInputError(
            f"{path} is not an artifact: it has no {MANIFEST}; `trivium export RUN` makes one"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise InvalidInputError(f"{path / MANIFEST} is not a manifest: {where}{first['msg']}; export again") from error
    if not manifest.files:
        raise InvalidInputError(f"{path / MANIFEST} states no digests, so nothing can be checked; export the run again")
    for name, stated in manifest.files.items():
        if name in ("", "..") or Path(name).name != name:
            raise InvalidInputError(f"{path / MANIFEST} names {name!r}, which is no file of the artifact")
        if not (path / name).is_file() or describe_file(path / name) != stated:
            raise InvalidInputError(
                f"{path / name} is missing or differs from its digest in {MANIFEST}; export the run again"
            )
    return Artifact(path, manifest)
