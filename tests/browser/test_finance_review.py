"""Reviewing in the finance form: verdicts on events, and missed events whose times are taken from the chart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.finance.test_reviews import SPIKES, table, time
from tests.browser.test_finance_form import finance_app
from tests.browser.test_medical_review import is_save
from tests.conftest import serving

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("finance")
    settings = Settings(store=root / "store", warm=False, device="cpu", workers=0)
    with serving(create_app(settings, {"finance": finance_app(root)})) as address:
        yield address


def open_table(page: Page, site: str, folder: Path, spikes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Analyses a table with these spikes in the form; returns the case."""
    (folder / "prices.csv").write_text(table(spikes))
    page.goto(f"{site}/finance")
    page.get_by_label("Series", exact=True).set_input_files(str(folder / "prices.csv"))
    page.get_by_label("Events wanted per 1,000 rows").fill("10")
    page.get_by_role("button", name="Find anomalies").click()
    expect(page.locator(".events tbody tr").first).to_be_visible()
    page.wait_for_load_state("networkidle")
    case = page.request.get(f"{site}/api/finance/cases?limit=1").json()["cases"][0]
    return dict(page.request.get(f"{site}{case['url']}").json())


def review(page: Page, site: str, case: dict[str, Any]) -> dict[str, Any]:
    (only_review,) = page.request.get(f"{site}{case['url']}/review").json()["reviews"]
    return dict(only_review)


def test_events_are_accepted_and_rejected_by_mouse_and_keys(page: Page, site: str, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 600})
    case = open_table(page, site, tmp_path, {"A": (200, 300)})
    count = len(case["result"]["events"])
    with page.expect_response(is_save):
        page.get_by_label(re.compile("^Reject the event")).first.check()
    first = review(page, site, case)["verdicts"]
    assert list(first.values()) == ["rejected"]
    page.get_by_role("group", name=re.compile("^Chart of")).focus()
    page.keyboard.press("ArrowDown")
    with page.expect_response(is_save):
        page.keyboard.press("a")
    verdicts = review(page, site, case)["verdicts"]
    assert list(verdicts.values()) == ["accepted"] and verdicts.keys() == first.keys()
    # On a laptop, the list is out of view when the chart shows an event: its verdict is beside the chart, too.
    page.locator(".events tbody").get_by_role("button").first.click()
    beside = page.get_by_label("Reject the event in the chart")
    expect(beside).to_be_in_viewport(ratio=1)
    expect(page.locator(".chart")).to_be_in_viewport(ratio=1)
    with page.expect_response(is_save):
        beside.check()
    assert list(review(page, site, case)["verdicts"].values()) == ["rejected"]
    expect(page.get_by_label(re.compile("^Reject the event of")).first).to_be_checked()
    # The keys act on the whole page, as in the other forms.
    page.keyboard.press("n")
    page.keyboard.press("p")
    expect(page.locator(".event-status")).to_contain_text(f"Event 1 of {count}")
    with page.expect_response(is_save):
        page.keyboard.press("a")
    if count > 1:
        with page.expect_response(is_save):
            page.get_by_role("button", name="Accept the others").click()
    assert review(page, site, case)["verdicts"] == {str(n): "accepted" for n in range(1, count + 1)}
    page.reload()
    expect(page.get_by_label(re.compile("^Accept the event")).first).to_be_checked()


def test_a_missed_event_takes_the_times_that_the_chart_shows(page: Page, site: str, tmp_path: Path) -> None:
    case = open_table(page, site, tmp_path, SPIKES)
    page.get_by_role("button", name="C", exact=True).click()
    page.get_by_text("Missed an event?").click()
    chart = page.get_by_role("group", name=re.compile("^Chart of C"))
    chart.focus()
    page.keyboard.press("Home")
    page.keyboard.press("+")
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Use the times in view").click()
    start, end = (page.get_by_label(f"{edge} of the missed event").input_value() for edge in ("Start", "End"))
    assert time(0) < start < end < time(399)
    with page.expect_response(is_save):
        page.get_by_role("button", name="Add", exact=True).click()
    assert review(page, site, case)["missed"] == [{"series": "C", "start": start, "end": end}]
    expect(page.get_by_label("Start of the missed event")).to_be_focused()
    line = page.get_by_role("button", name="expected")
    line.press("Enter")
    expect(line).to_have_attribute("aria-pressed", "false")
    row = page.get_by_role("list", name="Missed events").get_by_role("listitem")
    expect(row).to_have_count(1)
    page.get_by_role("button", name="A", exact=True).click()
    expect(row).to_have_count(0)
    page.get_by_role("button", name="C", exact=True).click()
    with page.expect_response(is_save):
        page.get_by_role("button", name=re.compile("^Remove the missed event")).click()
    assert review(page, site, case)["missed"] == []
    expect(page.get_by_text("Missed an event?")).to_be_focused()
    # Times are understood as the page shows them.
    page.get_by_text("Missed an event?").click()
    page.get_by_label("Start of the missed event").fill("2024-01-03")
    page.get_by_label("End of the missed event").fill("2024-01-03 04:00")
    with page.expect_response(is_save):
        page.get_by_role("button", name="Add", exact=True).click()
    (missed,) = review(page, site, case)["missed"]
    assert (missed["start"], missed["end"]) == (time(48), time(52))
    with page.expect_response(is_save):
        page.get_by_role("button", name=re.compile("^Remove the missed event")).click()
    # An event outside the series is reported next to the review and not saved.
    page.expected_errors += ["422"]  # type: ignore[attr-defined]
    page.get_by_label("Start of the missed event").fill(time(500))
    page.get_by_label("End of the missed event").fill(time(501))
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator(".review [role=alert]")).to_contain_text("is outside its series")
    assert review(page, site, case)["missed"] == []
    # It does not block later saves.
    expect(row).to_have_count(0)
    with page.expect_response(is_save):
        page.get_by_text("Reviewer and note").click()
        page.get_by_role("button", name="Mark as reviewed").click()
    expect(page.locator(".review [role=alert]")).to_be_hidden()
