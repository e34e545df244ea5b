"""The gRPC messages of the Open Inference Protocol.

Field names, numbers and types are those of
https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto and ``model_config.proto``; a
test compares each with the generated code in the package tritonclient. ``ModelConfig`` has only the fields that this
server sets. The messages are in their own descriptor pool, so that the generated messages of a client can be imported
in the same process.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
_NAME_AND_VERSION = "string name = 1; string version = 2"
_NAME_AND_TYPE = "string name = 1; enum DataType data_type = 2"
_PARAMETERS = "map InferParameter parameters = 4"
_TENSOR = (
    f"string name = 1; string datatype = 2; repeated int64 shape = 3; {_PARAMETERS}; InferTensorContents contents = 5"
)
_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_REPOSITORY_MODEL = "string repository_name = 1; string model_name = 2; map ModelRepositoryParameter parameters = 3"
MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live = 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready = 1",
    "ModelReadyRequest": _NAME_AND_VERSION,
    "ModelReadyResponse": "bool ready = 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name = 1; string version = 2; repeated string extensions = 3",
    "ModelMetadataRequest": _NAME_AND_VERSION,
    "ModelMetadataResponse": "string name = 1; repeated string versions = 2; string platform = 3; "
    "repeated ModelMetadataResponse.TensorMetadata inputs = 4; "
    "repeated ModelMetadataResponse.TensorMetadata outputs = 5",
    "ModelMetadataResponse.TensorMetadata": "string name = 1; string datatype = 2; repeated int64 shape = 3",
    "InferParameter": "choice bool bool_param = 1; choice int64 int64_param = 2; choice string string_param = 3; "
    "choice double double_param = 4; choice uint64 uint64_param = 5",
    "InferTensorContents": "repeated bool bool_contents = 1; repeated int32 int_contents = 2; "
    "repeated int64 int64_contents = 3; repeated uint32 uint_contents = 4; repeated uint64 uint64_contents = 5; "
    "repeated float fp32_contents = 6; repeated double fp64_contents = 7; repeated bytes bytes_contents = 8",
    "ModelInferRequest": f"string model_name = 1; string model_version = 2; string id = 3; {_PARAMETERS}; "
    "repeated ModelInferRequest.InferInputTensor inputs = 5; "
    "repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6; repeated bytes raw_input_contents = 7",
    "ModelInferRequest.InferInputTensor": _TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": "string name = 1; map InferParameter parameters = 2",
    "ModelInferResponse": f"string model_name = 1; string model_version = 2; string id = 3; {_PARAMETERS}; "
    "repeated ModelInferResponse.InferOutputTensor outputs = 5; repeated bytes raw_output_contents = 6",
    "ModelInferResponse.InferOutputTensor": _TENSOR,
    "ModelStreamInferResponse": "string error_message = 1; ModelInferResponse infer_response = 2",
    "ModelConfigRequest": _NAME_AND_VERSION,
    "ModelConfigResponse": "ModelConfig config = 1",
    "ModelConfig": "string name = 1; string platform = 2; ModelVersionPolicy version_policy = 3; "
    "int32 max_batch_size = 4; repeated ModelInput input = 5; repeated ModelOutput output = 6; "
    "repeated ModelInstanceGroup instance_group = 7; ModelDynamicBatching dynamic_batching = 11; string backend = 17",
    "ModelVersionPolicy": "ModelVersionPolicy.All all = 2",
    "ModelVersionPolicy.All": "",
    "ModelInput": f"{_NAME_AND_TYPE}; repeated int64 dims = 4; ModelTensorReshape reshape = 5",
    "ModelOutput": f"{_NAME_AND_TYPE}; repeated int64 dims = 3; ModelTensorReshape reshape = 5",
    "ModelTensorReshape": "repeated int64 shape = 1",
    "ModelInstanceGroup": "string name = 1; int32 count = 2; enum ModelInstanceGroup.Kind kind = 4",
    "ModelDynamicBatching": "uint64 max_queue_delay_microseconds = 2",
    "ModelStatisticsRequest": _NAME_AND_VERSION,
    "ModelStatisticsResponse": "repeated ModelStatistics model_stats = 1",
    "ModelStatistics": "string name = 1; string version = 2; uint64 inference_count = 4; uint64 execution_count = 5; "
    "InferStatistics inference_stats = 6",
    "InferStatistics": "; ".join(f"StatisticDuration {name} = {number}" for number, name in enumerate(_DURATIONS, 1)),
    "StatisticDuration": "uint64 count = 1; uint64 ns = 2",
    "ModelRepositoryParameter": "choice bool bool_param = 1; choice int64 int64_param = 2; "
    "choice string string_param = 3; choice bytes bytes_param = 4",
    "RepositoryIndexRequest": "string repository_name = 1; bool ready = 2",
    "RepositoryIndexResponse": "repeated RepositoryIndexResponse.ModelIndex models = 1",
    "RepositoryIndexResponse.ModelIndex": f"{_NAME_AND_VERSION}; string state = 3; string reason = 4",
    "RepositoryModelLoadRequest": _REPOSITORY_MODEL,
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": _REPOSITORY_MODEL,
    "RepositoryModelUnloadResponse": "",
}
"""The fields of each message in proto3's notation. ``map X`` is map<string, X>; ``choice`` is a field of the oneof."""
ENUMS = {
    "DataType": "TYPE_INVALID TYPE_BOOL TYPE_UINT8 TYPE_UINT16 TYPE_UINT32 TYPE_UINT64 TYPE_INT8 TYPE_INT16 TYPE_INT32 "
    "TYPE_INT64 TYPE_FP16 TYPE_FP32 TYPE_FP64 TYPE_STRING TYPE_BF16",
    "ModelInstanceGroup.Kind": "KIND_AUTO KIND_GPU KIND_CPU KIND_MODEL",
}
"""The values of each enumeration, numbered from 0."""

