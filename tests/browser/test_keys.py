"""The forms of a server that requires a key: the browser asks for it once and sends it with every request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, expect

from shared.serve.app import create_app
from shared.serve.settings import Settings
from shared.store.keys import Keys
from tests.browser.three_forms import go_through, three_apps
from tests.conftest import serving, watched_page

pytestmark = [
    pytest.mark.browser,
    # pytorch-forecasting and Lightning warn when they are imported and when a network is built.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    root = tmp_path_factory.mktemp("keys")
    settings = Settings(store=root / "store", warm=False, device="cpu", require_key=True)
    return create_app(settings, three_apps(root))


@pytest.fixture(scope="module")
def address(application: FastAPI) -> Iterator[str]:
    with serving(application) as server_address:
        yield server_address


def test_an_operator_can_use_forms_viewers_files_jobs_and_the_server_page(
    browser: Browser, application: FastAPI, address: str
) -> None:
    key = Keys(application.state.store.engine).add("anna", "operator")
    with watched_page(browser, http_credentials={"username": "anna", "password": key}) as page:
        go_through(page, address)
        page.get_by_role("link", name="Server").click()
        expect(page.locator("main")).to_contain_text("is running")


def test_a_wrong_key_is_refused_with_an_explanation(browser: Browser, address: str, tmp_path: Path) -> None:
    with watched_page(browser, http_credentials={"username": "anna", "password": "trv_wrong"}) as page:
        page.expected_errors += ["401"]  # type: ignore[attr-defined]
        assert page.goto(f"{address}/finance").status == 401  # type: ignore[union-attr]
        expect(page.locator("body")).to_contain_text("enter the key as the password")
