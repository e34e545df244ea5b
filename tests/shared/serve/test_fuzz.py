"""Fuzzing: every route with requests generated from the OpenAPI document, and every parser with random bytes.

Schemathesis makes requests, right and wrong ones, from the OpenAPI document, in which the paths name real models and
cases, and checks each answer against it: no status but those described, the stated content type and schema.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from shared.deploy.artifact import TensorSpec
from shared.errors import InvalidInputError
from shared.serve.app import create_app
from shared.serve.settings import Settings
from shared.serve.worker.codec import read_request
from shared.serve.worker.messages import BrokenMessage, receive, socket_pair, unbundle
from tests.conftest import serving
from tests.fuzzing import repeatable
from tests.shared.serve.echo import Echo, csv, make_app

EXAMPLES = 8
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with one case and one job, which answers fast."""
    folder, echo = tmp_path_factory.mktemp("fuzz"), Echo()
    echo.gate.set()
    settings = Settings(store=folder / "store", device="cpu", warm=False, workers=0, deadline_s=10, max_files=5)
    server = create_app(settings, {"echo": make_app(folder / "echo", echo)})
    with serving(server) as address, httpx.Client(base_url=address, timeout=30) as found:
        yield found


def with_real_names(document: dict[str, Any], client: httpx.Client) -> dict[str, Any]:
    """The OpenAPI document with path parameters restricted to existing names, plus one that does not exist."""
    case = client.post("/api/echo/predict", files=[csv(1)]).json()["case"]
    job = client.post("/api/echo/jobs", files=[csv(1)]).json()["job"]
    real = {"name": ["echo"], "version": ["1", "2"], "case_id": [case], "job_id": [job], "file": ["doubled.csv"]}
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" and parameter["name"] in real:
                    parameter["schema"] = {"enum": [*real[parameter["name"]], "none"]}
    return document


def test_every_route_answers_as_its_description_says(client: httpx.Client) -> None:
    document = with_real_names(client.get("/openapi.json").json(), client)
    schema = schemathesis.openapi.from_dict(document)
    operations_called = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.method.upper() == "DELETE":
            continue  # it would delete what the other requests use

        @repeatable(EXAMPLES)
        @given(case=operation.as_strategy())
        def ask(case: Case) -> None:
            response = case.call(base_url=str(client.base_url), timeout=30)
            case.validate_response(response, checks=CHECKS)

        ask()
        operations_called.add(operation.path)
    assert {"/api/echo/predict", "/api/echo/jobs", "/v2/models/{name}/infer"} <= operations_called


SPECS = [
    TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),
    TensorSpec(name="index", datatype="INT64", shape=(-1,)),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "index", "y"]), "datatype": st.sampled_from(["FP32", "INT64", "BYTES", "x"])},
    optional={
        "shape": st.lists(st.integers(-1, 5) | st.integers(), max_size=3) | JSON,
        "data": st.lists(st.integers() | st.floats() | st.booleans(), max_size=6) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 40)}) | JSON,
    },
)


@repeatable(150)
@given(
    document=st.fixed_dictionaries({"inputs": st.lists(TENSOR, max_size=3) | JSON}) | JSON,
    tail=st.binary(max_size=40),
    length=st.none() | st.integers(-1, 400),
)
def test_a_tensor_body_is_parsed_or_refused(document: Any, tail: bytes, length: int | None) -> None:
    head = json.dumps(document).encode()
    try:
        found = read_request(head + tail, len(head) if length == 400 else length, SPECS, SPECS)
    except InvalidInputError as refusal:
        assert refusal.status == 400 and str(refusal)
    else:
        assert {name: array.dtype for name, array in found.inputs.items()} == {"x": np.float32, "index": np.int64}


@repeatable(200)
@given(
    packet=st.binary(min_size=1, max_size=200)
    | st.builds(
        lambda sizes, rest: b"\0" + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes) + rest,
        st.lists(st.integers(0, 60), max_size=4),
        st.binary(max_size=120) | st.just(b"{}") | st.just(b'{"heads": [{}], "counts": [1]}'),
    )
)
def test_a_packet_from_a_worker_is_a_message_or_raises_broken_message(packet: bytes) -> None:
    mine, theirs = socket_pair()
    with mine, theirs:
        mine.send(packet)
        try:
            message = receive(theirs)
            assert message is not None
            unbundle(message)
        except BrokenMessage:
            pass


@repeatable(60)
@given(
    body=st.binary(max_size=300)
    | st.lists(
        st.sampled_from(
            [
                b"--x",
                b"--x--",
                b"\r\n",
                b"\r\n\r\n",
                b"Content-Disposition: form-data; ",
                b'name="files"; ',
                b'filename="a.csv"',
                b'filename="../../a"',
                b"filename*=utf-8''%FF",
                b'name="',
                b"\0",
                b"\xff",
                b"1,2",
            ]
        ),
        max_size=20,
    ).map(b"".join),
    kind=st.sampled_from(
        ["multipart/form-data; boundary=x", "multipart/form-data; boundary=", "multipart/form-data",
         "application/x-www-form-urlencoded", "text/plain", "\xff", ""]
    ),
)  # fmt: skip
def test_a_form_is_parsed_or_refused(client: httpx.Client, body: bytes, kind: str) -> None:
    response = client.post("/api/echo/predict", content=body, headers={"Content-Type": kind.encode("latin-1")})
    assert response.status_code in (200, 400, 413, 415, 422), response.text
    assert response.status_code == 200 or response.json()["detail"]