_ONEOF = "parameter_choice"
_FIELD = re.compile(r"(?:(repeated|map|choice|enum) )?([\w.]+) (\w+) = (\d+)")
_SCALARS = ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")


def message(name: str) -> Any:
    """The class of the message with this name, such as ``ModelInferRequest``."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


@cache
def _pool() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    descriptors: dict[str, Any] = {}
    for name, fields in MESSAGES.items():
        parent, _, last = name.rpartition(".")
        descriptors[name] = (descriptors[parent].nested_type if parent else file.message_type).add(name=last)
        for kind, type_, field, number in _FIELD.findall(fields):
            _add_field(descriptors[name], name, kind, type_, field, int(number))
    for name, values in ENUMS.items():
        parent, _, last = name.rpartition(".")
        enum = (descriptors[parent] if parent else file).enum_type.add(name=last)
        for number, value in enumerate(values.split()):
            enum.value.add(name=value, number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _add_field(descriptor: Any, message_name: str, kind: str, type_: str, name: str, number: int) -> None:
    """Adds a field to the descriptor of the message ``message_name``."""
    proto = descriptor_pb2.FieldDescriptorProto
    repeated = kind in ("repeated", "map")
    field = descriptor.field.add(
        name=name, number=number, label=proto.LABEL_REPEATED if repeated else proto.LABEL_OPTIONAL
    )
    if kind == "map":
        entry = descriptor.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=proto.LABEL_OPTIONAL, type=proto.TYPE_STRING)
        entry.field.add(
            name="value", number=2, label=proto.LABEL_OPTIONAL, type=proto.TYPE_MESSAGE, type_name=f".{PACKAGE}.{type_}"
        )
        field.type, field.type_name = proto.TYPE_MESSAGE, f".{PACKAGE}.{message_name}.{entry.name}"
        return
    if kind == "choice":
        if not descriptor.oneof_decl:
            descriptor.oneof_decl.add(name=_ONEOF)
        field.oneof_index = 0
    if type_ in _SCALARS:
        field.type = getattr(proto, f"TYPE_{type_.upper()}")
    else:
        field.type = proto.TYPE_ENUM if kind == "enum" else proto.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{type_}"
