"""The OpenAPI document says of every application what its options are and what ``result.json`` holds."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from shared.app import find, installed
from shared.errors import InvalidInputError
from shared.serve.app import create_app
from shared.serve.settings import Settings

SAMPLES = {
    "medical": {"lung1"},
    "driving": {"kitti-000002", "nuscenes"},
    "finance": {"synthetic_market", "travel_time", "btc_perp"},
}
APPS = tuple(SAMPLES)
SEVERAL = "date,ticker,close\n" + "".join(
    f"2024-01-{1 + day:02d}T{hour:02d}:00:00,{ticker},{100 + hour}\n"
    for ticker in ("A", "B")
    for day in range(4)
    for hour in range(24)
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(store=tmp_path_factory.mktemp("store"), device="cpu", workers=0, warm=False, hosts="testserver")
    with TestClient(create_app(settings, installed())) as made:
        yield made


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def schema(document: dict[str, Any], name: str) -> dict[str, Any]:
    """A schema of the document by itself, in which what is not described is wrong."""
    everything: dict[str, Any] = deepcopy(document["components"]["schemas"])
    for one in everything.values():
        if "properties" in one:
            one.setdefault("additionalProperties", False)
    return {"$ref": f"#/components/schemas/{name}", "components": {"schemas": everything}}


def answers(client: TestClient, app: str) -> Iterator[dict[str, Any]]:
    """Of real samples where they are at hand, else of a synthetic one, and of a file with several series."""
    there = {sample.name for sample in find(app).samples()}
    for sample in SAMPLES[app] & there or there:
        yield client.post(f"/api/{app}/predict", data={"sample": sample}).json()
    if app == "finance":
        file = {"files": ("two.csv", SEVERAL)}
        yield client.post("/api/finance/predict", files=file, data={"events_per_1000_rows": "10"}).json()
        yield client.post("/api/finance/predict", data={"sample": "synthetic_market", "columns": "all"}).json()


@pytest.mark.parametrize("app", APPS)
def test_answers_are_as_they_are_described(client: TestClient, document: dict[str, Any], app: str) -> None:
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
def test_reviews_are_described_with_what_of_a_missed_finding_is_taken(document: dict[str, Any], app: str) -> None:
    operations = document["paths"][f"/api/{app}/cases/{{case_id}}/review"]
    body = operations["put"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    answer = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    said = {"verdicts": {"1": "accepted"}, "missed": [MISSED[app]], "note": ""}
    jsonschema.validate(said, schema(document, body.rsplit("/", 1)[1]))
    read = {"case": "c", "reviewer": None, "reviews": [said | {"reviewer": "Ada", "reviewed": "2024-01-01T00:00:00Z"}]}
    jsonschema.validate(read, schema(document, answer.rsplit("/", 1)[1]))
    read["reviews"][0]["missed"] = [{}]  # type: ignore[index]
    for wrong, name in ((said | {"missed": [{}]}, body), (read, answer)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema(document, name.rsplit("/", 1)[1]))


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("route", ["predict", "jobs"])
def test_options_are_described_and_there_are_no_others(document: dict[str, Any], app: str, route: str) -> None:
    body = document["paths"][f"/api/{app}/{route}"]["post"]["requestBody"]["content"]["multipart/form-data"]
    form = document["components"]["schemas"][body["schema"]["$ref"].rsplit("/", 1)[1]]
    options = form["properties"].keys() - {"files", "sample"}
    read_options = find(app).read_options
    assert options and form["additionalProperties"] is False and read_options is not None
    assert all("description" in form["properties"][option] for option in options)
    read_options(dict.fromkeys(options, ""))
    with pytest.raises(InvalidInputError) as refusal:
        read_options({"no_such": "1"})
    named = str(refusal.value).split("there are ")[1]
    assert set(named.split(", ")) == options


def test_an_application_without_schemas_is_described_in_general(tmp_path: Path) -> None:
    driving = replace(find("driving"), schemas=None)
    settings = Settings(store=tmp_path, device="cpu", workers=0, warm=False, hosts="testserver")
    with TestClient(create_app(settings, {"driving": driving})) as client:
        found = client.get("/openapi.json").json()
    assert "DrivingResult" not in found["components"]["schemas"]
    answer = found["paths"]["/api/driving/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["$ref"].endswith("/CaseAnswer")
