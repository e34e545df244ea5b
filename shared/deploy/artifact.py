"""A trained model, ready to serve: weights, exported network, recipe and manifest in one directory.

The directory is a version in a Triton model repository: ``<registry>/<name>/<version>/model.onnx`` next to
``<registry>/<name>/config.pbtxt``. Weights are stored as safetensors; an artifact contains no pickles. Artifacts that
ship with an application may lack ``model.onnx``, which duplicates the weights: ``programs.artifact_network.onnx_file``
exports it once.
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
    """A tensor of the Open Inference Protocol. ``datatype`` is FP32, INT64, ...; -1 in ``shape`` means any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramEntry:
    """The manifest entry of a program (``shared/deploy/programs``).

    ``file`` is the artifact's file that the runtime reads, ``weights`` the SHA-256 of the weights that the program was
    made from, ``version`` the runtime's version. ``error`` is the largest difference of an output from eager torch in
    fp32, relative to that output's largest value. ``latency_ms`` is the time of one call. Both were measured on
    ``inputs`` and on ``machine``. For a quantised program, ``scores`` has the domain's scores before and after, with
    the number of cases.
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
    """The description of an artifact.

    ``data`` is the fingerprint of the training data (``description``, ``synthetic``, ...; for an imported model, whose
    training data is not known, ``synthetic`` is None), ``scores`` are the validation scores, and ``calibration`` holds
    the operating point and other values that turn outputs into decisions. ``files`` has the size and SHA-256 of every
    file of the artifact; other files are not read. ``source`` is the origin of imported weights. ``inputs`` and
    ``outputs`` are empty if there is no exported network. ``programs`` has the entries of the compiled programs by
    name.
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
        """Whether there is a dense network, which can be served on its own."""
        return bool(self.inputs)

    @property
    def batched(self) -> bool:
        """Whether axis 0 of every input and output of the dense network is its batch axis."""
        return all(spec.shape[:1] == (-1,) for spec in (*self.inputs, *self.outputs))


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact on disk whose files are complete and match their digests."""

    path: Path
    manifest: Manifest

    def recipe(self) -> dict[str, Any]:
        """The content of ``recipe.yaml``; its key ``recipe`` has the settings, including those of the model.

        Raises ``InvalidInputError`` if there are no settings of a model.
        """
        document = read_recipe_file(self._checked_path(RECIPE))
        settings = document["recipe"]
        sections = (settings.get("model"), settings.get("input") or {}) if isinstance(settings, dict) else (None,)
        if not all(isinstance(section, dict) for section in sections):
            raise InvalidInputError(f"{self.path / RECIPE} has no settings of a model; export or import it again")
        return document

    def weights(self) -> dict[str, Tensor]:
        """The state dict, on the CPU. Raises ``InvalidInputError`` for a damaged file and for non-finite weights."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._checked_path(WEIGHTS)
        try:
            weights: dict[str, Tensor] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InvalidInputError(f"{path} cannot be read as a safetensors file: {error}") from error
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise InvalidInputError(f"{path}: {name} is not finite; train or import the model again")
        return weights

    @property
    def network(self) -> Path:
        """The path of the artifact's own ONNX file of the dense network."""
        return self._checked_path(NETWORK)

    def must_belong_to(self, app: str) -> None:
        """Raises ``InvalidInputError`` if the artifact is of another application."""
        if self.manifest.app != app:
            raise InvalidInputError(f"{self.path} is a model of {self.manifest.app}, not of {app}")

    def _checked_path(self, name: str) -> Path:
        if name not in self.manifest.files:
            raise InvalidInputError(f"{self.path / MANIFEST} has no digest of {name}; export the run again")
        return self.path / name


def load_weights(model: nn.Module, artifact: Artifact, device: str) -> nn.Module:
    """Loads the artifact's weights into ``model``; returns it in evaluation mode on ``device``.

    Raises ``InvalidInputError`` if the weights are of another model.
    """
    try:
        model.load_state_dict(artifact.weights())
    except RuntimeError as error:
        # torch lists each missing, unexpected or wrongly shaped weight on its own line.
        differences = " ".join(str(error).split())
        raise InvalidInputError(
            f"{artifact.path / WEIGHTS} does not fit the model that {RECIPE} describes: {differences}"
        ) from error
    return model.to(device).eval()


def describe_file(path: Path) -> dict[str, Any]:
    """The size in bytes and the SHA-256 of a file, as in a manifest."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json`` into the directory ``path``."""
    (path / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def manifest_bytes(path: Path) -> bytes:
    """The content of ``manifest.json`` in the directory ``path``. Raises ``OSError`` if it is not a regular file."""
    if not (path / MANIFEST).is_file():  # reading a pipe would block, and reading a device might never end
        raise FileNotFoundError(f"{path / MANIFEST} is not a regular file")
    return (path / MANIFEST).read_bytes()


def open_artifact(path: Path) -> Artifact:
    """Opens the artifact in the directory ``path``. Raises ``InvalidInputError`` if it is incomplete or altered."""
    try:
        manifest = TypeAdapter(Manifest).validate_json(manifest_bytes(path))
    except OSError as error:
        raise InvalidInputError(
            f"{path} is not an artifact: it has no {MANIFEST}; `trivium export RUN` makes one"
        ) from error
    except ValidationError as error:
        first_error = error.errors()[0]
        location = "".join(f"{part}: " for part in first_error["loc"])
        raise InvalidInputError(
            f"{path / MANIFEST} is not a manifest: {location}{first_error['msg']}; export again"
        ) from error
    if not manifest.files:
        raise InvalidInputError(
            f"{path / MANIFEST} has no digests, so the files cannot be checked; export the run again"
        )
    for name, expected in manifest.files.items():
        if name in ("", "..") or Path(name).name != name:
            raise InvalidInputError(f"{path / MANIFEST} names {name!r}, which is not a file in the artifact")
        if not (path / name).is_file() or describe_file(path / name) != expected:
            raise InvalidInputError(
                f"{path / name} is missing or differs from its digest in {MANIFEST}; export the run again"
            )
    return Artifact(path, manifest)
