"""The JSON routes of a server."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.deploy.predictor import Response
from shared.serve.settings import Settings
from shared.serve.upload_folders import INCOMING
from tests.shared.serve.echo import Echo, csv, until

Serve = Callable[..., TestClient]


def test_files_become_a_case_that_can_be_fetched_again(echo_client: TestClient) -> None:
    response = echo_client.post("/api/echo/predict", files=[csv(1, 2), csv(3, name="b.csv")], data={"unit": "mm"})
    assert response.status_code == 200
    case = response.json()
    assert case["app"] == "echo" and case["interface"] == "json"
    assert case["result"] == {"doubled": [2, 4, 6], "options": {"unit": "mm"}}
    assert case["options"] == {"unit": "mm"}
    assert case["artifact"] == {"name": "echo", "version": 2}
    assert case["inputs"][1] == {"name": "b.csv", "bytes": 1, "sha256": hashlib.sha256(b"3").hexdigest()}
    assert case["url"] == f"/api/echo/cases/{case['case']}"
    assert echo_client.get(case["url"]).json() == case
    assert echo_client.get(case["picture"]).content.startswith(b"\x89PNG")
    assert echo_client.get(case["files"]["doubled.csv"]).text == "2.0\n4.0\n6.0"
    assert echo_client.get(case["files"]["result.json"]).json() == case["result"]
    listed = echo_client.get("/api/echo/cases").json()["cases"]
    assert [entry["case"] for entry in listed] == [case["case"]] and listed[0]["inputs"] == ["numbers.csv", "b.csv"]


def test_a_sample_becomes_a_case_through_either_kind_of_form(echo_client: TestClient) -> None:
    assert echo_client.get("/api/echo/samples").json() == {
        "samples": [{"name": "three", "title": "Three numbers", "synthetic": True, "source": "made here"}]
    }
    plain = echo_client.post("/api/echo/predict", data={"sample": "three"}, headers={"Trivium-Interface": "form"})
    assert plain.json()["result"]["doubled"] == [2, 4, 6] and plain.json()["interface"] == "form"
    multipart = echo_client.post("/api/echo/predict", files={"sample": (None, "three")})
    assert multipart.json()["result"] == plain.json()["result"]
    assert [item["name"] for item in multipart.json()["inputs"]] == ["three.csv"]


def test_the_application_s_own_routes_exist_too(echo_client: TestClient) -> None:
    assert echo_client.get("/api/echo/count").json() == 0
    echo_client.post("/api/echo/predict", files=[csv(1)])
    assert echo_client.get("/api/echo/count").json() == 1


@pytest.mark.parametrize(
    ("form", "status", "words"),
    [
        ({"files": [("options", (None, "x"))]}, 422, "no files"),
        ({"data": {"sample": "four"}}, 422, "'four'; available: three"),
        ({"files": [csv(1), ("sample", (None, "three"))]}, 422, "not both"),
        ({"files": [("files", ("bad.csv", b"1,two", "text/csv"))]}, 422, "bad.csv is not a CSV"),
        ({"files": [("image", ("a.csv", b"1", "text/csv"))]}, 422, "send files in the field 'files'"),
        ({"files": [csv(1) for _ in range(6)]}, 413, "more than 5 files"),
        ({"files": [("files", ("big.csv", b"1," * 200_000, "text/csv"))]}, 413, "200,000 bytes"),
        ({"files": [csv(1)], "data": {"unit": "m" * 70_000}}, 422, "'unit' is longer"),
        ({"json": {"files": []}}, 415, "multipart/form-data"),
        *(
            ({"content": body, "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 415, "-F files=@FILE")
            for body in (b"time,close\n2024-01-01,1\n" * 5000, b"a=1&" * 101, b"\xff\xfe")
        ),
        ({"content": b""}, 415, "multipart/form-data"),
        (
            {"content": b"nothing", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            400,
            "cannot be read",
        ),
        (
            {
                "content": b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n1',
                "headers": {"Content-Type": "multipart/form-data; boundary=x"},
            },
            400,
            "interrupted",
        ),
    ],
)
def test_unusable_requests_are_refused_with_a_message(
    echo_client: TestClient, form: dict[str, Any], status: int, words: str
) -> None:
    response = echo_client.post("/api/echo/predict", **form)
    assert response.status_code == status, response.text
    assert words in response.json()["detail"] and len(response.text) < 400
    assert echo_client.get("/api/echo/cases").json() == {"cases": []}


@pytest.mark.parametrize("form", [{"files": [csv(1)]}, {}], ids=["multipart", "urlencoded"])
def test_a_repeated_field_is_refused(echo_client: TestClient, form: dict[str, Any]) -> None:
    fields = {"unit": ["mm", "cm"]} if form else {"sample": ["three", "three"]}
    for route in ("predict", "jobs"):
        response = echo_client.post(f"/api/echo/{route}", data=fields, **form)
        assert response.status_code == 422 and f"{next(iter(fields))!r} is given twice" in response.json()["detail"]


def test_a_body_without_content_length_is_refused_at_the_limit(echo_client: TestClient) -> None:
    sent = 0

    def body() -> Any:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(1000):
            sent += 10_000
            yield b"1" * 10_000

    response = echo_client.post(
        "/api/echo/predict", content=body(), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("file_name", "stored_name"),
    [
        ("../../../etc/passwd", "passwd"),
        ("..\\..\\windows\\system.ini", "system.ini"),
        ("/absolute/path.csv", "path.csv"),
        ("..", "upload"),
        ("a/..", "upload"),
        ("нод\u202eул 肺.csv", "нодул 肺.csv"),
        ("x" * 300 + ".nii", "x" * 196 + ".nii"),
    ],
)
def test_names_of_uploads_are_stripped_of_folders(
    echo_client: TestClient, file_name: str, stored_name: str, settings: Settings
) -> None:
    raw = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{file_name}"\r\n\r\n7\r\n--x--\r\n'.encode()
    response = echo_client.post(
        "/api/echo/predict", content=raw, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert response.status_code == 200, response.text
    assert [item["name"] for item in response.json()["inputs"]] == [stored_name]
    assert not any((settings.store / INCOMING).iterdir())


def test_files_with_the_same_name_do_not_overwrite_each_other(echo_client: TestClient) -> None:
    response = echo_client.post("/api/echo/predict", files=[csv(1), csv(2), csv(3)])
    assert response.json()["result"]["doubled"] == [2, 4, 6]


@pytest.mark.parametrize(
    "path",
    [
        "/api/echo/cases/none",
        "/api/echo/cases/{case}/files/none.csv",
        "/api/echo/cases/{case}/files/..%2F..%2Ftrivium.sqlite",
        "/api/echo/cases/..%2F..%2Ftrivium.sqlite/picture.png",
        "/api/other/cases/{case}",
        "/api/nothing",
    ],
)
def test_unknown_paths_are_not_found(echo_client: TestClient, path: str) -> None:
    case = echo_client.post("/api/echo/predict", files=[csv(1)]).json()["case"]
    response = echo_client.get(path.format(case=case), headers={"Accept": "text/html"})
    assert response.status_code == 404
    assert response.json()["detail"]


def test_a_range_of_a_file_is_sent_and_an_invalid_one_is_refused_in_json(echo_client: TestClient) -> None:
    case = echo_client.post("/api/echo/predict", files=[csv(1, 2)]).json()
    address = case["files"]["doubled.csv"]
    whole = echo_client.get(address)
    for range_header, status in (
        ("bytes=0-1", 206),
        ("BYTES=0-1", 206),
        ("lines=1-2", 200),
        ("bytes=900-", 416),
        ("bytes=x", 400),
    ):
        response = echo_client.get(address, headers={"Range": range_header})
        assert response.status_code == status, range_header
        if status == 206:
            assert response.content == whole.content[:2] and response.headers["ETag"] == whole.headers["ETag"]
        elif status != 200:
            assert "bytes=0-99" in response.json()["detail"]
    assert echo_client.get(address, headers={"Range": "bytes=900-"}).headers["Content-Range"] == "bytes */7"
    described = echo_client.get("/openapi.json").json()["paths"]
    for path in ("files/{file}", "picture.png"):
        assert {"206", "400", "416"} <= set(described[f"/api/echo/cases/{{case_id}}/{path}"]["get"]["responses"])


def test_an_unsupported_method_is_refused_with_the_supported_ones(echo_client: TestClient) -> None:
    for method, path, allowed in (
        ("PATCH", "/api/echo/cases/none", "GET, HEAD, DELETE"),
        ("PUT", "/api/echo/jobs", "GET, POST"),
        ("GET", "/api/echo/predict", "POST"),
        ("POST", "/v2/models/echo", "GET"),
    ):
        response = echo_client.request(method, path)
        assert response.status_code == 405 and response.headers["Allow"] == allowed
        assert f"{path} accepts {allowed}, not {method}" in response.text


def test_the_openapi_document_states_the_limits_on_requests(echo_client: TestClient) -> None:
    described = echo_client.get("/openapi.json").json()["paths"]
    for path, description in (
        ("/api/echo/predict", "At most 200,000 bytes and 5 files; answered within 20 seconds"),
        ("/api/echo/jobs", "At most 200,000 bytes and 5 files; computed for at most 21600 seconds"),
        ("/v2/models/{name}/infer", "At most 100,000 bytes, of which"),
    ):
        assert described[path]["post"]["requestBody"]["description"].startswith(description)


def test_waiting_requests_are_computed_together_and_get_their_own_answers(echo_client: TestClient, echo: Echo) -> None:
    echo_client.post("/api/echo/predict", files=[csv(0)])
    echo.batches.clear()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: echo_client.post("/api/echo/predict", files=[csv(n, n + 1)]), range(16)))
    assert [answer.json()["result"]["doubled"] for answer in answers] == [[2 * n, 2 * n + 2] for n in range(16)]
    assert sum(echo.batches) == 16 and len(echo.batches) < 16 and max(echo.batches) <= 8


def test_only_requests_with_equal_options_are_computed_together(serve: Serve, echo: Echo) -> None:
    client = serve()
    echo.gate.clear()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(client.post, "/api/echo/predict", files=[csv(0)])
        until(echo.entered.is_set)
        units = ["mm", "cm"] * 4
        forms = [{"files": [csv(n)], "data": {"unit": unit}} for n, unit in enumerate(units)]
        waiting = [pool.submit(client.post, "/api/echo/predict", **form) for form in forms]
        until(lambda: 'pending_request_count{model="echo",version="2"} 8.0' in client.get("/metrics").text)
        echo.gate.set()
        assert first.result().status_code == 200
        answers = [future.result().json()["result"] for future in waiting]
    assert [answer["options"]["unit"] for answer in answers] == units
    assert [answer["doubled"] for answer in answers] == [[2 * n] for n in range(8)]
    assert echo.batches == [1, 4, 4] and sorted(map(str, echo.units)) == ["None", "cm", "mm"]


def test_a_full_queue_says_when_to_retry(serve: Serve, echo: Echo) -> None:
    client = serve(queue_length=1, max_batch=1)
    echo.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/api/echo/predict", files=[csv(1)])]
        until(echo.entered.is_set)
        waiting.append(pool.submit(client.post, "/api/echo/predict", files=[csv(2)]))
        until(lambda: 'pending_request_count{model="echo",version="2"} 1.0' in client.get("/metrics").text)
        response = client.post("/api/echo/predict", files=[csv(3)])
        echo.gate.set()
        assert [future.result().json()["result"]["doubled"] for future in waiting] == [[2], [4]]
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0 and "as many requests" in response.json()["detail"]
    assert 'nv_inference_request_failure{model="echo",reason="REJECTED",version="2"} 1.0' in client.get("/metrics").text
    assert client.post("/api/echo/predict", files=[csv(3)]).status_code == 200


def test_at_the_deadline_a_computing_request_is_504_and_a_waiting_one_is_503(serve: Serve, echo: Echo) -> None:
    client = serve(deadline_s=0.3, max_batch=1)
    until(
        lambda: client.post("/api/echo/predict", data={"sample": "unknown"}).status_code == 422
    )  # the model is loaded now
    echo.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda n: client.post("/api/echo/predict", files=[csv(n)]), (1, 2)))
    assert sorted(answer.status_code for answer in answers) == [503, 504]
    assert all("deadline" in answer.json()["detail"] for answer in answers)
    echo.gate.set()
    # Until the running request has ended, requests that wait behind it are refused as too late.
    until(lambda: client.post("/api/echo/predict", files=[csv(3)]).status_code == 200)
    assert echo.batches == [1, 1], "the running request and the last one; the waiting one was given up"


def test_the_other_routes_answer_while_predictors_are_busy(serve: Serve, echo: Echo) -> None:
    client = serve(queue_length=64, max_batch=1)
    echo.gate.clear()
    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(client.post, "/api/echo/predict", files=[csv(n)]) for n in range(60)]
        until(lambda: "pending_request_count{" in client.get("/metrics").text)
        assert client.get("/static/shared/style.css").status_code == 200
        assert client.get("/").status_code == 200
        echo.gate.set()
        assert {future.result().status_code for future in waiting} == {200}


@pytest.mark.parametrize("kind", ["cases", "jobs"])
def test_lists_are_paginated(echo_client: TestClient, kind: str, settings: Settings) -> None:
    responses = [
        echo_client.post(f"/api/echo/{'jobs' if kind == 'jobs' else 'predict'}", files=[csv(n)]) for n in range(5)
    ]
    ids = [response.json()[kind[:-1]] for response in responses]
    until(lambda: len(echo_client.get(f"/api/echo/{kind}").json()[kind]) == 5)
    with closing(sqlite3.connect(settings.store / "trivium.sqlite")) as database, database:
        database.execute(f"UPDATE {kind} SET created_ns = 1 WHERE id IN (?, ?)", ids[1:3])  # created at the same time

    def page(**query: str | int) -> list[str]:
        return [line[kind[:-1]] for line in echo_client.get(f"/api/echo/{kind}", params=query).json()[kind]]

    first = page(limit=2)
    assert first == [ids[4], ids[3]]
    second = page(limit=2, before=first[-1])
    third = page(limit=2, before=second[-1])
    assert second[0] == ids[0] and second[1:] + third == sorted(ids[1:3], reverse=True)
    assert page(limit=2, before=third[-1]) == []
    assert echo_client.get(f"/api/echo/{kind}?before=none").status_code == 404
    for limit in (0, 201):
        assert "query.limit" in echo_client.get(f"/api/echo/{kind}?limit={limit}").json()["detail"]


def test_an_internal_error_is_answered_with_a_number_and_details_are_logged(
    echo_client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "trivium.serve"):
        response = echo_client.post("/api/echo/predict", files=[csv(1)], data={"poison": "yes"})
    assert response.status_code == 500
    detail = response.json()["detail"]
    assert "secret" not in detail
    number = detail.split("error ")[1].split(")")[0]
    assert number in caplog.text and "a secret of the inside" in caplog.text
    assert response.headers["X-Request-Id"] in next(
        record.message for record in caplog.records if number in record.message
    )


def test_one_bad_request_does_not_affect_its_batch(serve: Serve, echo: Echo) -> None:
    client = serve()
    client.post("/api/echo/predict", files=[csv(0)])
    with ThreadPoolExecutor(4) as pool:
        forms = [{}, {"poison": "yes"}, {}, {}]
        answers = list(pool.map(lambda form: client.post("/api/echo/predict", files=[csv(5)], data=form), forms))
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]


def test_a_report_of_a_case_cannot_run_scripts_in_the_browser(echo_client: TestClient) -> None:
    case = echo_client.post("/api/echo/predict", files=[csv(1)]).json()
    report = echo_client.get(case["files"]["report.html"])
    assert report.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert report.headers["X-Content-Type-Options"] == "nosniff" and report.headers["Cache-Control"] == "no-store"


def test_the_predictor_is_loaded_once(serve: Serve, echo_app: Any, echo: Echo) -> None:
    client = serve()
    loads: list[threading.Thread] = []
    service = client.app.state.services["echo"]  # type: ignore[attr-defined]
    make = service.app.predictor
    object.__setattr__(
        service.app, "predictor", lambda *arguments: (loads.append(threading.current_thread()), make(*arguments))[1]
    )
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: client.post("/api/echo/predict", files=[csv(n)]), range(8)))
    assert {answer.status_code for answer in answers} == {200} and len(loads) == 1


def test_an_application_without_weights_answers_503_and_is_not_ready(
    serve: Serve, echo_app: Any, tmp_path: Any
) -> None:
    for file in (tmp_path / "echo" / "weights").rglob("manifest.json"):
        file.unlink()
    client = serve()
    response = client.post("/api/echo/predict", files=[csv(1)])
    assert response.status_code == 503 and "holds no version of echo" in response.json()["detail"]
    assert client.get("/healthz").json()["apps"]["echo"]["predictor"] == "failed"
    assert client.get("/v2/health/ready").status_code == 503


def test_metrics_have_triton_s_names(echo_client: TestClient) -> None:
    for number in range(3):
        assert echo_client.post("/api/echo/predict", files=[csv(number)]).status_code == 200
    echo_client.post("/api/echo/predict", files=[("files", ("bad.csv", b"x", "text/csv"))])
    lines = echo_client.get("/metrics").text.splitlines()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("nv_")}
    label = '{model="echo",version="2"}'
    for name in ("request_success", "count", "exec_count"):
        assert values[f"nv_inference_{name}{label}"] == 3
    for name in ("request_duration_us", "queue_duration_us", "compute_infer_duration_us"):
        assert values[f"nv_inference_{name}{label}"] >= 0
    assert values[f"nv_inference_request_duration_us{label}"] > 0
    assert values[f"nv_inference_pending_request_count{label}"] == 0
    assert values['nv_inference_request_failure{model="echo",reason="OTHER",version="2"}'] == 1
    assert "# TYPE nv_inference_count counter" in lines and not any("_created" in line for line in lines)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_a_result_that_json_cannot_represent_is_an_error_and_leaves_no_files(
    echo_client: TestClient, echo: Echo, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    monkeypatch.setattr(echo, "encode", lambda decoded, outputs: Response(result={"score": value}, picture=b""))
    assert echo_client.post("/api/echo/predict", files=[csv(1)]).status_code == 500
    assert echo_client.get("/api/echo/cases").json() == {"cases": []}
