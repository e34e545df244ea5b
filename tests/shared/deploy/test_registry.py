"""The artifacts that a registry serves."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from shared.deploy.artifact import open_artifact
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.shared.serve.echo import Echo, make_app, write_artifact


@pytest.mark.parametrize("copy", ["echo/7", "other/2"])
def test_a_version_in_a_wrong_folder_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, copy: str
) -> None:
    for version in (1, 2):
        write_artifact(tmp_path, version)
    shutil.copytree(tmp_path / "echo" / "2", tmp_path / copy)
    registry = Registry(tmp_path)
    with caplog.at_level(logging.WARNING, "trivium.registry"):
        assert registry.names() == ["echo"]
        assert list(registry.versions("echo")) == [1, 2] and registry.versions("other") == {}
        assert registry.newest("echo").manifest.version == 2
    sentences = [record.getMessage() for record in caplog.records]
    assert len(sentences) == 1, "once"
    assert f"{tmp_path / copy} was copied or renamed: its manifest.json says echo version 2" in sentences[0]


def test_a_version_that_replaces_a_misplaced_one_is_found_without_a_restart(tmp_path: Path) -> None:
    write_artifact(tmp_path, 1)
    copy = shutil.copytree(tmp_path / "echo" / "1", tmp_path / "echo" / "2")
    registry = Registry(tmp_path)
    assert list(registry.versions("echo")) == [1]
    shutil.rmtree(copy)
    write_artifact(tmp_path, 2)
    assert list(registry.versions("echo")) == [1, 2]


def test_the_digests_of_a_version_that_was_written_again_are_checked(tmp_path: Path) -> None:
    write_artifact(tmp_path, 1)
    registry = Registry(tmp_path)
    path = registry.newest("echo").path
    shutil.rmtree(path)
    write_artifact(tmp_path, 1)
    (network,) = path.glob("*.onnx")
    network.write_bytes(network.read_bytes()[:-1] + b"?")
    with pytest.raises(InvalidInputError, match=network.name):
        registry.newest("echo")


def test_a_model_with_only_a_misplaced_version_has_no_version(tmp_path: Path) -> None:
    write_artifact(tmp_path, 1)
    (tmp_path / "echo" / "1").rename(tmp_path / "echo" / "9")
    with pytest.raises(InvalidInputError, match="no version of echo"):
        Registry(tmp_path).newest("echo")


@pytest.mark.parametrize("manifest", ["pipe", '{"name": ' + "[" * 100_000, '{"name": "echo", "version": "two"}'])
def test_a_version_with_an_invalid_manifest_does_not_stop_the_server(tmp_path: Path, manifest: str) -> None:
    write_artifact(tmp_path / "registry", 1)
    broken = tmp_path / "registry" / "echo" / "2"
    broken.mkdir()
    os.mkfifo(broken / "manifest.json") if manifest == "pipe" else (broken / "manifest.json").write_text(manifest)
    with pytest.raises(InvalidInputError) as raised:
        open_artifact(broken)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300 + len(str(broken))
    settings = Settings(
        hosts="testserver", store=tmp_path / "store", registry=tmp_path / "registry", warm=False, workers=0
    )
    with TestClient(create_app(settings, {"echo": make_app(tmp_path / "app", Echo())})) as client:
        assert client.get("/v2/models/echo/versions/1").status_code == 200
        assert client.get("/v2/health/live").status_code == 200
