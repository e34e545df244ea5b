"""The REST messages of the Open Inference Protocol, version 2.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, with Triton's
extension of binary tensor data.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

from shared.errors import InvalidInputError


class ServerMetadata(BaseModel):
    """The server and the extensions that it supports. ``models`` is an addition to the protocol."""

    name: str
    version: str
    extensions: list[str]
    models: list[str]


class ServerLive(BaseModel):
    """Whether the server runs."""

    live: bool


class ServerReady(BaseModel):
    """Whether the server can answer. ``reason``, an addition to the protocol, says why not."""

    ready: bool
    reason: str | None = None


class TensorMetadata(BaseModel):
    """An input or output tensor of a model; -1 in ``shape`` stands for any size."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model's versions, inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    """Whether a model can answer."""

    name: str
    ready: bool


class InferenceError(BaseModel):
    """Why a request was refused, in a sentence."""

    error: str


class RepositoryParameters(BaseModel):
    """The parameters of loading or unloading a model. Unsupported ones are refused (400)."""

    parameters: dict[str, Any] = {}

    def check_load(self) -> None:
        """Refuses all parameters, because only the registry defines a model."""
        if unsupported := sorted(self.parameters):
            _refuse(unsupported[0], "a model is loaded as it is in the registry")

    def check_unload(self) -> None:
        """Refuses all parameters except ``unload_dependents``, which has no effect: no model depends on another."""
        if unsupported := sorted(self.parameters.keys() - {"unload_dependents"}):
            _refuse(unsupported[0], "unloading takes only unload_dependents")


def _refuse(parameter: str, reason: str) -> None:
    raise InvalidInputError(f"the parameter {parameter[:40]!r} is not supported: {reason}", status=400)


class ModelConfig(BaseModel):
    """A model's configuration: the fields of Triton's ModelConfig that apply to this server."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: int
    input: list[dict[str, Any]]
    output: list[dict[str, Any]]
    instance_group: list[dict[str, Any]]
    dynamic_batching: dict[str, Any] | None = None


class Duration(BaseModel):
    """A count, and the total duration in nanoseconds."""

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """The durations of a model's requests and of their stages."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(BaseModel):
    """The counters of one version of a model."""

    name: str
    version: str
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: list[dict[str, Any]]


class Statistics(BaseModel):
    """The counters of models."""

    model_stats: list[ModelStatistics]


class IndexRequest(BaseModel):
    """The filter of an index request: with ``ready``, only loaded models."""

    ready: bool = Field(default=False, strict=True)


ModelState = TypeAliasType("ModelState", Literal["READY", "LOADING", "UNAVAILABLE"])


class IndexEntry(BaseModel):
    """A version of a model, and whether it is loaded."""

    name: str
    version: str
    state: ModelState
    reason: str
