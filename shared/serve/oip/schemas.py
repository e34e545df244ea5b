"""The messages of the Open Inference Protocol, version 2, over REST.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, with Triton's
extension of binary tensor data.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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
