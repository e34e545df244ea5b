"""The messages of the Open Inference Protocol, version 2, over REST.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, with Triton's
extension of binary tensor data.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.errors import InvalidInputError


class ServerMetadata(BaseModel):
    """What the server is and speaks. ``models`` goes beyond the protocol."""

    name: str
    version: str
    extensions: list[str]
    models: list[str]


class ServerLive(BaseModel):
    """Whether the server runs."""

    live: bool


class ServerReady(BaseModel):
    """Whether the server can answer. ``reason``, beyond the protocol, says why not."""

    ready: bool
    reason: str | None = None


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives; -1 in ``shape`` is any size."""

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
    """Parameters of loading and unloading. What cannot be obeyed is refused (400)."""

    parameters: dict[str, Any] = {}

    def check_load(self) -> None:
        """Refuses all: the registry alone says what a model is."""
        if given := sorted(self.parameters):
            _refuse(given[0], "a model is loaded as it is in the registry")

    def check_unload(self) -> None:
        """Takes ``unload_dependents``: no model depends on another."""
        if given := sorted(self.parameters.keys() - {"unload_dependents"}):
            _refuse(given[0], "unloading knows unload_dependents alone")


def _refuse(parameter: str, why: str) -> None:
    raise InvalidInputError(f"the parameter {parameter[:40]!r} is not taken: {why}", status=400)


class ModelConfig(BaseModel):
    """A model's configuration, in the fields of Triton's ModelConfig that say something here."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: int
    input: list[dict[str, Any]]
    output: list[dict[str, Any]]
    instance_group: list[dict[str, Any]]
    dynamic_batching: dict[str, Any] | None


class Duration(BaseModel):
    """How often, and for how many nanoseconds in all."""

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """Durations of a model's requests and of what they went through."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(BaseModel):
    """What one version of a model counted."""

    name: str
    version: str
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: list[dict[str, Any]]


class Statistics(BaseModel):
    """What models counted."""

    model_stats: list[ModelStatistics]


class IndexRequest(BaseModel):
    """Which models are asked for: with ``ready`` only those that are loaded."""

    ready: bool = Field(default=False, strict=True)


class IndexEntry(BaseModel):
    """A version of a model, and whether it is loaded."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str
