"""HEAD requests, as monitors and download tools send them: the headers of GET, and no body."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import httpx2 as httpx

from shared.app import App
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.conftest import serving
from tests.shared.serve.echo import csv


def test_head_is_answered_like_get_without_a_body(settings: Settings, echo_app: App) -> None:
    with (
        serving(create_app(settings.model_copy(update={"hosts": None}), {"echo": echo_app})) as address,
        httpx.Client(base_url=address) as client,
    ):
        case = client.post("/api/echo/predict", files=[csv(1)], data={"later": "yes"}).json()
        paths = ["/healthz", "/metrics", "/v2/health/live", "/v2/health/ready", case["url"], case["picture"]]
        same = {"content-type", "content-length", "content-security-policy", "cache-control"}
        for path in [*paths, *case["files"].values()]:
            head, get = client.head(path), client.get(path)
            assert head.status_code == get.status_code == 200, path
            varying = {"content-length"} if path in ("/metrics", "/healthz") else set()
            for name in same - varying:
                assert head.headers.get(name) == get.headers.get(name), (path, name)
        assert client.head("/api/echo/cases/none").status_code == 404
        assert client.head("/api/echo/predict").status_code == 405
        # No body precedes the next answer on the connection.
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        connection.request("HEAD", case["picture"])
        assert connection.getresponse().read() == b""
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
        connection.close()
        assert not [
            operations for operations in client.get("/openapi.json").json()["paths"].values() if "head" in operations
        ]
