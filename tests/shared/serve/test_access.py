"""The access log, the latency histogram, and the limit on the concurrent requests of a client."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient

from tests.shared.serve.echo import Echo, csv, until

PREDICT = "/api/echo/predict"


def test_every_answer_has_the_identifier_of_its_log_line(
    echo_client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    began = datetime.now(UTC)
    with caplog.at_level(logging.INFO, "trivium.access"):
        response = echo_client.get("/v2/health/live?secret=1", headers={"X-Request-Id": "abc-1"})
        responses = [
            echo_client.get("/none", headers={"X-Request-Id": bad}) for bad in ("", "a b", "x" * 200, 'a"\n')[:3]
        ]
    lines = [json.loads(record.message) for record in caplog.records if record.name == "trivium.access"]
    assert response.headers["X-Request-Id"] == "abc-1"
    moments = [began - timedelta(milliseconds=1), *(datetime.fromisoformat(line.pop("time")) for line in lines)]
    assert moments == sorted(moments) and moments[-1] <= datetime.now(UTC)
    assert lines[0] | {"ms": 0} == {
        "request": "abc-1",
        "client": "testclient",
        "method": "GET",
        "path": "/v2/health/live",
        "status": 200,
        "ms": 0,
    }
    assert [line["request"] for line in lines[1:]] == [response.headers["X-Request-Id"] for response in responses]
    assert len({line["request"] for line in lines}) == 4 and {line["status"] for line in lines[1:]} == {404}


def test_the_log_line_has_the_trace_id_of_the_request(
    echo_client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"  # the example of W3C's Trace Context
    with caplog.at_level(logging.INFO, "trivium.access"):
        for traceparent in (f"00-{trace}-00f067aa0ba902b7-01", f"00-{'0' * 32}-00f067aa0ba902b7-01", "nonsense"):
            echo_client.get("/v2/health/live", headers={"traceparent": traceparent})
    lines = [json.loads(record.message) for record in caplog.records if record.name == "trivium.access"]
    assert [line.get("trace") for line in lines] == [trace, None, None]


def test_latencies_are_recorded_by_path_pattern(echo_client: TestClient) -> None:
    assert echo_client.post(PREDICT, files=[csv(1)]).status_code == 200
    echo_client.get("/api/echo/cases/none")
    echo_client.put("/api/echo/cases/none/review", json={})
    echo_client.get("/v2/models/model")  # a name that another part of the path begins with
    text = echo_client.get("/metrics").text
    assert (
        'trivium_http_request_duration_seconds_count{method="POST",route="/api/echo/predict",status="200"} 1.0' in text
    )
    assert 'method="GET",route="/api/echo/cases/{case_id}",status="404"} 1.0' in text
    assert 'method="PUT",route="/api/echo/cases/{case_id}/review",status="404"} 1.0' in text
    assert 'method="GET",route="/v2/models/{name}",status="404"} 1.0' in text
    assert 'trivium_inference_request_duration_seconds_bucket{le="+Inf",model="echo",version="2"} 1.0' in text


def test_one_client_cannot_take_all_the_places(serve: Callable[..., TestClient], echo: Echo) -> None:
    client = serve(max_per_client=2)
    echo.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(client.post, PREDICT, files=[csv(n)]) for n in (1, 2)]
        until(lambda: 'pending_request_count{model="echo",version="2"} 1.0' in client.get("/metrics").text)
        response = client.post(PREDICT, files=[csv(3)])
        assert int(response.headers["Retry-After"]) > 0 and "TRIVIUM_MAX_PER_CLIENT" in response.json()["detail"]
        assert client.get("/api/echo/cases").status_code == 200, "reading is not limited"
        echo.gate.set()
        assert {future.result().status_code for future in inside} == {200}
    assert client.post(PREDICT, files=[csv(3)]).status_code == 200
