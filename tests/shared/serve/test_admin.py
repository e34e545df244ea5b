"""The operator's page: its content, and who may see it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from shared.serve.metrics import Metrics
from shared.serve.settings import Settings
from shared.store.keys import Keys
from tests.shared.postgresql import PostgreSQL
from tests.shared.serve.echo import Echo, csv, until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a server that is also reached under a host name, through a proxy."""
    return settings.model_copy(update={"hosts": "testserver,localhost"})


@pytest.fixture
def local(echo_client: TestClient) -> TestClient:
    """A client on the server's own machine."""
    return TestClient(echo_client.app, client=("127.0.0.1", 50000), headers={"Host": "localhost:8000"})


def test_the_page_shows_models_latencies_errors_jobs_and_disk(local: TestClient, echo_client: TestClient) -> None:
    before = local.get("/admin")
    assert before.status_code == 200 and "not loaded" in before.text and "None yet." in before.text
    assert echo_client.post("/api/echo/predict", files=[csv(1)]).status_code == 200
    assert echo_client.post("/api/echo/predict", files=[("files", ("bad.csv", b"one"))]).status_code == 422
    job = echo_client.post("/api/echo/jobs", files=[csv(2)]).json()
    until(lambda: echo_client.get(job["url"]).json()["state"] == "done")
    text = local.get("/admin").text
    for words in (
        "echo version 2",
        "idle",
        "1 with 422",
        "1 done",
        "version 1 (retired)",
        "version 2 (live)",
        "GB free",
        "/echo?case=",
    ):
        assert words in text, words
    numbers = '<td class="number">0</td><td class="number">1</td><td class="number">{}</td>'
    assert 0 < text.index(numbers.format(1)) < text.index("(jobs)") < text.index(numbers.format(0))
    assert local.get("/admin").headers["content-security-policy"].startswith("default-src 'self'")


def test_the_page_works_with_postgresql(serve: Callable[..., TestClient], postgresql: PostgreSQL) -> None:
    client = serve(store_url=postgresql.database(), require_key=True)
    key = {"X-Api-Key": Keys(client.app.state.store.engine).add("root", "operator")}  # type: ignore[attr-defined]
    assert client.post("/api/echo/predict", files=[csv(1)], headers=key).status_code == 200
    desk = {"X-Api-Key": Keys(client.app.state.store.engine).add("desk-1", "user", "desk")}  # type: ignore[attr-defined]
    until(lambda: client.post("/api/echo/predict", files=[csv(1)], headers=desk).status_code == 200)
    assert "<tr><td>desk</td>" in client.get("/admin", headers=key).text
    for path in ("/admin", "/metrics", "/healthz", "/", "/api/echo/cases", "/api/echo/jobs", "/api/models"):
        assert client.get(path, headers=key).status_code == 200, path


def test_the_page_shows_the_cases_and_jobs_of_each_group(serve: Callable[..., TestClient], echo: Echo) -> None:
    client = serve(require_key=True)
    keys = Keys(client.app.state.store.engine)  # type: ignore[attr-defined]
    root, desk, lab, anna = (
        {"X-Api-Key": keys.add(name, role, group)}
        for name, role, group in (
            ("root", "operator", None),
            ("desk-1", "user", "desk"),
            ("lab-1", "user", "lab"),
            ("anna", "user", None),
        )
    )
    assert "Waiting jobs" not in client.get("/admin", headers=root).text
    for header in (desk, desk, anna):
        assert client.post("/api/echo/predict", files=[csv(1)], headers=header).status_code == 200
    echo.gate.clear()
    waiting = [client.post("/api/echo/jobs", files=[csv(2)], headers=lab).json()["url"] for _ in range(2)]
    text = client.get("/admin", headers=root).text
    echo.gate.set()
    rows = [
        re.findall(r"<td[^>]*>(?:<a[^>]*>)?([^<]+)", row) for row in text.partition("Waiting jobs")[2].split("<tr>")
    ]
    by_group = {row[0]: (row[2], row[4]) for row in rows if row}
    assert by_group == {"desk": ("2", "0"), "lab": ("0", "2"), "keys without a group": ("1", "0")}
    until(lambda: all(client.get(url, headers=root).json()["state"] == "done" for url in waiting))


def test_clients_that_are_not_operators_do_not_see_the_page(
    echo_client: TestClient, serve: Callable[..., TestClient]
) -> None:
    for client in (echo_client, TestClient(echo_client.app, client=("192.0.2.7", 50000))):
        response = client.get("/admin", headers={"Accept": "text/html"})
        assert response.status_code == 403 and "own machine" in response.text


@pytest.mark.parametrize(
    "headers",
    [{"Host": "testserver"}, {"X-Real-IP": "192.0.2.7"}, {"Forwarded": "for=192.0.2.7"}, {"Via": "1.1 proxy"}],
)
def test_a_request_through_a_local_proxy_is_not_local(local: TestClient, headers: dict[str, str]) -> None:
    assert local.get("/admin").status_code == 200
    assert local.get("/admin", headers=headers).status_code == 403


def test_latency_quantiles_equal_those_of_prometheus() -> None:
    metrics = Metrics().of("m", "1")
    assert metrics.latency_quantile_s(0.5) is None
    for seconds in (0.02, 0.02, 0.02, 0.08, 50_000):
        metrics.observe_answer(request_s=seconds, input_s=0, output_s=0)
    assert metrics.latency_quantile_s(0.5) == pytest.approx(0.01 + 0.015 * 2.5 / 3)
    assert metrics.latency_quantile_s(0.8) == pytest.approx(0.1)
    assert metrics.latency_quantile_s(0.99) == 21600, "above the last bound, that bound"
