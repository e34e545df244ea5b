"""The choice among measured programs."""

from __future__ import annotations

import json

import pytest
import torch

from shared.app import DenseNetwork
from shared.deploy.artifact import Artifact
from shared.deploy.programs import choosing
from shared.deploy.programs.choosing import lazy_programs, use_program
from shared.deploy.programs.onnx_runtime import OnnxRuntime
from shared.deploy.programs.openvino import OpenVino
from shared.deploy.programs.program import ArrayCompute, Compute, relative_error
from shared.deploy.programs.store import cache_folder
from shared.progress import progress_listener
from tests.shared.deploy.programs.edges import opened

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_a_program_that_imports_a_library_must_be_much_faster_than_a_file() -> None:
    loading = {"torch-bf16": 4.0, "openvino-bf16": 0.3, "onnx": 0.1}
    for torch_ms, best in ((10.3, "openvino-bf16"), (11.8, "openvino-bf16"), (9.0, "torch-bf16")):
        milliseconds = {"torch-bf16": torch_ms, "openvino-bf16": 11.9, "onnx": 27.8}
        assert choosing._choose_best(milliseconds, loading) == best
    # Of two files that are nearly equally fast, the one that loads faster is chosen.
    assert choosing._choose_best({"torch": 20.0, "openvino-bf16": 10.0, "onnx": 11.0}, loading) == "onnx"
    assert choosing._choose_best({"torch": 20.0, "openvino-bf16": 10.0, "onnx": 12.5}, loading) == "openvino-bf16"
    assert choosing._reason("openvino-bf16", {"torch-bf16": 10.0, "openvino-bf16": 12.0}).startswith("20% slower than")


def test_only_a_program_from_a_file_is_preloaded(artifact: Artifact) -> None:
    def never() -> DenseNetwork:
        raise AssertionError("neither is anything measured nor a module of torch made")

    with lazy_programs():
        program = opened(artifact, build=never)
        assert program.reader is not None and program.reader() is None
        opened(artifact)({"image": torch.rand(1, 1, 32, 32), "gain": torch.ones(1)})
        (file,) = cache_folder(artifact).glob("choice-*.json")
        file.write_text(json.dumps({**json.loads(file.read_text()), "program": "torch"}))
        assert program.reader() is None
        file.write_text(json.dumps({**json.loads(file.read_text()), "program": "onnx"}))
        program.preload()
        assert program.name == ""
        (artifact.path / "model.onnx").unlink()
        assert len(program({"image": torch.rand(2, 1, 8, 12), "gain": torch.ones(2)})["mean"]) == 2
        assert program.name == "onnx" and "fastest here" in program.reason
    with lazy_programs(), use_program("onnx"):
        assert opened(artifact).reader is None


def test_a_program_with_wrong_outputs_is_rejected_however_fast(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(value: float) -> Compute:
        tensors = {"edges": torch.full((1, 2, 32, 32), value), "mean": torch.full((1,), value)}
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return ArrayCompute(lambda inputs: arrays)

    monkeypatch.setattr(OpenVino, "load", lambda self, source, format, place: wrong(0.0))
    monkeypatch.setattr(OnnxRuntime, "load", lambda self, source, format, place: wrong(float("nan")))
    program = opened(artifact)
    assert program.name.startswith("torch")
    remarks = "\n".join(program.remarks)
    difference = "differ from torch's by 1 of the largest, more than the maximum of 0.001"
    assert f"openvino is rejected: its outputs {difference}" in remarks
    assert "onnx is rejected: its outputs differ from torch's by inf" in remarks
    assert "openvino" not in program.reason and "onnx" not in program.reason


def test_rounding_by_bf16_is_accepted_and_larger_errors_are_not() -> None:
    exact = torch.randn((1, 2, 32, 32), generator=torch.Generator().manual_seed(0))
    peak = exact.clone()
    peak[0, 0, 0, 0] += 1.0
    outputs = {"torch": {"a": exact}, "torch-bf16": {"a": peak}, "openvino-bf16": {"a": 1.5 * exact}}
    wrong = choosing._inaccurate(outputs)
    assert list(wrong) == ["openvino-bf16"]
    assert "differ from torch's by 0.5 of the root mean square, more than the maximum of 0.25" in wrong["openvino-bf16"]


def test_if_torch_cannot_compute_programs_are_compared_with_each_other(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking() -> object:
        raise ModuleNotFoundError("No module named 'mmdet3d'")

    load = OpenVino.load
    monkeypatch.setattr(OpenVino, "load", lambda self, source, format, place: _twice(load(self, source, format, place)))
    program = opened(artifact, build=lacking)
    assert program.name == "onnx"
    assert any("differ from onnx's by 1 of the largest" in remark for remark in program.remarks)


def _twice(compute: Compute) -> Compute:
    return lambda inputs: {name: 2 * value for name, value in compute(inputs).items()}


def test_a_nan_difference_is_an_infinite_error() -> None:
    expected, nan = {"a": torch.ones(2), "b": torch.ones(2)}, torch.tensor([1.0, float("nan")])
    assert relative_error(expected, {"a": nan, "b": torch.ones(2)}) == float("inf")
    assert relative_error(expected, {"a": torch.ones(1), "b": torch.ones(2)}) == float("inf")
    assert relative_error(expected, {"a": torch.ones(2), "b": torch.full((2,), 1.5)}) == 0.5
    assert relative_error({"a": torch.ones(1)}, {"a": torch.full((1,), 1.5)}, {"a": torch.tensor([1.0, 5.0])}) == 0.1


def test_choosing_a_program_is_announced_once_because_it_is_slow(
    artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    stages: list[str] = []
    with caplog.at_level("INFO", "trivium.programs"), progress_listener(stages.append):
        program = opened(artifact)
        assert stages == ["timing the programs of edges, once on this machine"]
        assert caplog.messages == [*stages, f"edges is computed by {program.name}, {program.reason}"]
        assert opened(artifact).name == program.name
    assert len(stages) == 1 and len(caplog.messages) == 2
