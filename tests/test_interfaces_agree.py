"""The command line, the JSON route and the form give the same result and the same errors for the same input."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2 as httpx
import pytest
from playwright.sync_api import Page

from apps.medical.adapters.nifti import nifti
from shared import cli
from shared.app import installed
from tests.apps.medical.chests import chest

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

APPS = ("medical", "driving", "finance")
FINDINGS_KEYS = {"medical": "findings", "driving": "boxes", "finance": "events"}


@pytest.fixture(scope="session", params=APPS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """An application and the files of its synthetic sample, but a small chest instead of the phantom."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "medical":
        (folder / "chest.nii.gz").write_bytes(nifti(chest()))
        return request.param, [folder / "chest.nii.gz"]
    sample = next(sample for sample in installed()[request.param].samples() if sample.synthetic)
    return request.param, list(sample.files(folder))


def uploads(files: list[Path]) -> list[Path]:
    """The files to choose in a form: the given files, and all files of the given folders."""
    return [
        file
        for path in files
        for file in (sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])
    ]


@pytest.mark.browser
def test_command_route_and_form_give_the_same_result(case, server: str, page: Page, tmp_path: Path):
    app, files = case
    upload_files = uploads(files)
    assert cli.main(["predict", app, *map(str, upload_files), "--out", str(tmp_path / "out")]) == 0
    by_command = json.loads((tmp_path / "out" / "result.json").read_text())
    assert by_command[FINDINGS_KEYS[app]], "the shipped weights find nothing in the synthetic sample"
    assert (tmp_path / "out" / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    parts = [("files", (path.name, path.read_bytes())) for path in upload_files]
    json_response = httpx.post(f"{server}/api/{app}/predict", files=parts, timeout=120)
    assert json_response.status_code == 200, json_response.text
    assert json_response.json()["result"] == by_command

    page.goto(f"{server}/{app}")
    with page.expect_response(lambda response: response.url.endswith(f"/api/{app}/predict")) as response_info:
        page.set_input_files("input[type=file]", [str(path) for path in upload_files])
        page.click("[data-case-form] button[type=submit]")
    by_form = response_info.value.json()
    assert by_form["result"] == by_command
    assert by_form["interface"] == "form" and json_response.json()["interface"] == "json"
    page.locator("#result > *").first.wait_for()


@pytest.mark.parametrize("app", APPS)
def test_command_and_route_refuse_invalid_input_with_the_same_message(app, server, tmp_path, capsys):
    bad = tmp_path / "letter.txt"
    bad.write_text("Dear sir or madam,\n")
    assert cli.main(["predict", app, str(bad), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "letter.txt" in message
    assert not (tmp_path / "out").exists() and sorted(tmp_path.iterdir()) == [bad]
    response = httpx.post(
        f"{server}/api/{app}/predict", files=[("files", ("letter.txt", bad.read_bytes()))], timeout=120
    )
    assert 400 <= response.status_code < 500
    assert message.strip().replace(str(bad), bad.name) == f"trivium: {response.json()['detail']}"
