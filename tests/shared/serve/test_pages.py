"""The HTML of the pages; tests/browser tests them in a browser."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from shared.app import App, Sample, installed
from shared.deploy.artifact import Artifact, open_artifact, write_manifest
from shared.errors import InvalidInputError
from shared.serve.app import create_app
from shared.serve.pages import WEB
from shared.serve.settings import Settings
from tests.shared.serve.echo import csv, until

HTML = {"Accept": "text/html,application/xhtml+xml"}


def test_the_overview_has_a_card_for_each_application_and_its_recent_cases(echo_client: TestClient) -> None:
    assert "None yet." in echo_client.get("/").text
    case = echo_client.post("/api/echo/predict", files=[csv(1, name="<b>肺.csv")]).json()["case"]
    page = echo_client.get("/", headers=HTML)
    assert page.status_code == 200 and '<html lang="en">' in page.text
    for text in ("Echo", "Doubles the numbers", 'href="/echo"', f'href="/echo?case={case}"', "&lt;b&gt;肺.csv"):
        assert text in page.text
    assert "trained on synthetic data" in page.text


def test_all_cases_of_an_application_are_listed_in_pages(
    echo_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "There is no case yet." in echo_client.get("/echo/cases").text
    monkeypatch.setattr("shared.serve.pages._CASES_PER_PAGE", 2)
    made = [echo_client.post("/api/echo/predict", files=[csv(n, name=f"{n}.csv")]).json()["case"] for n in (1, 2, 3)]
    echo_client.put(f"/api/echo/cases/{made[2]}/review", json={"reviewer": "Ada"})

    def listed(page: str) -> list[str]:
        return re.findall(r'href="/echo\?case=(\w+)"', page)

    first = echo_client.get("/echo/cases", headers=HTML).text
    assert listed(first) == [made[2], made[1]] and "reviewed by Ada" in first and "3.csv" in first
    (older,) = re.findall(r'href="(/echo/cases\?before=\w+)"', first)
    second = echo_client.get(older, headers=HTML).text
    assert listed(second) == [made[0]] and "before=" not in second and 'href="/echo/cases"' in second
    assert 'href="/echo/cases"' in echo_client.get("/").text and 'href="/echo/cases"' in echo_client.get("/echo").text
    assert echo_client.get("/echo/cases?before=none", headers=HTML).status_code == 404


def test_jobs_without_a_case_are_listed_with_the_cases(echo_client: TestClient) -> None:
    bad = ("files", ("bad.csv", b"x", "text/csv"))
    ended = [echo_client.post("/api/echo/jobs", files=[csv(1)]), echo_client.post("/api/echo/jobs", files=[bad])]
    done, failed = (answer.json() for answer in ended)
    for job in (done, failed):
        until(lambda job=job: echo_client.get(job["url"]).json()["state"] in ("done", "failed"))
    page = echo_client.get("/echo/cases").text
    assert f'href="/echo?job={failed["job"]}"' in page and "is not a CSV of numbers" in page
    assert f"job={done['job']}" not in page


def test_a_form_shows_its_notice_and_the_samples(echo_client: TestClient) -> None:
    page = echo_client.get("/echo", headers=HTML).text
    for text in (
        "For tests only.",
        "Three numbers",
        'data-sample="three"',
        "echo version 2",
        "numbers made up for tests",
    ):
        assert text in page
    assert 'aria-live="polite"' in page and 'role="alert"' in page


def test_pages_do_not_call_the_unknown_data_of_an_imported_model_real(echo_app: App, tmp_path: Path) -> None:
    folder = echo_app.weights / "echo" / "2"
    manifest = open_artifact(folder).manifest
    data = {"description": "trained elsewhere; see source", "synthetic": False}  # as earlier versions wrote it
    source = {"importer": "echo-import", "file": "a.ckpt"}
    write_manifest(folder, replace(manifest, data=data, source=source))
    with TestClient(
        create_app(Settings(store=tmp_path / "store", device="cpu", warm=False), {"echo": echo_app})
    ) as client:
        form, overview = client.get("/echo", headers=HTML).text, client.get("/", headers=HTML).text
    assert "imported from a.ckpt (echo-import): Trivium does not know what these weights were trained on." in form
    assert "imported, so what it was trained on is not known." in overview
    assert "real data" not in form + overview


def test_notices_leave_it_to_the_models_to_say_what_they_were_trained_on() -> None:
    """A notice that says it contradicts what the page says about imported models."""
    assert not [app.name for app in installed().values() if "trained" in app.notice]


def test_samples_are_offered_if_their_columns_cannot_be_compared_with_the_model(echo_app: App, tmp_path: Path) -> None:
    """A request to a model that cannot be opened reports the reason; the form must not."""

    def sample_fault(artifact: Artifact, sample: Sample) -> str | None:
        raise InvalidInputError(f"{artifact.path} has no digest of recipe.yaml")

    settings = Settings(store=tmp_path / "store", device="cpu", warm=False)
    with TestClient(create_app(settings, {"echo": replace(echo_app, sample_fault=sample_fault)})) as client:
        page = client.get("/echo", headers=HTML)
        assert page.status_code == 200 and 'data-sample="three"' in page.text
        assert client.post("/api/echo/predict", data={"sample": "three"}).status_code == 200


def test_an_application_can_have_its_own_form(serve: Callable[..., TestClient], tmp_path: Path) -> None:
    pages = tmp_path / "echo" / "pages"
    pages.mkdir()
    (pages / "form.html").write_text(
        '{% extends "base.html" %}{% from "form.html.jinja" import upload %}{% block title %}Mine{% endblock %}'
        '{% block content %}{% call upload(samples, accept=".csv") %}<label>Unit <input name="unit"></label>'
        '{% endcall %}{% endblock %}{% block script %}<script type="module" src="/static/echo/form.js"></script>'
        "{% endblock %}"
    )
    (pages / "form.js").write_text("export {};")
    client = serve()
    page = client.get("/echo").text
    assert "<h1>Mine</h1>" in page and 'accept=".csv"' in page and 'name="unit"' in page
    assert client.get("/static/echo/form.js").headers["Content-Type"].startswith("text/javascript")
    assert client.get("/static/echo/..%2Fweights%2Fecho%2F1%2Fmanifest.json").status_code == 404


def test_a_browser_gets_errors_as_pages(echo_client: TestClient) -> None:
    page = echo_client.get("/nowhere", headers=HTML)
    assert page.status_code == 404 and "<h1>Page not found</h1>" in page.text and "/nowhere" in page.text
    assert echo_client.get("/nowhere").json() == {"detail": "there is nothing at /nowhere"}


def test_the_title_of_a_page_names_the_server(echo_client: TestClient) -> None:
    titles = [re.findall("<title>(.+) · Trivium</title>", echo_client.get(path).text) for path in ("/", "/docs")]
    assert titles == [["Overview"], ["JSON interface"]]


def test_every_page_has_a_policy_with_a_new_nonce(echo_client: TestClient) -> None:
    policies = [echo_client.get("/echo").headers["Content-Security-Policy"] for _ in range(2)]
    nonces = [re.search(r"'nonce-([\w-]+)'", policy) for policy in policies]
    assert nonces[0] and nonces[1] and nonces[0][1] != nonces[1][1]
    assert "'unsafe-eval'" not in policies[0] and "script-src 'self'" in policies[0]
    assert "frame-ancestors 'none'" in echo_client.get("/healthz").headers["Content-Security-Policy"]


def test_the_openapi_document_has_every_route(echo_client: TestClient) -> None:
    document = echo_client.get("/openapi.json").json()
    assert {"/api/echo/predict", "/api/echo/count", "/v2/models/{name}/infer", "/metrics"} <= document["paths"].keys()
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    assert document["paths"]["/v2/health/live"]["get"]["summary"] == "Whether the server runs"
    assert "/static/shared/vendor/swagger-ui/swagger-ui-bundle.js" in echo_client.get("/docs").text


def test_the_openapi_document_has_a_schema_for_every_body_and_answer(echo_client: TestClient) -> None:
    document = echo_client.get("/openapi.json").json()
    schemas, text = document["components"]["schemas"], json.dumps(document)
    referenced = {found.rsplit("/", 1)[1] for found in re.findall(r'"\$ref": "([^"]+)"', text)}
    assert referenced <= schemas.keys(), "a reference without a schema"
    assert "HTTPValidationError" not in schemas, "refusals have their own schema"
    predict = document["paths"]["/api/echo/predict"]["post"]
    assert predict["operationId"] == "echo_predict"
    form = schemas[predict["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"].rsplit("/", 1)[1]]
    assert form["properties"]["files"]["items"] == {"type": "string", "format": "binary"}
    assert form["additionalProperties"] == {"type": "string"} and "sample" in form["properties"]
    case = schemas["CaseAnswer"]["properties"]
    assert case["inputs"]["items"]["$ref"].endswith("/InputFile") and case["artifact"]["$ref"].endswith(
        "/ArtifactVersion"
    )
    infer = document["paths"]["/v2/models/{name}/infer"]["post"]
    assert infer["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/InferenceRequest")
    assert schemas["RequestInput"]["required"] == ["name", "datatype", "shape"]
    for path, operations in document["paths"].items():
        declared = {p["name"] for o in operations.values() for p in o.get("parameters", []) if p["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path)), path
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            assert {"421", "500"} | ({"403", "429", "503"} if method != "get" else set()) <= responses.keys(), path
            untyped = [
                status for status, response in responses.items() if not response.get("content") and status != "204"
            ]
            assert untyped == [], (method, path)


def test_the_openapi_document_has_the_content_type_of_answers_that_are_not_json(echo_client: TestClient) -> None:
    case = echo_client.post("/api/echo/predict", files=[csv(1)]).json()
    job = echo_client.post("/api/echo/jobs", files=[csv(1)]).json()
    paths = echo_client.get("/openapi.json").json()["paths"]
    file = {"schema": {"type": "string", "format": "binary"}}
    for path, address, kind, schema in (
        ("/api/echo/cases/{case_id}/picture.png", case["picture"], "image/png", file),
        ("/api/echo/cases/{case_id}/files/{file}", "", "*/*", file),
        ("/api/echo/cases/{case_id}/files/{file}", "", "application/octet-stream", file),
        ("/api/echo/jobs/{job_id}/events", job["events"], "text/event-stream", {}),
        ("/metrics", "/metrics", "text/plain", {"schema": {"type": "string"}}),
    ):
        assert paths[path]["get"]["responses"]["200"]["content"].items() >= {kind: schema}.items()
        if address:
            assert echo_client.get(address).headers["Content-Type"].startswith(kind)


def test_a_server_without_applications_says_so(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(store=tmp_path, warm=False), {})) as client:
        assert "No application is installed" in client.get("/").text
        assert client.get("/v2").json()["models"] == []


def test_a_failing_application_router_does_not_affect_the_others(
    settings: Settings, echo_app: App, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise ImportError("no such library")

    object.__setattr__(echo_app, "router", broken)
    with TestClient(create_app(settings, {"echo": echo_app})) as client:
        assert client.post("/api/echo/predict", files=[csv(1)]).status_code == 200
    assert "the routes of echo are left out" in caplog.text


def test_warming_makes_the_server_ready(serve: Callable[..., TestClient]) -> None:
    client = serve(warm=True)
    until(lambda: client.get("/v2/health/ready").json() == {"ready": True})
    assert client.get("/healthz").json()["apps"]["echo"]["predictor"] == "loaded"


def test_vendored_libraries_equal_the_published_ones() -> None:
    found = sorted((WEB / "static" / "vendor").glob("*/VENDOR.json"))
    assert found
    for path in found:
        documented = json.loads(path.read_text())
        assert documented["name"] and documented["version"] and documented["integrity"].startswith("sha512-"), path
        digests = documented["sha256"]
        assert digests, path
        for name, digest in digests.items():
            assert hashlib.sha256((path.parent / name).read_bytes()).hexdigest() == digest, path.parent / name
        assert any("licen" in file.name.lower() for file in path.parent.iterdir()), f"{path.parent} has no licence"
