"""Which of the programs that were measured is taken."""

from __future__ import annotations

import json

import torch

from shared.app import DenseNetwork
from shared.deploy.artifact import Artifact
from shared.deploy.programs import choosing
from shared.deploy.programs.choosing import asked_program, programs_on_use
from shared.deploy.programs.store import folder_of
from tests.shared.deploy.programs.edges import opened


def test_what_imports_a_library_must_be_well_ahead_of_what_is_read_from_a_file() -> None:
    loading = {"torch-bf16": 4.0, "openvino-bf16": 0.3, "onnx": 0.1}
    for torch_ms, best in ((10.3, "openvino-bf16"), (11.8, "openvino-bf16"), (9.0, "torch-bf16")):
        milliseconds = {"torch-bf16": torch_ms, "openvino-bf16": 11.9, "onnx": 27.8}
        assert choosing._best(milliseconds, loading) == best
    # Among files the quicker to load is taken where they are nearly as fast alone.
    assert choosing._best({"torch": 20.0, "openvino-bf16": 10.0, "onnx": 11.0}, loading) == "onnx"
    assert choosing._best({"torch": 20.0, "openvino-bf16": 10.0, "onnx": 12.5}, loading) == "openvino-bf16"
    assert choosing._why("openvino-bf16", {"torch-bf16": 10.0, "openvino-bf16": 12.0}).startswith("20% slower than")


def test_ahead_of_a_call_a_program_is_read_from_its_file_alone(artifact: Artifact) -> None:
    def never() -> DenseNetwork:
        raise AssertionError("neither is anything measured nor a module of torch made")

    with programs_on_use():
        program = opened(artifact, build=never)
        assert program.reader is not None and program.reader() is None
        opened(artifact)({"image": torch.rand(1, 1, 32, 32), "gain": torch.ones(1)})
        (file,) = folder_of(artifact).glob("choice-*.json")
        file.write_text(json.dumps({**json.loads(file.read_text()), "program": "torch"}))
        assert program.reader() is None
        file.write_text(json.dumps({**json.loads(file.read_text()), "program": "onnx"}))
        program.read_ahead()
        assert program.name == ""
        (artifact.path / "model.onnx").unlink()
        assert len(program({"image": torch.rand(2, 1, 8, 12), "gain": torch.ones(2)})["mean"]) == 2
        assert program.name == "onnx" and "fastest here" in program.reason
    with programs_on_use(), asked_program("onnx"):
        assert opened(artifact).reader is None
