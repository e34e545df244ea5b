"""Reviews of cases over HTTP: kept, replaced, listed, and deleted with their case."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.serve.app import create_app
from shared.serve.settings import Settings
from shared.store.keys import Keys
from tests.browser.medical_site import medical_app
from tests.shared.serve.echo import csv


def new_case(client: TestClient) -> str:
    """The address of the review of a new case."""
    return f"/api/echo/cases/{client.post('/api/echo/predict', files=[csv(1, 2)]).json()['case']}/review"


def test_a_review_is_kept_until_the_same_reviewer_replaces_it(echo_client: TestClient) -> None:
    home = new_case(echo_client)
    assert echo_client.get(home).json()["reviews"] == []
    first = echo_client.put(home, json={"reviewer": " Ada ", "verdicts": {"1": "rejected"}, "note": "noise"})
    assert first.status_code == 200
    assert echo_client.put(home, json={"verdicts": {"1": "accepted"}}).json()["reviewer"] is None
    second = echo_client.put(home, json={"reviewer": "Ada", "verdicts": {}}).json()
    assert second["verdicts"] == {} and second["note"] == ""
    found = echo_client.get(home).json()
    assert found["reviews"][0] == second and found["reviewer"] is None
    assert [(review["reviewer"], review["verdicts"]) for review in found["reviews"]] == [
        ("Ada", {}),
        (None, {"1": "accepted"}),
    ]
    (line,) = echo_client.get("/api/echo/cases").json()["cases"]
    assert line["reviews"] == [
        {"reviewer": review["reviewer"], "reviewed": review["reviewed"]} for review in found["reviews"]
    ]
    assert line["label"].startswith(line["inputs"][0])
    assert "reviewed by Ada" in echo_client.get("/").text
    assert echo_client.delete(home, params={"reviewer": "Ada"}).status_code == 204
    assert [review["reviewer"] for review in echo_client.get(home).json()["reviews"]] == [None]


def test_replacing_a_review_that_was_not_read_is_refused(echo_client: TestClient) -> None:
    home = new_case(echo_client)
    first = echo_client.put(home, json={"reviewer": "Ada", "verdicts": {"1": "accepted"}, "replaces": None})
    assert first.status_code == 200
    read = first.json()["reviewed"]
    for replaces in (None, "2020-01-01T00:00:00.000Z"):
        response = echo_client.put(home, json={"reviewer": "Ada", "verdicts": {}, "replaces": replaces})
        assert response.status_code == 412
        assert response.json()["detail"] == "the reviewer's review has changed meanwhile; read it again first"
    # The review of another reviewer is not replaced.
    assert echo_client.put(home, json={"reviewer": "Grace", "replaces": None}).status_code == 200
    second = echo_client.put(home, json={"reviewer": "Ada", "verdicts": {"1": "rejected"}, "replaces": read})
    assert second.status_code == 200
    verdicts = {review["reviewer"]: review["verdicts"] for review in echo_client.get(home).json()["reviews"]}
    assert verdicts == {"Ada": {"1": "rejected"}, "Grace": {}}
    assert echo_client.put(home, json={"reviewer": "Ada", "replaces": 5}).status_code == 422
    assert echo_client.delete(home, params={"reviewer": "Ada"}).status_code == 204
    assert echo_client.put(home, json={"reviewer": "Ada", "replaces": read}).status_code == 412


def test_a_body_with_another_content_type_is_refused_and_the_type_named(echo_client: TestClient) -> None:
    kind = "application/x-www-form-urlencoded"  # as curl -d sends it
    response = echo_client.put(new_case(echo_client), content='{"verdicts": {}}', headers={"Content-Type": kind})
    assert response.status_code == 422
    assert response.json()["detail"] == (
        f"the request cannot be read: its content type is {kind}; send JSON as application/json"
    )


def test_the_overview_names_the_newest_of_many_reviewers(echo_client: TestClient) -> None:
    home = new_case(echo_client)
    for name in ("Ada", "Grace", "Lin", "Kim", "Sam"):
        assert echo_client.put(home, json={"reviewer": name}).status_code == 200
    assert "reviewed by Sam, Kim, Lin and 2 more" in echo_client.get("/").text


def test_a_name_on_the_overview_does_not_change_the_direction_of_text_beside_it(echo_client: TestClient) -> None:
    """Neither a name in Hebrew or Arabic nor a Unicode mark that makes the following text run from right to left."""
    home = new_case(echo_client)
    for name in ("Ada \u202egnol\u2069", "\u05e9\u05e8\u05d4", "\u0633\u0627\u0631\u0629\u202e"):
        assert echo_client.put(home, json={"reviewer": name}).status_code == 200
    isolated_names = "\u2068\u0633\u0627\u0631\u0629\u2069, \u2068\u05e9\u05e8\u05d4\u2069, Ada gnol"
    assert f"reviewed by {isolated_names}" in echo_client.get("/").text


def test_if_keys_are_required_the_reviewer_is_the_name_of_the_key(serve: Callable[..., TestClient]) -> None:
    client = serve(require_key=True)
    keys = Keys(client.app.state.store.engine)  # type: ignore[attr-defined]
    ada, grace = ({"Authorization": f"Bearer {keys.add(name, 'user')}"} for name in ("ada", "grace"))
    client.headers.update(ada)
    home = new_case(client)
    assert client.put(home, json={"verdicts": {"1": "rejected"}}).json()["reviewer"] == "ada"
    client.headers.update(grace)
    response = client.put(home, json={"reviewer": "ada", "verdicts": {}})
    assert response.status_code == 422
    assert response.json()["detail"] == "the name of the key, 'grace', is the reviewer; leave reviewer out"
    assert client.delete(home, params={"reviewer": "ada"}).status_code == 422
    assert client.put(home, json={"verdicts": {"1": "accepted"}}).json()["reviewer"] == "grace"
    found = client.get(home).json()
    assert found["reviewer"] == "grace"
    assert [review["reviewer"] for review in found["reviews"]] == ["grace", "ada"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ('{"verdicts": {"2": "accepted"}}', "the case has no finding 2; it has one finding, number 1"),
        ('{"verdicts": {"0": "accepted"}}', "body.verdicts.0"),
        ('{"verdicts": {"1": "maybe"}}', "body.verdicts.1"),
        ('{"missed": [{"x": 1}]}', "reviews of echo take only verdicts and a note, no missed findings"),
        ('{"reviewer": "a\\u0000b"}', "body.reviewer"),
        ('{"reviewer": "' + "a" * 65 + '"}', "body.reviewer"),
        ('{"note": "' + "a" * 2001 + '"}', "body.note"),
        ('{"note": "\\ud800"}', "body.note"),
        ('{"verdict": {}}', "body.verdict"),
        ("[", "body"),
    ],
)
def test_an_invalid_review_is_refused_with_a_message(echo_client: TestClient, body: str, sentence: str) -> None:
    home = new_case(echo_client)
    response = echo_client.put(home, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422 and sentence in response.json()["detail"]
    assert echo_client.get(home).json()["reviews"] == []


def test_a_body_larger_than_a_review_is_refused(echo_client: TestClient) -> None:
    response = echo_client.put(new_case(echo_client), content=b" " * (1 << 20) + b"{}")
    assert response.status_code == 413 and "1024 KiB" in response.json()["detail"]


def test_reviews_are_deleted_with_their_case(echo_client: TestClient, settings: Settings) -> None:
    for removal in ("deleted", "expired"):
        home = new_case(echo_client)
        assert echo_client.put(home, json={"verdicts": {"1": "accepted"}}).status_code == 200
        if removal == "deleted":
            assert echo_client.delete(home.removesuffix("/review")).status_code == 204
        else:
            echo_client.app.state.store.expire("echo", number=0)  # type: ignore[attr-defined]
        assert echo_client.get(home).status_code == echo_client.put(home, json={}).status_code == 404
        with closing(sqlite3.connect(settings.store / "trivium.sqlite")) as database:
            assert database.execute("SELECT COUNT(*) FROM reviews").fetchone() == (0,)


def test_a_case_that_is_not_stored_cannot_be_reviewed(serve: Callable[..., TestClient]) -> None:
    client = serve(keep_bytes=1)
    response = client.put(new_case(client), json={"verdicts": {"1": "accepted"}})
    assert response.status_code == 409 and "the case cannot be reviewed: the answer was" in response.json()["detail"]


def test_a_case_whose_result_was_deleted_is_not_reviewed(echo_client: TestClient, settings: Settings) -> None:
    home = new_case(echo_client)
    for folder in (settings.store / "cases").iterdir():
        shutil.rmtree(folder)
    response = echo_client.put(home, json={})
    assert response.status_code == 404 and "is gone from the store" in response.json()["detail"]


@pytest.fixture(scope="module")
def medical(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, str]]:
    """A server whose predictor finds two nodules, and the address of such a case's review."""
    root = tmp_path_factory.mktemp("medical")
    settings = Settings(store=root / "store", device="cpu", workers=0, warm=False, hosts="testserver")
    with TestClient(create_app(settings, {"medical": medical_app(root)})) as client:
        case = client.post("/api/medical/predict", data={"sample": "chest"}).json()["case"]
        yield client, f"/api/medical/cases/{case}/review"


