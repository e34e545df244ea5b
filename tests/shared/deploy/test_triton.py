"""Every configuration matches Triton's own schema and has the settings that its program needs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from shared.deploy.artifact import NETWORK, Manifest, TensorSpec
from shared.deploy.triton import BACKENDS, triton_config
from shared.errors import InvalidInputError

ROOT = Path(__file__).parents[3]
IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 192, 640))
ANY_SIZE = TensorSpec(name="image", datatype="FP32", shape=(-1, 1, -1, -1, -1))
SCORE = TensorSpec(name="score", datatype="FP32", shape=(-1,))
MASK = TensorSpec(name="mask", datatype="BOOL", shape=(4, 4))


@pytest.fixture(scope="module")
def schema() -> Any:
    """The messages generated from Triton's ``model_config.proto``, imported without the rest of tritonclient."""
    home = importlib.util.find_spec("tritonclient")
    assert home is not None and home.submodule_search_locations
    file = Path(next(iter(home.submodule_search_locations))) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest(*specs: TensorSpec) -> Manifest:
    return Manifest(name="net", version=1, app="line", inputs=(specs[0],), outputs=tuple(specs[1:]), scores={}, data={})


@pytest.mark.parametrize("program", list(BACKENDS))
@pytest.mark.parametrize("input_spec", [IMAGE, ANY_SIZE])
def test_a_configuration_matches_triton_s_schema(schema: Any, program: str, input_spec: TensorSpec) -> None:
    config = text_format.Parse(triton_config(manifest(input_spec, SCORE), program), schema.ModelConfig())
    assert (config.name, config.max_batch_size) == ("net", 8)
    assert (config.backend, config.default_model_filename) == BACKENDS[program]
    assert list(config.input[0].dims) == list(input_spec.shape[1:])
    assert list(config.output[0].dims) == [1] and not config.output[0].reshape.shape
    assert config.version_policy.latest.num_versions == 1 and config.instance_group[0].count == 1
    kind, group = schema.ModelInstanceGroup, config.instance_group[0]
    assert group.kind == (kind.KIND_CPU if config.backend == "openvino" else kind.KIND_AUTO)
    assert ("HINT_BF16" in config.parameters) == (program == "openvino-bf16")
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    # Zeros of an unknown size cannot be sent.
    assert len(config.model_warmup) == (input_spec is IMAGE)
    for warm in config.model_warmup:
        assert list(warm.inputs["image"].dims) == [3, 192, 640] and warm.inputs["image"].zero_data


def test_a_network_without_a_batch_axis_is_not_batched(schema: Any) -> None:
    config = text_format.Parse(triton_config(manifest(MASK, MASK)), schema.ModelConfig())
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [4, 4]


def test_a_wrong_field_is_found_by_the_schema(schema: Any) -> None:
    with pytest.raises(text_format.ParseError):
        text_format.Parse(triton_config(manifest(IMAGE, SCORE)) + "max_batches: 3\n", schema.ModelConfig())


def test_a_program_that_triton_cannot_run_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no backend for the program aotinductor"):
        triton_config(manifest(IMAGE, SCORE), "aotinductor")


def test_the_page_lists_the_shipped_models_that_triton_can_serve_unchanged() -> None:
    page = " ".join((ROOT / "docs" / "integrators.md").read_text(encoding="utf-8").split())
    whole, lacking = page.partition("`apps/<app>/weights` has the same layout; ")[2].split(" are whole, while ", 1)
    lacking = lacking.partition(" lack the ")[0]
    for config in ROOT.glob("apps/*/weights/*/config.pbtxt"):
        served = max(config.parent.glob("[0-9]*"), key=lambda folder: int(folder.name))
        has_onnx = (served / NETWORK).is_file()
        assert (f"`{config.parent.name}`" in whole, f"`{config.parent.name}`" in lacking) == (has_onnx, not has_onnx)
