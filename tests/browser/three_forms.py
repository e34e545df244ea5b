"""A user's walk through the three forms, independent of how the server is reached."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from shared.app import App
from tests.browser.medical_site import medical_app
from tests.browser.test_driving_form import driving_app, write_two_frames
from tests.browser.test_finance_form import finance_app

VIEWERS = {"medical": ".slices canvas", "driving": "canvas", "finance": ".chart canvas"}


def three_apps(root: Path) -> dict[str, App]:
    """The three applications with the fast predictors of the other browser tests."""
    factories = {"medical": medical_app, "driving": driving_app, "finance": finance_app}
    for name in factories:
        (root / name).mkdir()
    write_two_frames(root / "driving" / "frames")
    return {name: make_app(root / name) for name, make_app in factories.items()}


def go_through(page: Page, address: str) -> None:
    """For each application: analyses a sample, views the result, reopens its case and downloads a file.

    Then sends a request from the API documentation and checks the list of recent cases.
    """
    for app, viewer in VIEWERS.items():
        page.goto(f"{address}/")
        page.locator(f"#{app}-title").get_by_role("link").click()
        page.wait_for_load_state("load")  # a click before the scripts are loaded does nothing
        page.locator("[data-sample]").first.click()
        expect(page).to_have_url(re.compile(rf"{re.escape(address)}/{app}\?case=[0-9a-f]{{32}}$"))
        expect(page.locator(viewer).first).to_be_visible()
        page.reload()
        expect(page.locator(viewer).first).to_be_visible()
        page.wait_for_load_state("networkidle")
        expect(page.locator("[data-error]")).to_be_hidden()
        page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        with page.expect_download() as download:
            page.locator("a[download]").first.click()
        assert Path(download.value.path()).stat().st_size > 0, app
    page.goto(f"{address}/docs")
    page.locator("#operations-Server-models").get_by_role("button").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table")).to_contain_text("untrained")
    page.get_by_role("link", name="Overview").click()
    expect(page.locator(".recent li")).to_have_count(len(VIEWERS))
