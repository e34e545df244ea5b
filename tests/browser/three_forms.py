"""A person's way through the three forms, on a server however it is reached."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from shared.app import App
from tests.browser.medical_site import medical_app
from tests.browser.test_driving_form import driving_app, write_two_frames
from tests.browser.test_finance_form import finance_app

VIEWERS = {"medical": ".slices canvas", "driving": "canvas", "finance": ".chart canvas"}
PATIENCE_MS = 60_000


def three_apps(root: Path) -> dict[str, App]:
    """The applications whose forms the other tests here look at, with answers that are there at once."""
    made = {"medical": medical_app, "driving": driving_app, "finance": finance_app}
    for name in made:
        (root / name).mkdir()
    write_two_frames(root / "driving" / "frames")
    return {name: make(root / name) for name, make in made.items()}


def go_through(page: Page, address: str) -> None:
    """Analyses a sample of each application, looks at it, fetches its files, and opens its case again."""
    for app, viewer in VIEWERS.items():
        page.goto(f"{address}/")
        page.locator(f"#{app}-title").get_by_role("link").click()
        page.wait_for_load_state("load")  # a click before the scripts are there does nothing
        page.locator("[data-sample]").first.click()
        expect(page).to_have_url(re.compile(rf"{re.escape(address)}/{app}\?case=[0-9a-f]{{32}}$"), timeout=PATIENCE_MS)
        expect(page.locator(viewer).first).to_be_visible(timeout=PATIENCE_MS)
        page.reload()
        expect(page.locator(viewer).first).to_be_visible(timeout=PATIENCE_MS)
        page.wait_for_load_state("networkidle")
        expect(page.locator("[data-error]")).to_be_hidden()
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
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