def test_the_application_defines_the_fields_of_a_missed_finding(medical: tuple[TestClient, str]) -> None:
    client, home = medical
    missed = [{"centre_lps_mm": [10, 20.5, -350], "diameter_mm": 6.5}]
    review = {"verdicts": {"2": "rejected", "1": "accepted"}, "missed": missed}
    assert client.put(home, json=review).json()["missed"] == missed
    (found,) = client.get(home).json()["reviews"]
    assert found["missed"] == missed and found["verdicts"] == {"1": "accepted", "2": "rejected"}


@pytest.mark.parametrize(
    ("missed", "sentence"),
    [
        ({"centre_lps_mm": [0, 0], "diameter_mm": 5}, "missed.centre_lps_mm: List should have at least 3"),
        ({"centre_lps_mm": [0, 0, -350], "diameter_mm": 0}, "missed.diameter_mm"),
        ({"centre_lps_mm": [0, 0, -350], "diameter_mm": float("nan")}, "missed.diameter_mm"),
        ({"centre_lps_mm": [0, 0, 1e300], "diameter_mm": 5}, "missed.centre_lps_mm.2"),
        ({"centre_lps_mm": [0, 0, "-350"], "diameter_mm": 5}, "missed.centre_lps_mm.2"),
        ({"centre_lps_mm": [0, 0, -350], "diameter_mm": 5, "name": "A^B"}, "missed.name"),
        ({"centre_lps_mm": [0, 0, 350], "diameter_mm": 5}, "nodule at 0, 0, 350 mm is outside the scan"),
    ],
)
def test_an_invalid_missed_finding_is_refused(
    medical: tuple[TestClient, str], missed: dict[str, Any], sentence: str
) -> None:
    client, home = medical
    body = json.dumps({"missed": [missed]})
    response = client.put(home, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422 and sentence in response.json()["detail"]


def test_an_empty_answer_to_a_deletion_has_no_content_type(echo_client: TestClient) -> None:
    home = new_case(echo_client)
    for address in (home, home.removesuffix("/review")):
        answer = echo_client.delete(address)
        assert (answer.status_code, answer.content) == (204, b"") and "content-type" not in answer.headers, address
