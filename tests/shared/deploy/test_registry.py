"""Which artifacts a registry gives out."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from tests.shared.serve.echo import write_artifact


@pytest.mark.parametrize("copy", ["echo/7", "other/2"])
def test_a_version_that_was_copied_elsewhere_is_left_out_and_the_log_says_so(
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
    assert f"{tmp_path / copy} holds echo version 2 by its manifest.json" in sentences[0]


def test_a_model_of_which_only_a_copy_is_there_has_no_version(tmp_path: Path) -> None:
    write_artifact(tmp_path, 1)
    (tmp_path / "echo" / "1").rename(tmp_path / "echo" / "9")
    with pytest.raises(InvalidInputError, match="no version of echo"):
        Registry(tmp_path).newest("echo")
