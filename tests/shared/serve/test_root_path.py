"""A server under a path of a reverse proxy: every address in its answers has that path."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient

from shared.app import App
from shared.errors import InvalidInputError
from shared.job_client import JobClient
from shared.serve.app import create_app
from shared.serve.settings import Settings, read_settings
from tests.conftest import serving
from tests.shared.nginx import documented, nginx
from tests.shared.serve.echo import csv, until

ROOT = "/hospital/trivium"


@pytest.fixture
def under(serve: Callable[..., TestClient]) -> TestClient:
    """A client of the server itself, not of the proxy."""
    return serve(root_path=ROOT)


def addresses(document: object) -> list[str]:
    """Every absolute path in a JSON document."""
    return re.findall(r'"(/[a-z][^"]*)"', json.dumps(document))


def test_every_address_in_an_answer_begins_with_the_path(under: TestClient) -> None:
    case = under.post("/api/echo/predict", files=[csv(1)])
    job = under.post("/api/echo/jobs", files=[csv(2)])
    until(lambda: under.get(job.json()["url"]).json()["state"] == "done")
    documents = [
        *(case.json(), job.json(), under.get(job.json()["url"]).json()),
        *(under.get(f"/api/echo/{kind}").json() for kind in ("cases", "jobs")),
        json.loads(under.get(job.json()["events"]).text.partition("data: ")[2].partition("\n")[0]),
    ]
    for document in documents:
        assert addresses(document) and all(address.startswith(f"{ROOT}/api/echo/") for address in addresses(document))
    assert job.headers["Location"] == job.json()["url"]


def test_the_proxy_may_keep_or_strip_the_path(under: TestClient) -> None:
    case = under.post(f"{ROOT}/api/echo/predict", files=[csv(1)]).json()
    for address in (case["picture"], *case["files"].values()):
        assert under.get(address).content == under.get(address.removeprefix(ROOT)).content != b""
    assert under.get(ROOT).status_code == under.get(f"{ROOT}/").status_code == under.get("/").status_code == 200
    assert under.get(f"{ROOT}/static/shared/case.js").status_code == 200
    assert under.get(f"{ROOT}x/").status_code == 404


def test_pages_only_link_below_the_path(under: TestClient) -> None:
    for path in ("/", "/echo", "/docs", "/none"):
        text = under.get(path, headers={"Accept": "text/html"}).text
        found = re.findall(r'(?:href|src)="(/[^"]*)"', text)
        assert found and all(link.startswith(f"{ROOT}/") for link in found), path
        assert f'data-root="{ROOT}"' in text


def test_the_openapi_document_has_the_path(serve: Callable[..., TestClient], tmp_path: Path) -> None:
    assert serve(root_path=ROOT).get("/openapi.json").json()["servers"] == [{"url": ROOT}]
    assert "servers" not in serve(store=tmp_path / "other").get("/openapi.json").json()


def test_a_redirect_for_a_superfluous_slash_keeps_the_path(under: TestClient) -> None:
    led = under.get("/echo/?case=1", follow_redirects=False)
    assert (led.status_code, led.headers["Location"]) == (307, f"{ROOT}/echo?case=1")


@pytest.mark.parametrize("path", ["trivium", "/a b", "//", '/"', "/a//b", "https://a/b", "/..", "/a/./b", "/a\n"])
def test_an_invalid_root_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidInputError, match=r"TRIVIUM_ROOT_PATH: give only the path, such as /trivium$"):
        read_settings(root_path=path)


@pytest.mark.parametrize("path", ["", "/", "/trivium", "/trivium/", "/a/.b/..c"])
def test_a_valid_root_path_is_accepted(path: str) -> None:
    assert read_settings(root_path=path).root == path.rstrip("/")


@pytest.mark.parametrize("path", ["/echo", "/api/trivium", "/static/"])
def test_a_root_path_that_is_a_path_of_the_server_is_refused(settings: Settings, echo_app: App, path: str) -> None:
    with pytest.raises(InvalidInputError, match="TRIVIUM_ROOT_PATH"):
        create_app(settings.model_copy(update={"root_path": path}), {"echo": echo_app})


@pytest.mark.parametrize("passed", ["", "/"])
def test_jobs_are_submitted_and_answers_fetched_behind_nginx(
    settings: Settings, echo_app: App, tmp_path: Path, passed: str
) -> None:
    proxied_settings = settings.model_copy(update={"hosts": None, "root_path": "/trivium/"})
    (tmp_path / "a.csv").write_text("1,2")
    with (
        serving(create_app(proxied_settings, {"echo": echo_app})) as server,
        nginx(
            tmp_path / "nginx", documented(server).partition("location ~")[0].replace(server, server + passed)
        ) as proxy,
    ):
        for base in (f"{proxy}/trivium", server):  # a gateway on the server's own machine asks it directly
            client = JobClient(base, "echo")
            client.check()
            job = client.submit([tmp_path / "a.csv"], {})
            until(lambda client=client, job=job: client.job(job)["state"] == "done")  # type: ignore[misc]
            case = client.case(client.job(job)["case"])
            assert client.file(case["files"]["doubled.csv"]) == b"2.0\n4.0"
            assert httpx.get(urljoin(base, case["picture"])).content.startswith(b"\x89PNG")
        page = httpx.get(f"{proxy}/trivium/echo/", follow_redirects=True)
        assert page.status_code == 200 and str(page.url) == f"{proxy}/trivium/echo"


def test_the_documented_nginx_configuration_restricts_operator_paths_in_any_spelling(
    settings: Settings, echo_app: App, tmp_path: Path
) -> None:
    proxied_settings = settings.model_copy(update={"hosts": None, "root_path": "/trivium"})
    with (
        serving(create_app(proxied_settings, {"echo": echo_app})) as server,
        nginx(tmp_path / "n", documented(server)) as proxy,
        httpx.Client(follow_redirects=True) as client,
    ):
        assert client.get(f"{proxy}/trivium/api/models").status_code == 200
        for path in ("metrics", "healthz", "admin", "api/models/echo/reload", "v2/repository/models/echo/unload"):
            first, _, rest = path.partition("/")
            for written in (
                *(f"/trivium/{path}", f"/trivium//{path}", f"/trivium/{path}/", f"/trivium/trivium/{path}"),
                *(f"//trivium//trivium/{path}", f"/trivium/x/..%2f{path}", f"/trivium%2f{path}", f"/{path}"),
                *(f"/trivium/%{ord(first[0]):x}{path[1:]}", f"/trivium/{first}%2f{rest}"),
            ):
                for method in ("GET", "POST"):
                    found = client.request(method, proxy + written).status_code
                    assert found in (403, 404, 405), (method, written)
