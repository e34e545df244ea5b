"""The checks of an artifact before it is used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from apps import finance
from shared.deploy.artifact import Manifest, describe_file, load_weights, open_artifact, write_manifest
from shared.errors import InvalidInputError


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Writes an artifact whose manifest has digests of the named files."""

    def write(*described: str) -> Path:
        save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, tmp_path / "weights.safetensors")
        (tmp_path / "model.onnx").write_bytes(b"a network")
        (tmp_path / "recipe.yaml").write_text("app: line\nname: line\nrecipe: {model: {}}\n")
        files = {name: describe_file(tmp_path / name) for name in described}
        fields: dict[str, Any] = {"inputs": (), "outputs": (), "scores": {}, "data": {}, "files": files}
        write_manifest(tmp_path, Manifest(name="line", version=1, app="line", **fields))
        return tmp_path

    return write


def test_only_files_with_a_digest_are_read(make: Callable[..., Path]) -> None:
    artifact = open_artifact(make("model.onnx"))
    assert artifact.network.read_bytes() == b"a network"
    with pytest.raises(InvalidInputError, match=r"has no digest of weights\.safetensors"):
        artifact.weights()
    with pytest.raises(InvalidInputError, match=r"has no digest of recipe\.yaml"):
        artifact.recipe()
    whole = open_artifact(make("model.onnx", "weights.safetensors", "recipe.yaml"))
    assert whole.recipe()["name"] == "line" and set(whole.weights()) == {"weight", "bias"}


def test_a_manifest_without_digests_is_refused(make: Callable[..., Path]) -> None:
    path = make()
    with pytest.raises(InvalidInputError, match="has no digests"):
        open_artifact(path)
    document = json.loads((path / "manifest.json").read_text())
    del document["files"]
    (path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(InvalidInputError, match="has no digests"):
        open_artifact(path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/b", "..", ""])
def test_a_manifest_that_names_files_elsewhere_is_refused(make: Callable[..., Path], name: str) -> None:
    path = make("model.onnx")
    (path.parent / "outside").write_bytes(b"a network")
    document = json.loads((path / "manifest.json").read_text())
    document["files"][name] = document["files"]["model.onnx"]
    (path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(InvalidInputError, match="is not a file in the artifact"):
        open_artifact(path)


def test_weights_load_only_into_their_own_model(make: Callable[..., Path]) -> None:
    artifact = open_artifact(make("weights.safetensors"))
    model = load_weights(torch.nn.Linear(2, 1), artifact, "cpu")
    assert not model.training and model(torch.ones(1, 2)).item() == 2
    with pytest.raises(InvalidInputError, match=r"weights\.safetensors does not fit the model"):
        load_weights(torch.nn.Linear(3, 1), artifact, "cpu")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((2 << 30).to_bytes(8, "little") + b"{}" * 50, "cannot be read as a safetensors file"),
        (b"junk", "cannot be read as a safetensors file"),
        (save({"weight": torch.tensor([[1.0, float("nan")]])}), "weight is not finite"),
    ],
)
def test_weights_that_are_damaged_or_not_finite_are_refused(
    make: Callable[..., Path], content: bytes, words: str
) -> None:
    path = make("weights.safetensors")
    (path / "weights.safetensors").write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["weights.safetensors"] = describe_file(path / "weights.safetensors")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInputError, match=words):
        open_artifact(path).weights()


@pytest.mark.parametrize("recipe", ["7", "{}", "{model: 7}", "{model: null}", "{model: [1]}", "{model: {}, input: 7}"])
def test_a_recipe_without_model_settings_is_refused(make: Callable[..., Path], recipe: str) -> None:
    path = make("recipe.yaml")
    (path / "recipe.yaml").write_text(f"app: line\nname: line\nrecipe: {recipe}\n")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["recipe.yaml"] = describe_file(path / "recipe.yaml")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInputError, match=r"recipe\.yaml .*settings of a model"):
        open_artifact(path).recipe()


@pytest.mark.parametrize("hidden", ["-1", "1000000000000000"])
def test_a_network_that_cannot_be_built_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    import trivium

    monkeypatch.setenv("TRIVIUM_PROGRAM", "torch")
    shipped = next((Path(finance.__file__).parent / "weights").glob("*/*/manifest.json")).parent
    path = Path(shutil.copytree(shipped, tmp_path / "1"))
    text = (path / "recipe.yaml").read_text()
    assert "hidden: 16\n" in text
    (path / "recipe.yaml").write_text(text.replace("hidden: 16\n", f"hidden: {hidden}\n"))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["recipe.yaml"] = describe_file(path / "recipe.yaml")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInputError, match="a network that cannot be built") as raised:
        trivium.load("finance", artifact=path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_manifest_that_is_not_a_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "manifest.json")
    with pytest.raises(InvalidInputError, match=r"no manifest\.json"):
        open_artifact(tmp_path)


@pytest.mark.parametrize("requested", [None, "torch"])
def test_weights_of_another_network_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requested: str | None
) -> None:
    import trivium

    monkeypatch.delenv("TRIVIUM_PROGRAM", raising=False)
    if requested:
        monkeypatch.setenv("TRIVIUM_PROGRAM", requested)

    shipped = next((Path(finance.__file__).parent / "weights").glob("*/*/manifest.json")).parent
    path = Path(shutil.copytree(shipped, tmp_path / "1"))
    save_file({"weight": torch.zeros(3)}, path / "weights.safetensors")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["weights.safetensors"] = describe_file(path / "weights.safetensors")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInputError, match="does not fit the model that"):
        trivium.load("finance", artifact=path)
