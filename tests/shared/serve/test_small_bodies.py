"""Bodies that routes read into memory as a whole, such as those of model changes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPResponse
from typing import Annotated

import pytest
from fastapi import APIRouter, Body, UploadFile
from fastapi.testclient import TestClient

from shared.app import App
from shared.secure.access import Role
from shared.serve.app import create_app
from shared.serve.middleware import small_bodies
from shared.serve.runtime.protocol import header_deadline_protocol
from shared.serve.settings import Settings
from shared.store.cases import CaseStore
from shared.store.keys import Keys
from tests.conftest import serving

CHANGES = [
    *("/api/models/echo/promote", "/api/models/echo/retire"),
    *("/v2/repository/index", "/v2/repository/models/echo/load"),
]


def key(settings: Settings, role: Role) -> dict[str, str]:
    store = CaseStore(settings.store, settings.store_url)
    api_key = Keys(store.engine).add(role, role)
    store.close()
    return {"Authorization": f"Bearer {api_key}"}


@pytest.mark.parametrize("path", CHANGES)
def test_at_most_64_kib_of_a_model_change_are_read(
    serve: Callable[..., TestClient], settings: Settings, path: str
) -> None:
    headers, sent = key(settings, "user"), 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 << 20:
            sent += 1 << 16
            yield b" " * (1 << 16)

    response = serve(require_key=True).post(path, content=endless(), headers=headers)
    assert response.status_code == 413 and "larger than the limit of 64 KiB" in response.text


@pytest.mark.parametrize("path", [*CHANGES, "/api/echo/cases/{case_id}/review"])
def test_the_refusals_of_a_body_are_documented(serve: Callable[..., TestClient], path: str) -> None:
    client = serve()
    case = client.post("/api/echo/predict", data={"sample": "three"}).json()["case"]
    method = "put" if path.endswith("/review") else "post"
    pattern = path.replace("/models/echo/", "/models/{name}/")
    described = client.get("/openapi.json").json()["paths"][pattern]
    for body in (b"\xff", b"[" * 20_000):
        headers = {"Content-Type": "application/json"}
        response = client.request(method, path.format(case_id=case), content=body, headers=headers)
        assert response.status_code == 400 and "body cannot be read: send JSON in UTF-8" in response.text, response.text
    assert {"400", "408", "413"} <= described[method]["responses"].keys()


@pytest.fixture
def own_routes(settings: Settings, echo_app: App) -> Iterator[TestClient]:
    """A client of a server whose application has its own routes, one with a JSON body and one with a form."""

    def router(service: object) -> APIRouter:
        found = APIRouter()

        @found.put("/limits/{name}")
        def put(name: str, values: Annotated[list[int], Body()]) -> int:
            return len(values)

        @found.post("/table")
        def post(table: UploadFile) -> int:
            return table.size or 0

        return found

    server = create_app(
        settings.model_copy(update={"max_json_bytes": 50_000}), {"echo": replace(echo_app, router=router)}
    )
    with TestClient(server) as client:
        yield client


def test_bodies_for_application_routes_have_the_json_limit(
    own_routes: TestClient,
) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 << 20:
            sent += 1 << 16
            yield b" " * (1 << 16)

    path = "/api/echo/limits/a"
    response = own_routes.put(path, content=endless(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413 and "larger than the limit of 50000 bytes" in response.json()["detail"]
    assert own_routes.put(path, json=[1, 2, 3]).json() == 3
    assert own_routes.post("/api/echo/table", files={"table": ("a.csv", b"1" * 60_000)}).json() == 60_000


def test_a_small_body_changes_models(serve: Callable[..., TestClient], settings: Settings) -> None:
    headers = key(settings, "operator")
    response = serve(require_key=True).post("/api/models/echo/promote", json={"version": 1}, headers=headers)
    assert response.status_code == 200 and response.json()["versions"]["1"] == "live"


def sending(address: str, head: bytes) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    sent = socket.create_connection((host, int(port)))
    sent.settimeout(20)
    sent.sendall(head)
    return sent


def test_a_model_change_whose_body_does_not_arrive_is_refused(
    settings: Settings, echo_app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_bodies, "_TIMEOUT_S", 0.2)
    server = create_app(settings.model_copy(update={"hosts": None}), {"echo": echo_app})
    head = b"POST /api/models/echo/promote HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
    with serving(server, http=header_deadline_protocol(10)) as address, sending(address, head) as sent:
        response = HTTPResponse(sent)
        response.begin()
        assert response.status == 408 and b"send it again" in response.read()
