"""The OpenAPI document describes the options and the ``result.json`` of every application."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient

from shared.app import find, installed
from shared.errors import InvalidInputError
from shared.serve.app import create_app
from shared.serve.service import Service
from shared.serve.settings import Settings

SAMPLES = {
    "medical": {"lung1"},
    "driving": {"kitti-000002", "nuscenes"},
    "finance": {"synthetic_market", "travel_time", "btc_perp"},
}
APPS = tuple(SAMPLES)
TWO_SERIES_CSV = "date,ticker,close\n" + "".join(
    f"2024-01-{1 + day:02d}T{hour:02d}:00:00,{ticker},{100 + hour}\n"
    for ticker in ("A", "B")
    for day in range(4)
    for hour in range(24)
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(store=tmp_path_factory.mktemp("store"), device="cpu", workers=0, warm=False, hosts="testserver")
    with TestClient(create_app(settings, installed())) as test_client:
        yield test_client


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def schema(document: dict[str, Any], name: str) -> dict[str, Any]:
    """One schema of the document, self-contained and strict: properties that it does not describe are invalid."""
    schemas: dict[str, Any] = deepcopy(document["components"]["schemas"])
    for described in schemas.values():
        if "properties" in described:
            described.setdefault("additionalProperties", False)
    return {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}


def answers(client: TestClient, app: str) -> Iterator[dict[str, Any]]:
    """Answers for the real samples if available, else for the synthetic ones, and for a file with several series."""
    available = {sample.name for sample in find(app).samples()}
    for sample in SAMPLES[app] & available or available:
        yield client.post(f"/api/{app}/predict", data={"sample": sample}).json()
    if app == "finance":
        file = {"files": ("two.csv", TWO_SERIES_CSV)}
        yield client.post("/api/finance/predict", files=file, data={"events_per_1000_rows": "10"}).json()
        yield client.post("/api/finance/predict", data={"sample": "synthetic_market", "columns": "all"}).json()


@pytest.mark.parametrize("app", APPS)
def test_answers_match_their_schemas(client: TestClient, document: dict[str, Any], app: str) -> None:
    name = f"{app.title()}CaseAnswer"
    for path, method in (("predict", "post"), ("cases/{case_id}", "get")):
        answer = document["paths"][f"/api/{app}/{path}"][method]["responses"]["200"]["content"]["application/json"]
        assert answer["schema"]["$ref"].endswith(f"/{name}")
    described = schema(document, name)
    for answer in answers(client, app):
        jsonschema.validate(answer, described)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(answer | {"result": answer["result"] | {"more": 1}}, described)


MISSED = {
    "medical": {"centre_lps_mm": [0.0, 0.0, 0.0], "diameter_mm": 5.0},
    "driving": {"frame": "a", "name": "car", "centre_lidar_m": [9.0, 0.0, 0.0], "size_m": [4.0, 2.0, 1.5], "yaw": 0.0},
    "finance": {"start": "2024-01-01T00:00:00Z", "end": "2024-01-01T00:00:00Z"},
}


@pytest.mark.parametrize("app", APPS)
def test_reviews_and_missed_findings_match_their_schemas(document: dict[str, Any], app: str) -> None:
    operations = document["paths"][f"/api/{app}/cases/{{case_id}}/review"]
    body = operations["put"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    answer_schema = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    review = {"verdicts": {"1": "accepted"}, "missed": [MISSED[app]], "note": ""}
    jsonschema.validate(review, schema(document, body.rsplit("/", 1)[1]))
    answer_body = {
        "case": "c",
        "reviewer": None,
        "reviews": [review | {"reviewer": "Ada", "reviewed": "2024-01-01T00:00:00Z"}],
    }
    jsonschema.validate(answer_body, schema(document, answer_schema.rsplit("/", 1)[1]))
    answer_body["reviews"][0]["missed"] = [{}]  # type: ignore[index]
    for wrong, name in ((review | {"missed": [{}]}, body), (answer_body, answer_schema)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema(document, name.rsplit("/", 1)[1]))


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("route", ["predict", "jobs"])
def test_exactly_the_existing_options_are_described(document: dict[str, Any], app: str, route: str) -> None:
    body = document["paths"][f"/api/{app}/{route}"]["post"]["requestBody"]["content"]["multipart/form-data"]
    form = document["components"]["schemas"][body["schema"]["$ref"].rsplit("/", 1)[1]]
    options = form["properties"].keys() - {"files", "sample"}
    read_options = find(app).read_options
    assert options and form["additionalProperties"] is False and read_options is not None
    assert all("description" in form["properties"][option] for option in options)
    read_options(dict.fromkeys(options, ""))
    with pytest.raises(InvalidInputError) as refusal:
        read_options({"no_such": "1"})
    listed = re.split(r"there are |options are ", str(refusal.value))[-1]
    assert set(listed.split(", ")) == options


def test_an_application_without_schemas_gets_the_generic_schema(tmp_path: Path) -> None:
    driving = replace(find("driving"), schemas=None)
    settings = Settings(store=tmp_path, device="cpu", workers=0, warm=False, hosts="testserver")
    with TestClient(create_app(settings, {"driving": driving})) as client:
        found = client.get("/openapi.json").json()
    assert "DrivingResult" not in found["components"]["schemas"]
    answer = found["paths"]["/api/driving/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["$ref"].endswith("/CaseAnswer")


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_operation_ids_start_with_the_application(document: dict[str, Any]) -> None:
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert {app: find(app).title for app in APPS}.items() <= tags.items()
    for path, _, operation in operations(document):
        app = path.split("/")[2] if path.startswith("/api/") else ""
        if app in APPS:
            assert operation["tags"] == [app] and re.fullmatch(rf"{app}(_[a-z]+)+", operation["operationId"]), path
    names = [operation["operationId"] for *_, operation in operations(document)]
    assert {"medical_comparison", "medical_reviewed_report", "medical_reviewed_fhir"} <= set(names)
    assert len(names) == len(set(names))


def test_an_operation_id_common_to_all_applications_is_not_used_twice(tmp_path: Path) -> None:
    def router(_: Service) -> APIRouter:
        routes = APIRouter()
        routes.get("/own")(lambda: 0)
        routes.get("/cases-of-today", name="cases")(lambda: 0)
        return routes

    settings = Settings(store=tmp_path, device="cpu", workers=0, warm=False, hosts="testserver")
    found = create_app(settings, {"driving": replace(find("driving"), router=router)}).openapi()
    names = [operation["operationId"] for *_, operation in operations(found)]
    assert "driving_cases" in names and len(names) == len(set(names))


def test_every_schema_is_referenced(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    assert [name for name in document["components"]["schemas"] if f'"#/components/schemas/{name}"' not in text] == []


def test_optional_properties_have_no_empty_default(document: dict[str, Any]) -> None:
    # openapi-typescript makes a property with a default required.
    for name, described in document["components"]["schemas"].items():
        for key, described_property in described.get("properties", {}).items():
            assert described_property.get("default", "left out"), (name, key)
            assert "default" not in described_property or key not in described.get("required", ()), (name, key)
    for app in APPS:
        form = document["components"]["schemas"][f"{app.title()}PredictForm"]
        assert form["properties"]["sample"]["type"] == "string", "a form cannot send null"
        assert "required" not in form


def test_parameters_have_no_null_and_no_enumeration_is_described_twice(document: dict[str, Any]) -> None:
    # Generators turn null into an argument that no URL can express, and number repeated enumerations: State, State1.
    for path, method, operation in operations(document):
        assert '"null"' not in json.dumps(operation.get("parameters", [])), (path, method)
    schemas = document["components"]["schemas"]
    states = {"JobState", "VersionStage", "WorkerState", "PredictorState", "ModelState", "Verdict"}
    assert {name for name in schemas if "enum" in schemas[name]} >= states
    for name in states:
        inline = json.dumps(schemas[name]["enum"])
        assert [owner for owner, described in schemas.items() if inline in json.dumps(described)] == [name]


def test_every_tag_is_described(document: dict[str, Any]) -> None:
    described = {tag["name"] for tag in document["tags"] if tag["description"]}
    assert {tag for *_, operation in operations(document) for tag in operation["tags"]} == described


def test_an_unreachable_database_is_described_for_every_operation_but_probes(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        if path not in ("/healthz", "/v2/health/live"):
            assert "503" in operation["responses"], (path, method)


def test_a_configuration_matches_its_schema_with_and_without_batching(
    client: TestClient, document: dict[str, Any]
) -> None:
    config = client.get("/v2/models/tft-anomaly/config").json()
    unbatched = {key: value for key, value in config.items() if key != "dynamic_batching"} | {"max_batch_size": 0}
    for each in (config, unbatched):  # the server leaves null out
        jsonschema.validate(each, schema(document, "ModelConfig"))


def test_request_and_response_headers_are_described(client: TestClient, document: dict[str, Any]) -> None:
    case = client.post("/api/driving/predict", data={"sample": "synthetic"}).json()
    for path, address in (("picture.png", case["picture"]), ("files/{file}", case["files"]["result.json"])):
        described = document["paths"][f"/api/driving/cases/{{case_id}}/{path}"]["get"]
        assert {"Range", "If-Range"} <= {
            parameter["name"] for parameter in described["parameters"] if parameter["in"] == "header"
        }
        client.get(address)  # the first request creates the picture and stores it
        whole = client.get(address)
        part = client.get(address, headers={"Range": "bytes=0-3", "If-Range": whole.headers["ETag"]})
        assert part.status_code == 206 and part.content == whole.content[:4]
        changed = client.get(address, headers={"Range": "bytes=0-3", "If-Range": '"another"'})
        assert changed.status_code == 200 and changed.content == whole.content
        unsatisfiable = client.get(address, headers={"Range": "bytes=99999999-"})
        for answer in (whole, part, unsatisfiable):
            headers = described["responses"][str(answer.status_code)]["headers"]
            assert headers and all(name in answer.headers for name in headers), answer.status_code
    job = client.post("/api/driving/jobs", data={"sample": "synthetic"})
    described = document["paths"]["/api/driving/jobs"]["post"]["responses"]["202"]
    assert list(described["headers"]) == ["Location"] and job.headers["Location"] == job.json()["url"]
    # Wait for the job: its thread builds networks, which draws from the random generator of later tests.
    assert client.get(job.json()["events"]).is_success
    for path, _, operation in operations(document):
        for status in operation["responses"].keys() & {"429", "503"}:
            assert "Retry-After" in operation["responses"][status]["headers"], (path, status)


def test_inference_is_described_with_json_and_binary_tensors(client: TestClient, document: dict[str, Any]) -> None:
    described = document["paths"]["/v2/models/{name}/infer"]["post"]
    content_types = ["application/json", "application/octet-stream"]
    assert list(described["requestBody"]["content"]) == list(described["responses"]["200"]["content"]) == content_types
    (length,) = described["responses"]["200"]["headers"]
    assert length in {entry["name"] for entry in described["parameters"]}
    metadata = client.get("/v2/models/tft-anomaly").json()
    shapes = {entry["name"]: [1 if size == -1 else size for size in entry["shape"]] for entry in metadata["inputs"]}
    inputs = [
        {"name": name, "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": 4 * math.prod(shape)}}
        for name, shape in shapes.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    tensors = bytes(4 * sum(math.prod(shape) for shape in shapes.values()))
    headers = {length: str(len(head)), "Content-Type": content_types[1]}
    response = client.post("/v2/models/tft-anomaly/infer", content=head + tensors, headers=headers)
    assert response.headers["Content-Type"] == content_types[1] and response.status_code == 200
    header = json.loads(response.content[: int(response.headers[length])])
    jsonschema.validate(header, schema(document, "InferenceResponse"))
