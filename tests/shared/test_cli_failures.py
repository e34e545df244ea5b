"""The messages of trainings that run out of disk or memory, and reading a run during training."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import trivium
from shared import cli
from shared.deploy.export import export
from shared.engine import checkpoint as checkpoints
from tests.shared.engine import line
from tests.shared.line_app import make_app

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def app(tmp_path, monkeypatch):
    application = make_app(tmp_path / "line")
    monkeypatch.setattr("shared.app.installed", lambda: {"line": application})
    monkeypatch.chdir(tmp_path)
    return application


def train(*words: str) -> int:
    return cli.main(["train", "line", "--recipe", "tiny", "--out", "run", "--device", "cpu", *words])


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=["from safetensors", "from the operating system"],
)
def test_a_full_disk_is_reported_and_the_run_resumes_later(error, app, capsys, monkeypatch):
    def fail_on_full_disk(tensors: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_file", fail_on_full_disk)
        assert train() == 1
    error_output = capsys.readouterr().err
    assert "trivium: no space is left on the disk" in error_output and "run the same command again" in error_output
    assert list(Path("run/checkpoints").iterdir()) == []
    assert train() == 0


def raise_out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB.")


def test_out_of_gpu_memory_names_the_setting_that_helps(app, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(line.Regression, "evaluate", raise_out_of_memory)
        assert train() == 1
    error_output = capsys.readouterr().err
    assert (
        "CUDA out of memory. Use a smaller micro-batch with --limits.micro-batch N (it was at most 4)" in error_output
    )
    assert "--limits.evaluation-batch N if it was validating" in error_output
    assert train("--limits.micro-batch", "2") == 0


def test_a_single_sample_that_does_not_fit_is_reported(app, capsys, monkeypatch):
    monkeypatch.setattr(line.Regression, "loss", raise_out_of_memory)
    assert train() == 1
    output = capsys.readouterr()
    sizes = [
        row.split("micro-batches of ")[1].split(";")[0] for row in output.out.splitlines() if "out of memory" in row
    ]
    assert sizes == ["2", "1"]
    assert "CUDA out of memory. A single sample does not fit into the memory; use a smaller network" in output.err


@pytest.mark.parametrize("read", ["export", "weights"])
def test_if_a_training_removes_the_best_checkpoint_the_next_best_is_read(read, app, monkeypatch):
    assert train() == 0
    removed = []
    load = checkpoints.load_file

    def remove_on_first_read(file: Path) -> dict[str, torch.Tensor]:
        if not removed:
            removed.append(file)
            shutil.copytree(file.parent, "kept")
            shutil.rmtree(file.parent)
            try:
                return load(file)
            finally:
                shutil.move("kept", file.parent)
        return load(file)

    monkeypatch.setattr(checkpoints, "load_file", remove_on_first_read)
    if read == "export":
        assert export(Path("run"), app, Path("models"), network=False).manifest.version == 1
    else:
        line.Network().build().load_state_dict(trivium.read_weights("run"))
    assert removed
