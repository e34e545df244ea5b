"""NVIDIA's client against a running server: the protocol over HTTP and gRPC, with one queue."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf.descriptor import FieldDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from shared.serve.app import create_app
from shared.serve.oip.grpc_messages import ENUMS, MESSAGES, message
from shared.serve.runtime import connection
from shared.serve.runtime.received_bytes import received_bytes
from shared.serve.settings import Settings
from tests.conftest import serving
from tests.shared.serve.echo import Echo, make_app, until, write_artifact

LIMIT_S = 20.0
ROWS = np.array([[1.5, -2], [0, 4]], np.float32)
INDICES = np.array([1, 0], np.int64)


@dataclass
class Running:
    """A server that listens for HTTP and gRPC."""

    http: Any
    grpc: Any
    grpc_port: int
    registry: Path
    state: Any


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("tritonclient")
    settings = Settings(
        store=root / "store",
        device="cpu",
        workers=0,
        warm=False,
        grpc_port=0,
        max_tensor_bytes=100_000,
        max_per_client=4,
    )
    application = create_app(settings, {"echo": make_app(root / "echo", Echo())})
    with serving(application) as address:
        port = application.state.grpc_port
        http = tritonclient.http.InferenceServerClient(
            address.removeprefix("http://"), connection_timeout=LIMIT_S, network_timeout=LIMIT_S
        )
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as over_grpc:
            yield Running(http, over_grpc, port, root / "echo" / "weights", application.state)
        http.close()


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> Any:
    return getattr(tritonclient, request.param)


@pytest.fixture
def client(running: Running, protocol: Any) -> Any:
    return running.http if protocol is tritonclient.http else running.grpc


def plain(found: Any) -> Any:
    """An answer of either client as JSON. In messages of gRPC, 64-bit numbers are text."""
    from google.protobuf import json_format

    return (
        found if isinstance(found, dict | list) else json_format.MessageToDict(found, preserving_proto_field_name=True)
    )


def inputs(protocol: Any, rows: Any = ROWS, indices: Any = INDICES, **options: Any) -> list[Any]:
    tensors = [protocol.InferInput("x", rows.shape, "FP32"), protocol.InferInput("index", indices.shape, "INT64")]
    for tensor, array in zip(tensors, (rows, indices), strict=True):
        tensor.set_data_from_numpy(array, **options)
    return tensors


def test_the_server_is_live_and_ready_and_describes_itself(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("echo") and client.is_model_ready("echo", "1")
    assert plain(client.get_server_metadata())["name"] == "trivium"
    described = plain(client.get_model_metadata("echo"))
    assert described["versions"][:2] == ["1", "2"] and described["inputs"][0]["name"] == "x"
    assert [int(size) for size in described["inputs"][0]["shape"]] == [-1, 2]
    assert plain(client.get_model_metadata("echo", "1"))["versions"] == ["1"]
    config = plain(client.get_model_config("echo"))
    config = config.get("config", config)
    assert (config["max_batch_size"], config["input"][0]["data_type"]) == (8, "TYPE_FP32")
    assert [int(size) for size in config["output"][1]["dims"]] == [1] and "reshape" in config["output"][1]


def test_both_protocols_give_the_same_answer_to_the_same_tensors(client: Any, protocol: Any) -> None:
    result = client.infer("echo", inputs(protocol), "2", request_id="a", timeout=int(1e6 * LIMIT_S))
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * ROWS + 2)
    np.testing.assert_array_equal(result.as_numpy("z"), [20, 10])
    requested = [protocol.InferRequestedOutput("z")]
    first = client.infer("echo", inputs(protocol), model_version="1", outputs=requested)
    assert first.as_numpy("y") is None and first.as_numpy("z").tolist() == [20, 10]
    response = plain(result.get_response())
    assert (response["id"], response["model_version"]) == ("a", "2")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_may_be_compressed_and_tensors_may_be_json(running: Running, algorithm: str) -> None:
    http = tritonclient.http
    packed = running.http.infer(
        "echo", inputs(http), request_compression_algorithm=algorithm, response_compression_algorithm="gzip"
    )
    requested = [http.InferRequestedOutput("y", binary_data=False)]
    as_json = running.http.infer("echo", inputs(http, binary_data=False), outputs=requested)
    np.testing.assert_array_equal(packed.as_numpy("y"), as_json.as_numpy("y"))
    large = np.ones((4000, 2), np.float32)
    result = running.http.infer(
        "echo", inputs(http, large, np.ones(4000, np.int64)), response_compression_algorithm="gzip"
    )
    assert result.as_numpy("y").shape == (4000, 2)
    if algorithm == "gzip":
        over = running.grpc.infer("echo", inputs(tritonclient.grpc), compression_algorithm="gzip")
        np.testing.assert_array_equal(over.as_numpy("y"), packed.as_numpy("y"))


@pytest.mark.parametrize(
    ("parameters", "code", "words"),
    [
        ({"priority": 1}, "INVALID_ARGUMENT", "priority"),
        ({"sequence_id": 5, "sequence_start": True}, "INVALID_ARGUMENT", "sequence_"),
        ({"parameters": {"colour": "red"}}, "INVALID_ARGUMENT", "colour"),
        ({"timeout": 1}, "DEADLINE_EXCEEDED", "timeout"),
        ({"model_version": "9"}, "NOT_FOUND", "no version '9'"),
    ],
)
def test_parameters_are_applied_or_refused(
    client: Any, protocol: Any, parameters: dict[str, Any], code: str, words: str
) -> None:
    statuses = {"INVALID_ARGUMENT": "400", "DEADLINE_EXCEEDED": "504", "NOT_FOUND": "404"}
    with pytest.raises(InferenceServerException, match=words) as raised:
        client.infer("echo", inputs(protocol), **parameters)
    assert raised.value.status() in (f"StatusCode.{code}", statuses[code])


def test_classification_shared_memory_and_client_configurations_are_refused(client: Any, protocol: Any) -> None:
    classified = [protocol.InferRequestedOutput("y", class_count=2)]
    with pytest.raises(InferenceServerException, match="classification"):
        client.infer("echo", inputs(protocol), outputs=classified)
    shared = inputs(protocol)
    shared[0].set_shared_memory("region", ROWS.nbytes)
    with pytest.raises(InferenceServerException, match=r"shared_memory|raw_input_contents"):
        client.infer("echo", shared)
    with pytest.raises(InferenceServerException, match=r"extensions on this server are binary_tensor_data|not found"):
        client.register_system_shared_memory("region", "/region", 16)
    with pytest.raises(InferenceServerException, match="registry"):
        client.load_model("echo", config="{}")


def test_the_repository_is_listed_loaded_and_unloaded(client: Any, protocol: Any, running: Running) -> None:
    def states() -> dict[str, str]:
        found = plain(client.get_model_repository_index())
        return {model["version"]: model["state"] for model in (found if isinstance(found, list) else found["models"])}

    number = len(states()) + 1
    write_artifact(running.registry, number)
    client.load_model("echo")
    assert states()[str(number)] == "READY"
    np.testing.assert_array_equal(client.infer("echo", inputs(protocol)).as_numpy("y"), 2 * ROWS + number)
    assert client.is_model_ready("echo")
    client.unload_model("echo")
    assert not client.is_model_ready("echo"), "as Triton's own example (simple_*_model_control.py) asks"
    assert set(states().values()) == {"UNAVAILABLE"} and client.is_server_ready()
    with pytest.raises(InferenceServerException, match="was unloaded"):
        client.infer("echo", inputs(protocol))
    client.load_model("echo")
    assert client.is_model_ready("echo")
    with pytest.raises(InferenceServerException, match="no model 'none'"):
        client.load_model("none")


def test_statistics_count_requests_of_both_protocols(client: Any, protocol: Any) -> None:
    def counted() -> tuple[int, int]:
        (statistics,) = plain(client.get_inference_statistics("echo", "1"))["model_stats"]
        stats = statistics["inference_stats"]
        return int(statistics.get("inference_count", 0)), int(stats["success"].get("ns", 0))

    before = counted()
    client.infer("echo", inputs(protocol), model_version="1")
    after = counted()
    assert after[0] == before[0] + 2 and after[1] > before[1]
    assert len(plain(client.get_inference_statistics())["model_stats"]) >= 2


def test_a_stream_continues_after_a_refused_request(running: Running) -> None:
    answers: list[Any] = []
    arrived = threading.Semaphore(0)

    def keep(result: Any, error: Any) -> None:
        answers.append(error if error is not None else result.get_response())
        arrived.release()

    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client:
        client.start_stream(keep)
        for rows in (ROWS, ROWS[:1], ROWS):
            client.async_stream_infer("echo", inputs(tritonclient.grpc, rows), enable_empty_final_response=True)
        for _ in range(3):
            assert arrived.acquire(timeout=LIMIT_S), f"3 answers were expected, {len(answers)} came"
        client.stop_stream()
    assert [isinstance(answer, InferenceServerException) for answer in answers] == [False, True, False]
    assert answers[0].parameters["triton_final_response"].bool_param, "each request has one answer, the final one"


def test_typed_values_an_identifier_and_a_deadline(running: Running) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="echo", model_version="2")
        x = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        x.contents.fp32_contents.extend([3, 4])
        request.inputs.add(name="index", datatype="INT64", shape=[1]).contents.int64_contents.append(1)
        answer, call = stub.ModelInfer.with_call(request, timeout=LIMIT_S, metadata=[("x-request-id", "abc")])
        assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [8, 10]
        assert ("x-request-id", "abc") in [tuple(pair) for pair in call.initial_metadata()]
        x.contents.int_contents.append(5)
        for change, words in (("int_contents", "fp32_contents"), ("raw", "raw_input_contents")):
            if change == "raw":
                request.raw_input_contents.append(b"1234")
            with pytest.raises(grpc.RpcError) as raised:
                stub.ModelInfer(request, timeout=LIMIT_S)
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT and words in raised.value.details()
        with pytest.raises(grpc.RpcError) as large:
            stub.ModelInfer(service_pb2.ModelInferRequest(raw_input_contents=[bytes(200_000)]), timeout=LIMIT_S)
        assert large.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as unknown:
            stub.TraceSetting(service_pb2.TraceSettingRequest(), timeout=LIMIT_S)
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_stopping_server_refuses_new_requests(running: Running) -> None:
    running.state.drain.is_draining = True
    try:
        assert not running.grpc.is_server_ready() and running.grpc.is_server_live()
        with pytest.raises(InferenceServerException, match="shut down") as raised:
            running.grpc.infer("echo", inputs(tritonclient.grpc))
        assert raised.value.status() == "StatusCode.UNAVAILABLE"
    finally:
        running.state.drain.is_draining = False


def test_every_message_equals_the_published_one() -> None:
    """Names, numbers, types and repetition, against what the client's authors generated from the protocol's files."""

    def described(field: FieldDescriptor) -> tuple[Any, ...]:
        of = field.message_type or field.enum_type
        mapped = field.message_type is not None and field.message_type.GetOptions().map_entry
        inner = [described(part) for part in field.message_type.fields] if mapped else None
        oneof = field.containing_oneof.name if field.containing_oneof and field.name.endswith("_param") else None
        return field.number, field.type, field.is_repeated, None if mapped else of and of.full_name, inner, oneof

    files = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
    for name in MESSAGES:
        top, *nested = name.split(".")
        theirs = next(file.message_types_by_name[top] for file in files if top in file.message_types_by_name)
        for part in nested:
            theirs = theirs.nested_types_by_name[part]
        ours = message(name).DESCRIPTOR
        whole = not name.startswith(("Model", "InferStat")) or name.startswith(("ModelInfer", "ModelMetadata"))
        if whole and name != "InferStatistics":
            assert {field.name for field in ours.fields} == {field.name for field in theirs.fields}, name
        for field in ours.fields:
            assert described(field) == described(theirs.fields_by_name[field.name]), f"{name}.{field.name}"
    assert [value.name for value in model_config_pb2.DataType.DESCRIPTOR.values] == ENUMS["DataType"].split()
    kinds = model_config_pb2.ModelInstanceGroup.Kind.DESCRIPTOR.values
    assert [value.name for value in kinds] == ENUMS["ModelInstanceGroup.Kind"].split()


@contextmanager
def unsent(application: Any, count: int) -> Iterator[tuple[grpc.Channel, list[Any]]]:
    """A channel, and ``count`` calls over it whose messages do not arrive while the block lasts."""
    ended = threading.Event()

    def nothing_yet() -> Iterator[Any]:
        ended.wait(LIMIT_S)
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{application.state.grpc_port}") as channel:
        method = "/inference.GRPCInferenceService/ModelInfer"
        slow = channel.stream_unary(method, service_pb2.ModelInferRequest.SerializeToString, lambda content: content)
        try:
            yield channel, [slow.future(nothing_yet(), timeout=LIMIT_S) for _ in range(count)]
        finally:
            ended.set()


def test_a_message_that_does_not_arrive_in_time_is_given_up(tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "store", workers=0, warm=False, grpc_port=0, queue_length=1, max_batch=1)
    application = create_app(
        settings.model_copy(update={"upload_s": 0.5}), {"echo": make_app(tmp_path / "echo", Echo())}
    )
    with serving(application), unsent(application, 2) as (channel, calls):  # all available places
        for call in calls:
            assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED and "did not arrive within 0.5" in call.details()
        assert service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(service_pb2.ServerLiveRequest()).live


def test_a_message_below_the_minimum_rate_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RATE_WINDOW_S", 0.3)
    settings = Settings(store=tmp_path / "store", workers=0, warm=False, grpc_port=0)
    application = create_app(settings, {"echo": make_app(tmp_path / "echo", Echo())})
    with serving(application), unsent(application, 1) as (_, (call,)):
        assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "less than 10000 bytes per second (TRIVIUM_MIN_UPLOAD_RATE)" in call.details()


def test_stalled_messages_do_not_block_other_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED_S", 0.2)
    settings = Settings(store=tmp_path / "store", workers=0, warm=False, grpc_port=0, queue_length=1, max_batch=1)
    application = create_app(settings, {"echo": make_app(tmp_path / "echo", Echo())})
    # Another client's connection, because bytes over the stalled connection would count for the stalled calls.
    alone = [("grpc.use_local_subchannel_pool", 1)]
    with (
        serving(application),
        unsent(application, 2) as (_, calls),  # all available places
        grpc.insecure_channel(f"127.0.0.1:{application.state.grpc_port}", alone) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=LIMIT_S).live

        def status() -> Any:
            with pytest.raises(grpc.RpcError) as raised:
                stub.ModelInfer(service_pb2.ModelInferRequest(model_name="none"), timeout=LIMIT_S)
            return raised.value.code()

        until(lambda: status() == grpc.StatusCode.NOT_FOUND)
        until(lambda: sum(call.done() for call in calls) == 1)
        (given_up,) = (call for call in calls if call.done())
        assert given_up.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "another request needed its place" in given_up.details()


def test_the_kernel_counts_the_bytes_received_over_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        host, port = client.getsockname()
        with listener.accept()[0]:
            assert received_bytes(host, port) == 0
            client.sendall(bytes(70_000))
            until(lambda: received_bytes(host, port) == 70_000)
        assert received_bytes(host, port) is None
