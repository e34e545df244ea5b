from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from shared.app import App, DenseNetwork
from shared.deploy.artifact import Artifact, TensorSpec, open_artifact, write_manifest
from shared.deploy.export import export
from shared.deploy.programs.artifact_network import onnx_file
from shared.deploy.programs.openvino import compile_model, openvino_compute
from shared.deploy.programs.program import Placement
from shared.deploy.registry import Registry
from shared.deploy.triton import triton_config, write_openvino_model, write_python_model
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.errors import InvalidInputError
from shared.serve.worker.network import open_network
from tests.shared.engine import line

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def dense(recipe, model) -> DenseNetwork:
    return DenseNetwork(module=model, inputs={"x": torch.randn(2, 2)}, outputs=("y",), traceable=True)


@pytest.fixture(scope="module")
def app() -> App:
    return App(
        name="line",
        title="A line",
        summary="",
        notice="",
        root=Path(__file__).parent,
        models=("line",),
        recipes=lambda: {"line": line.recipe},
        dense=dense,
        calibrate=lambda recipe, model: {"threshold": 0.5},
        predictor=lambda artifacts, device: None,
        codec=lambda predictor: None,
        samples=lambda: (),
        reproduce=lambda quick: None,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run")
    fit(line.recipe(), Run(path, "line", "line"), device="cpu", quiet=True)
    return path


def test_an_artifact_has_all_files_for_serving(app, run, tmp_path):
    artifact = export(run, app, tmp_path / "models")
    assert artifact.path == tmp_path / "models" / "line" / "1"
    assert {p.name for p in artifact.path.iterdir()} == {
        "weights.safetensors",
        "model.onnx",
        "recipe.yaml",
        "manifest.json",
    }
    manifest = artifact.manifest
    assert manifest.inputs[0].shape == (-1, 2) and manifest.outputs[0].datatype == "FP32"
    assert manifest.programs["onnx"].weights == manifest.files["weights.safetensors"]["sha256"]
    assert manifest.calibration == {"threshold": 0.5} and manifest.data["synthetic"] is True
    assert manifest.scores == json.loads((run / "result.json").read_text())["scores"]
    model = line.Network().build().eval()
    model.load_state_dict(artifact.weights())
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    y = ort.InferenceSession(artifact.network).run(["y"], {"x": x})[0]
    np.testing.assert_allclose(y, model(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("traceable", [False, True])
def test_the_onnx_file_names_no_folder_of_the_machine_that_wrote_it(app, run, tmp_path, traceable):
    described = replace(app, dense=lambda recipe, model: replace(dense(recipe, model), traceable=traceable))
    artifact = export(run, described, tmp_path)
    written = (artifact.path / "model.onnx").read_bytes()
    assert b"Linear" in written or b"Gemm" in written  # it is not empty of names
    assert str(Path(torch.__file__).parent).encode() not in written and b"stack_trace" not in written


def test_versions_are_numbered_and_the_config_is_for_triton(app, run, tmp_path):
    export(run, app, tmp_path)
    export(run, app, tmp_path)
    assert Registry(tmp_path).newest("line").path == tmp_path / "line" / "2"
    text = (tmp_path / "line" / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in text and 'name: "x" data_type: TYPE_FP32 dims: [ 2 ]' in text


def test_a_number_for_each_sample_has_a_dimension_for_triton(app, run, tmp_path):
    manifest = replace(
        export(run, app, tmp_path).manifest, outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),)
    )
    assert 'name: "y" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] }' in triton_config(manifest)


def test_a_run_whose_best_checkpoint_is_gone_is_refused(app, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    best = json.loads((copy / "result.json").read_text())["best_step"]
    newest = max((copy / "checkpoints").glob("step-*"))
    if newest.name == f"step-{best:08d}":
        state = newest / "state.json"
        state.write_text(state.read_text().replace(f'"best_step": {best}', '"best_step": 1'))
        digests = json.loads((newest / "digests.json").read_text())
        digests["state.json"] = hashlib.sha256(state.read_bytes()).hexdigest()
        (newest / "digests.json").write_text(json.dumps(digests))
    else:
        shutil.rmtree(copy / "checkpoints" / f"step-{best:08d}")
    with pytest.raises(InvalidInputError, match=r"the best checkpoint .* is missing or damaged"):
        export(copy, app, tmp_path / "models")


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx", "recipe.yaml"])
def test_an_altered_artifact_is_refused(app, run, tmp_path, name):
    artifact = export(run, app, tmp_path)
    file = artifact.path / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(InvalidInputError, match=name):
        open_artifact(artifact.path)


def test_a_network_with_other_outputs_in_onnx_is_not_exported(app, run, tmp_path):
    class Fickle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 1)

        def forward(self, x):
            return self.linear(x) * (1 if torch.compiler.is_exporting() else 2)

    fickle = replace(
        app, dense=lambda recipe, model: DenseNetwork(module=Fickle(), inputs={"x": torch.randn(2, 2)}, outputs=("y",))
    )
    with pytest.raises(ArithmeticError, match="differs from torch"):
        export(run, fickle, tmp_path)
    assert not list(tmp_path.glob("line/[0-9]*")) and not list(tmp_path.glob("line/.export*"))


def test_a_run_without_a_checkpoint_is_refused(app, run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    with pytest.raises(InvalidInputError, match="no checkpoint"):
        export(tmp_path / "empty", app, tmp_path / "models")


def test_a_folder_that_is_not_an_artifact_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"no manifest\.json"):
        open_artifact(tmp_path)
    with pytest.raises(InvalidInputError, match="no version"):
        Registry(tmp_path).newest("line")


def test_an_export_writes_nothing_to_the_caller_s_log(tmp_path: Path) -> None:
    code = (
        "import logging, sys, torch\n"
        "from pathlib import Path\n"
        "from shared.app import DenseNetwork\n"
        "from shared.deploy.onnx_network import write_onnx\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stderr)\n"
        "network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())\n"
        "dense = DenseNetwork(module=network, inputs={'x': torch.rand(2, 1, 8, 8)}, outputs=('y',))\n"
        "write_onnx(dense, Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.onnx")]
    completed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "INFO" not in completed.stderr


def test_a_missing_onnx_file_is_made_once(app, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("shared.deploy.programs.artifact_network.find", lambda name: app)
    whole = export(run, app, tmp_path / "models")
    assert onnx_file(whole) == whole.path / "model.onnx"
    files = {name: entry for name, entry in whole.manifest.files.items() if name != "model.onnx"}
    (whole.path / "model.onnx").rename(tmp_path / "model.onnx")
    write_manifest(whole.path, replace(whole.manifest, files=files))
    bare = open_artifact(whole.path)
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    expected = ort.InferenceSession(tmp_path / "model.onnx").run(["y"], {"x": x})[0]
    (found,) = open_network(bare, "cpu").compute([{"x": x}], 8)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-6)
    cached_onnx = onnx_file(bare)
    assert cached_onnx.is_relative_to(tmp_path / "cache")
    written = cached_onnx.stat().st_mtime_ns
    assert (write_python_model(bare, tmp_path / "triton") / "1" / "model.onnx").read_bytes() == cached_onnx.read_bytes()
    assert onnx_file(bare) == cached_onnx and cached_onnx.stat().st_mtime_ns == written
    other_entry = replace(whole.manifest.programs["onnx"], weights="those of another network")
    assert onnx_file(Artifact(whole.path, replace(whole.manifest, programs={"onnx": other_entry}))) == cached_onnx
    without = Artifact(bare.path, replace(bare.manifest, inputs=(), outputs=()))
    with pytest.raises(InvalidInputError, match="no dense network"):
        onnx_file(without)


def test_an_openvino_program_is_written_for_triton_s_backend(app, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    onnx_program = export(run, app, tmp_path / "models")
    expected = ort.InferenceSession(onnx_program.network).run(["y"], {"x": x})[0]
    for artifact in (onnx_program, export(run, app, tmp_path / "models", programs=["openvino"])):
        home = write_openvino_model(artifact, tmp_path / "triton")
        version = home / str(artifact.manifest.version)
        assert {file.name for file in version.iterdir()} == {"model.xml", "model.bin"}
        compiled = compile_model(version / "model.xml", "fp32", Placement())
        found = openvino_compute(compiled).arrays({"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert (version / "model.xml").read_bytes() == (artifact.path / "openvino.xml").read_bytes()
    text = (home / "config.pbtxt").read_text()
    assert 'backend: "openvino"' in text and 'default_model_filename: "model.xml"' in text
    write_openvino_model(onnx_program, tmp_path / "triton", "openvino-bf16")
    assert 'key: "HINT_BF16"' in (home / "config.pbtxt").read_text()
    with pytest.raises(InvalidInputError, match="no program openvino-int8; `trivium quantize"):
        write_openvino_model(onnx_program, tmp_path / "other", "openvino-int8")
    with pytest.raises(InvalidInputError, match="onnx is not an OpenVINO program"):
        write_openvino_model(onnx_program, tmp_path / "other", "onnx")
    assert not (tmp_path / "other").exists()
