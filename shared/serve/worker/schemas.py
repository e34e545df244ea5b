"""Inference requests and responses of the Open Inference Protocol, version 2, over REST.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, with Triton's
extension for binary tensor data.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[int, Field(ge=0)]


class _Message(BaseModel):
    # Strict: values are not converted, so "2" is not accepted as a size.
    model_config = ConfigDict(strict=True)


class _Parameters(_Message):
    # Parameters that this server does not know are refused.
    model_config = ConfigDict(extra="forbid")


class InputParameters(_Parameters):
    """``binary_data_size`` is the number of bytes of the input after the JSON part of the body. Others are refused."""

    binary_data_size: Size | None = None


class RequestInput(_Message):
    """An input tensor, with its values in ``data`` (nested or flat) or as binary data."""

    name: str
    datatype: str = Field(examples=["FP32"])
    shape: list[Size]
    parameters: InputParameters | None = None
    data: list[Any] | None = None


class OutputParameters(_Parameters):
    """Whether to return the output as binary data. Others (``classification``, shared memory) are refused."""

    binary_data: bool | None = None


class RequestOutput(_Message):
    """A requested output."""

    name: str
    parameters: OutputParameters | None = None


class RequestParameters(_Parameters):
    """``binary_data_output``: whether to return all outputs as binary data, unless an output says otherwise.

    ``timeout``, in microseconds, counts from the request's arrival. ``triton_enable_empty_final_response`` only sets a
    flag in answers over gRPC, because each request has a single answer, the final one. Others (``priority``) are
    refused.
    """

    binary_data_output: bool | None = None
    timeout: Annotated[int, Field(gt=0)] | None = None
    triton_enable_empty_final_response: bool | None = None


class InferenceRequest(_Message):
    """Tensors for a model. Without ``outputs``, all outputs are returned."""

    id: str | None = None
    parameters: RequestParameters | None = None
    inputs: list[RequestInput]
    outputs: list[RequestOutput] | None = None


class ResponseParameters(BaseModel):
    """``binary_data_size`` is the number of bytes of the output after the JSON part of the body."""

    binary_data_size: int


class ResponseOutput(BaseModel):
    """An output tensor, with its values in ``data`` (flat) or as binary data."""

    name: str
    datatype: str
    shape: list[int]
    parameters: ResponseParameters | None = None
    data: list[Any] | None = None


class InferenceResponse(BaseModel):
    """The outputs of a model."""

    model_name: str
    model_version: str
    outputs: list[ResponseOutput]
    id: str | None = None
