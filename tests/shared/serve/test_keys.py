"""Keys: access on a server that requires them, roles, and how soon a revoked key is refused."""

from __future__ import annotations

import base64
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from shared import cli
from shared.errors import InvalidInputError
from shared.secure.access import digest_of
from shared.serve import known_keys
from shared.serve.app import create_app
from shared.serve.known_keys import KnownKeys
from shared.serve.oip.grpc_messages import PACKAGE, message
from shared.serve.server import report_startup
from shared.serve.settings import Settings
from shared.store.backup import backup
from shared.store.cases import CaseStore
from shared.store.keys import Keys
from tests.conftest import serving
from tests.shared.postgresql import PostgreSQL
from tests.shared.serve.echo import Echo, csv, make_app, until

PROBES = ("/healthz", "/v2/health/live", "/v2/health/ready")


@pytest.fixture
def keyed(serve: Callable[..., TestClient], settings: Settings) -> TestClient:
    """A client, without a key, of a server that requires one."""
    return serve(require_key=True)


def add(client: TestClient, name: str, role: str = "user") -> dict[str, str]:
    """The header of a new key."""
    return bearer(Keys(client.app.state.store.engine).add(name, role))  # type: ignore[attr-defined, arg-type]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(name: str, key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{key}".encode()).decode()}


def test_only_health_probes_are_answered_without_a_key(keyed: TestClient) -> None:
    paths = [
        *("/", "/echo", "/docs", "/openapi.json", "/admin", "/metrics", "/none", "/static/shared/case.js", "/v2"),
        *("/api/echo/cases", "/api/echo/samples", "/api/models", "/v2/models/echo", "//healthz", "/healthz/"),
    ]
    documented_paths = set(keyed.app.openapi()["paths"])  # type: ignore[attr-defined]
    assert set(PROBES) <= documented_paths and len(documented_paths) > 20
    for path in {*paths, *documented_paths} - set(PROBES):
        for method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS"):
            response = keyed.request(method, path)
            assert response.status_code == 401, (method, path)
    assert response.headers.get_list("WWW-Authenticate")[0] == 'Bearer realm="Trivium"'
    for path in PROBES:
        assert keyed.get(path).status_code in (200, 503)
        assert keyed.post(path).status_code == 401
    assert keyed.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer x", "Basic", "Basic x", "Basic eA==", "Basic /w==", "Digest a:b", "Bearer é"],
)
def test_an_invalid_key_is_refused_with_a_sentence(keyed: TestClient, authorization: str) -> None:
    add(keyed, "anna")
    response = keyed.get("/api/echo/cases", headers={"Authorization": authorization.encode("latin-1")})
    assert response.status_code == 401 and "TRIVIUM_KEY" in response.json()["detail"]
    assert "TRIVIUM_KEY" in keyed.get("/v2", headers={"Authorization": authorization.encode("latin-1")}).json()["error"]


def test_a_browser_gets_a_refusal_as_a_page_with_a_language_and_a_heading(keyed: TestClient) -> None:
    page = keyed.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 401 and page.text.startswith('<!doctype html><html lang="en">')
    assert "<h1>The request failed</h1>" in page.text and "enter the key as the password" in page.text


