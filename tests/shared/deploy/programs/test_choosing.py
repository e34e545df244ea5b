"""Which of the programs that were measured is taken."""

from __future__ import annotations

from shared.deploy.programs import choosing


def test_what_imports_a_library_must_be_well_ahead_of_what_is_read_from_a_file() -> None:
    loading = {"torch-bf16": 4.0, "openvino-bf16": 0.3, "onnx": 0.1}
    for torch_ms, best in ((10.3, "openvino-bf16"), (11.8, "openvino-bf16"), (9.0, "torch-bf16")):
        milliseconds = {"torch-bf16": torch_ms, "openvino-bf16": 11.9, "onnx": 27.8}
        assert choosing._best(milliseconds, loading) == best
    # Among files the quicker to load is taken where they are nearly as fast alone.
    assert choosing._best({"torch": 20.0, "openvino-bf16": 10.0, "onnx": 11.0}, loading) == "onnx"
    assert choosing._best({"torch": 20.0, "openvino-bf16": 10.0, "onnx": 12.5}, loading) == "openvino-bf16"
    assert choosing._why("openvino-bf16", {"torch-bf16": 10.0, "openvino-bf16": 12.0}).startswith("20% slower than")
