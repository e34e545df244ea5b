"""Programs of a small network, and an artifact with its ONNX file."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from shared.deploy.artifact import (
    WEIGHTS,
    Artifact,
    Manifest,
    ProgramEntry,
    TensorSpec,
    describe_file,
    open_artifact,
    write_manifest,
)
from shared.deploy.programs.making import make_programs, random_examples
from tests.shared.deploy.programs.edges import WRITTEN, Edges, network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs that can be written on any machine."""
    program_folder = tmp_path_factory.mktemp("programs")
    dense = network()
    entries = make_programs(dense, WRITTEN, program_folder, "a digest", random_examples(dense))
    assert set(entries) == set(WRITTEN)
    for entry in entries.values():
        assert entry.weights == "a digest" and entry.error < 1e-4 and entry.latency_ms > 0
        assert (
            (program_folder / entry.file).is_file() and "random numbers" in entry.inputs and "thread" in entry.machine
        )
    return program_folder


@pytest.fixture
def artifact(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """An artifact with an ONNX file of its weights, and a separate cache; no program is requested."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TRIVIUM_PROGRAM", raising=False)
    home = tmp_path / "edges" / "1"
    home.mkdir(parents=True)
    save_file({key: value.clone() for key, value in Edges().state_dict().items()}, home / WEIGHTS)
    (home / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    files = {name: describe_file(home / name) for name in (WEIGHTS, "model.onnx")}
    image = TensorSpec(name="image", datatype="FP32", shape=(-1, 1, -1, -1))
    gain = TensorSpec(name="gain", datatype="FP32", shape=(-1,))
    entry = ProgramEntry(
        file="model.onnx",
        weights=files[WEIGHTS]["sha256"],
        version="",
        error=0.0,
        latency_ms=1.0,
        inputs="random numbers",
        machine="",
    )
    write_manifest(
        home,
        Manifest(
            name="edges",
            version=1,
            app="line",
            inputs=(image, gain),
            outputs=(),
            scores={},
            data={},
            programs={"onnx": entry},
            files=files,
        ),
    )
    return open_artifact(home)