def test_a_key_may_be_sent_as_x_api_key_behind_a_proxy(keyed: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    key = add(keyed, "anna")["Authorization"].removeprefix("Bearer ")
    proxy_s = basic("anna", "password of the proxy's")
    with caplog.at_level(logging.INFO):
        assert keyed.get("/api/echo/cases", headers={"X-Api-Key": key}).status_code == 200
        assert keyed.get("/api/echo/cases", headers={"X-Api-Key": key, **proxy_s}).status_code == 200
        assert keyed.get("/healthz", headers={"X-Api-Key": key}).json()["apps"]
        for wrong in ("x", "", " ", key + "x"):
            assert keyed.get("/api/echo/cases", headers={"X-Api-Key": wrong, **proxy_s}).status_code == 401
    assert "X-Api-Key" in keyed.get("/api/echo/cases").json()["detail"] and key not in caplog.text


def test_a_user_predicts_and_reads_and_an_operator_also_changes_models(keyed: TestClient) -> None:
    user, operator = add(keyed, "user"), add(keyed, "operator", "operator")
    response = keyed.post("/api/echo/predict", files=[csv(1)], headers=user)
    assert response.status_code == 200
    assert keyed.get(response.json()["picture"], headers=user).status_code == 200
    assert keyed.get("/healthz", headers=user).json()["apps"]["echo"]["predictor"] == "loaded"
    changes = [
        *(("GET", "/admin", {}), ("GET", "/metrics", {})),
        *(
            ("POST", f"/api/models/echo/{action}", {"version": 1})
            for action in ("promote", "retire", "rollback", "reload")
        ),
        *(("POST", f"/v2/repository/models/echo/{action}", {}) for action in ("load", "unload")),
    ]
    for method, path, body in changes:
        forbidden = keyed.request(method, path, json=body or None, headers=user)
        assert forbidden.status_code == 403 and "operator" in forbidden.text, path
        assert keyed.request(method, path, json=body or None, headers=operator).status_code in (200, 409), path
    assert keyed.get("/api/models", headers=user).status_code == 200


def test_a_browser_sends_the_key_as_a_password_and_other_sites_cannot_use_it(keyed: TestClient) -> None:
    key = add(keyed, "anna")["Authorization"].removeprefix("Bearer ")
    page = keyed.get("/echo", headers=basic("anna", key))
    assert page.status_code == 200 and "<form" in page.text
    response = keyed.get("/echo", headers={"Accept": "text/html"})
    assert any(scheme.startswith("Basic ") for scheme in response.headers.get_list("WWW-Authenticate"))
    assert response.headers["content-type"].startswith("text/html")
    assert "reload the page and enter the key as the password" in response.text
    revoked = {"Trivium-Interface": "form", **basic("anna", "trv_revoked")}
    detail = keyed.post("/api/echo/predict", files=[csv(1)], headers=revoked).json()["detail"]
    assert "reload the page and enter the key as the password" in detail
    foreign = {"Origin": "https://elsewhere.example", **basic("anna", key)}
    assert keyed.post("/api/echo/predict", files=[csv(1)], headers=foreign).status_code == 403


def test_the_log_has_the_name_of_the_key_but_not_the_key(keyed: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    header = add(keyed, "anna")
    with caplog.at_level(logging.INFO):
        keyed.get("/api/echo/cases", headers=header)
        keyed.get("/api/echo/cases")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "trivium.access"]
    assert [(line["status"], line.get("key")) for line in lines] == [(200, "anna"), (401, None)]
    assert header["Authorization"].removeprefix("Bearer ") not in caplog.text


def test_a_revoked_key_is_refused_after_seconds_and_requests_do_not_read_the_database(
    keyed: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s, reads = [1000.0], []
    all_keys = Keys.all
    monkeypatch.setattr(known_keys.time, "monotonic", lambda: clock_s[0])
    monkeypatch.setattr(Keys, "all", lambda self: reads.append(1) or all_keys(self))
    header = add(keyed, "anna")
    assert {keyed.get("/api/models", headers=header).status_code for _ in range(5)} == {200}
    assert len(reads) == 1
    Keys(keyed.app.state.store.engine).revoke("anna")  # type: ignore[attr-defined]
    clock_s[0] += 2.0
    assert keyed.get("/api/models", headers=header).status_code == 401
    assert len(reads) == 2


def test_an_expired_key_cache_is_not_used_during_a_database_outage(
    keyed: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = add(keyed, "anna")

    def gone(_: Keys) -> None:
        raise OperationalError("SELECT", {}, sqlite3.OperationalError("gone"))

    monkeypatch.setattr(Keys, "all", gone)
    response = keyed.get("/v2/models/echo", headers=header)
    assert response.status_code == 503 and response.headers["Retry-After"] and "keys" in response.json()["error"]
    assert keyed.get("/v2/health/live", headers=header).status_code == 200


def test_a_key_revoked_on_one_server_is_refused_by_another(postgresql: PostgreSQL, tmp_path: Path) -> None:
    url = postgresql.database()
    with (
        closing(CaseStore(tmp_path / "s", url)) as first_store,
        closing(CaseStore(tmp_path / "s", url)) as second_store,
    ):
        key = Keys(first_store.engine).add("anna", "user")
        assert Keys(second_store.engine).all()[0].digest == digest_of(key)
        with pytest.raises(InvalidInputError, match="already"):
            Keys(second_store.engine).add("anna", "operator")
        Keys(second_store.engine).revoke("anna")
        assert Keys(first_store.engine).all() == ()
        with pytest.raises(InvalidInputError, match="no key"):
            Keys(first_store.engine).revoke("anna")


def test_the_openapi_document_has_the_security_scheme_if_a_key_is_required(keyed: TestClient) -> None:
    anna = add(keyed, "anna")
    found = keyed.get("/openapi.json", headers=anna).json()
    schemes = found["components"]["securitySchemes"]
    assert {name: scheme | {"description": ""} for name, scheme in schemes.items()} == {
        "key": {"type": "http", "scheme": "bearer", "description": ""},
        "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": ""},
    }
    assert (
        found["security"] == [{"key": []}, {"header": []}]
        and "401" in found["paths"]["/api/echo/predict"]["post"]["responses"]
    )
    assert keyed.get("/metrics", headers=anna).status_code == 403
    assert "403" in found["paths"]["/metrics"]["get"]["responses"]
    assert found["paths"]["/v2/health/live"]["get"]["security"] == [{}, {"key": []}, {"header": []}]


def test_without_require_key_no_key_is_required_or_documented(echo_client: TestClient) -> None:
    assert echo_client.get("/api/models", headers=bearer("anything")).status_code == 200
    found = echo_client.get("/openapi.json").json()
    assert "security" not in found and "securitySchemes" not in found["components"]
    assert echo_client.get("/healthz").json()["apps"]


@pytest.fixture
def over_grpc(tmp_path: Path) -> Iterator[tuple[grpc.Channel, Keys]]:
    """A channel to a server that requires keys, and its keys."""
    settings = Settings(
        store=tmp_path / "store", device="cpu", workers=0, warm=False, grpc_port=0, require_key=True, upload_s=5
    )
    echo = Echo()
    echo.gate.set()
    application = create_app(settings, {"echo": make_app(tmp_path / "echo", echo)})
    with serving(application), grpc.insecure_channel(f"127.0.0.1:{application.state.grpc_port}") as channel:
        yield channel, Keys(application.state.store.engine)


def as_bearer(key: str) -> tuple[str, str]:
    return "authorization", f"Bearer {key}"


def as_header(key: str) -> tuple[str, str]:
    return "x-api-key", key


def call(
    channel: grpc.Channel,
    method: str,
    key: str | None = None,
    metadata_of: Callable[[str], tuple[str, str]] = as_bearer,
    **fields: str,
) -> grpc.StatusCode:
    """The status of a call."""
    send = channel.unary_unary(
        f"/{PACKAGE}.GRPCInferenceService/{method}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=message(f"{method}Response").FromString,
    )
    metadata = () if key is None else (metadata_of(key),)
    try:
        send(message(f"{method}Request")(**fields), metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_grpc_requires_the_key_in_the_metadata(
    over_grpc: tuple[grpc.Channel, Keys], caplog: pytest.LogCaptureFixture
) -> None:
    channel, keys = over_grpc
    user, operator = keys.add("user", "user"), keys.add("operator", "operator")
    of_group = keys.add("desk-1", "user", "desk")
    assert call(channel, "ServerLive") == grpc.StatusCode.OK
    for key, found in ((None, "UNAUTHENTICATED"), ("trv_x", "UNAUTHENTICATED"), (user, "OK")):
        for metadata_style in (as_bearer, as_header):
            assert call(channel, "ModelMetadata", key, metadata_style, name="echo").name == found
    assert call(channel, "RepositoryModelUnload", user, model_name="echo").name == "PERMISSION_DENIED"
    for key, found in ((user, "OK"), (of_group, "PERMISSION_DENIED")):
        assert call(channel, "ModelStatistics", key, name="echo").name == found, "the counters are of all groups"
    with caplog.at_level(logging.INFO, "trivium.access"):
        assert call(channel, "RepositoryModelUnload", operator, model_name="echo").name == "OK"
        until(lambda: any('"key": "operator"' in record.message for record in caplog.records))


def test_a_stream_over_grpc_ends_without_a_key_and_each_request_of_it_is_logged(
    over_grpc: tuple[grpc.Channel, Keys], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trivium.access")
    channel, keys = over_grpc
    stream = channel.stream_stream(
        f"/{PACKAGE}.GRPCInferenceService/ModelStreamInfer",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=message("ModelStreamInferResponse").FromString,
    )
    requests = [message("ModelInferRequest")(model_name="none")]
    with pytest.raises(grpc.RpcError) as raised:
        list(stream(iter(requests)))
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    metadata = (("authorization", f"Bearer {keys.add('anna', 'user')}"),)
    answers = list(stream(iter(requests * 2), metadata=(*metadata, ("x-request-id", "r7"))))
    assert len(answers) == 2 and all("no model" in answer.error_message for answer in answers)
    lines = [json.loads(record.message) for record in caplog.records if "ModelStreamInfer" in record.message]
    assert [(line["status"], line.get("key")) for line in lines] == [(401, None), (404, "anna"), (404, "anna")]
    assert [line["request"] for line in lines[1:]] == ["r7", "r7"]


def test_keys_are_added_listed_and_revoked_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIVIUM_STORE", str(tmp_path / "store"))
    assert cli.main(["keys", "list"]) == 2, "no store exists yet"
    assert cli.main(["keys", "add", "pacs-1"]) == 0
    first = capsys.readouterr()
    assert str(tmp_path / "store") in first.err and "store is new" in first.err
    assert cli.main(["keys", "add", "anna", "--role", "operator"]) == 0
    second = capsys.readouterr()
    assert str(tmp_path / "store") in second.err and "new" not in second.err
    keys = (first.out + second.out).split()
    assert len(keys) == 2 and all(key.startswith("trv_") and len(key) > 40 for key in keys)
    for words in (["add", "pacs-1"], ["add", "a b"], ["add"], ["list", "anna"], ["revoke"], ["revoke", "none"]):
        assert cli.main(["keys", *words]) == 2, words
    assert cli.main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert "anna" in listed and "operator" in listed and not any(key in listed for key in keys)
    assert cli.main(["keys", "list", "--store", str(tmp_path / "other")]) == 2, "no store exists there"
    monkeypatch.delenv("TRIVIUM_STORE")
    assert cli.main(["keys", "revoke", "anna", "--store", str(tmp_path / "store")]) == 0
    stored = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert not any(key.encode() in stored for key in keys) and digest_of(keys[0]).encode() in stored
    assert digest_of(keys[1]).encode() not in stored


def test_backups_contain_no_keys(tmp_path: Path) -> None:
    with closing(CaseStore(tmp_path / "store")) as store:
        digest = digest_of(Keys(store.engine).add("anna", "user"))
        backup(store.engine, store.folder, tmp_path / "b.tar")
    assert digest.encode() not in (tmp_path / "b.tar").read_bytes()


def test_the_commands_read_the_key_from_the_environment(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = create_app(
        settings.model_copy(update={"hosts": None, "require_key": True}), {"echo": make_app(tmp_path / "e", Echo())}
    )
    with serving(server) as address:
        assert cli.main(["versions", "--server", address]) == 2
        assert "TRIVIUM_KEY" in capsys.readouterr().err
        monkeypatch.setenv("TRIVIUM_KEY", Keys(server.state.store.engine).add("anna", "user"))
        assert cli.main(["versions", "--server", address]) == 0
        assert cli.main(["versions", "echo", "--promote", "1", "--server", address]) == 2
        assert "operators" in capsys.readouterr().err
        monkeypatch.setenv("TRIVIUM_AUTHORIZATION", "Basic abc")
        assert cli.main(["versions", "--server", address]) == 0


@pytest.mark.parametrize(
    ("host", "require", "key", "message_text"),
    [
        ("127.0.0.1", False, False, ""),
        ("0.0.0.0", False, False, "TRIVIUM_REQUIRE_KEY"),
        ("0.0.0.0", True, False, "trivium keys add"),
        ("0.0.0.0", True, True, ""),
    ],
)
def test_a_server_that_is_reachable_without_keys_warns_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str, require: bool, key: bool, message_text: str
) -> None:
    with closing(CaseStore(tmp_path / "store")) as store:
        keys = Keys(store.engine)
        if key:
            keys.add("anna", "user")
        settings = Settings(host=host, require_key=require)
        report_startup("http://127.0.0.1:1", {}, settings, KnownKeys(keys) if require else None, demo=False)
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == bool(message_text) and message_text in "".join(warned)
