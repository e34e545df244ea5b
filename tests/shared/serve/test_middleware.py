"""The accepted host names, and writes from pages of other sites."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from shared.app import App
from shared.serve.app import create_app
from shared.serve.middleware.accepted_hosts import accepted_hosts
from shared.serve.settings import Settings

Serve = Callable[..., TestClient]


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_a_loopback_server_accepts_the_loopback_names(address: str) -> None:
    hosts = accepted_hosts(address)
    assert hosts is not None and {"localhost", "127.0.0.1", "[::1]"} <= hosts and "testserver" not in hosts


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_a_network_server_accepts_any_host_name(address: str) -> None:
    assert accepted_hosts(address) is None


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1:8000:80", 421),
        ("", 421),
    ],
)
def test_unknown_host_names_are_refused(settings: Settings, echo_app: App, host: str, status: int) -> None:
    server = create_app(
        settings.model_copy(update={"hosts": None}), {"echo": echo_app}, hosts=accepted_hosts("127.0.0.1")
    )
    with TestClient(server) as client:
        response = client.get("/api/echo/cases", headers={"Host": host})
        assert response.status_code == status
        assert status == 200 or "TRIVIUM_HOSTS" in response.json()["detail"]


def test_the_settings_name_the_accepted_hosts(serve: Serve) -> None:
    client = serve(hosts="Trivium.example, other.example:8443")
    for host, status in {
        "trivium.example": 200,
        "trivium.example:443": 200,
        "other.example:8443": 200,
        "other.example": 421,
        "testserver": 421,
    }.items():
        assert client.get("/healthz", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://testserver:80"}, 200),
        ({"Origin": "https://testserver", "Host": "testserver:443"}, 200),
        ({"Origin": "http://testserver:8000", "Host": "testserver:8000"}, 200),
        ({"Origin": "http://testserver:3000"}, 403),
        ({"Origin": "http://testserver:3000", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://testserver:port"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_writes_from_other_sites_are_refused(echo_client: TestClient, headers: dict[str, str], status: int) -> None:
    response = echo_client.post("/api/echo/predict", data={"sample": "three"}, headers=headers)
    assert response.status_code == status
    assert status == 200 or "other sites" in response.json()["detail"]
    assert echo_client.get("/api/echo/cases", headers=headers).status_code == 200
