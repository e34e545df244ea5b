"""Saving a review at a form: two windows on one case, a server that fails in between, what is written meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.medical_site import medical_site
from tests.browser.test_medical_reading import open_chest
from tests.browser.test_medical_review import _SAVED, is_save, reviews

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with medical_site(tmp_path_factory.mktemp("medical")) as address:
        yield address


def refuse_saves(page: Page, status: int, detail: str) -> None:
    """Answers every save of the page itself."""

    def answer(route: Route) -> None:
        if route.request.method == "PUT":
            route.fulfill(status=status, json={"detail": detail})
        else:
            route.fallback()

    page.expected_errors += [str(status)]  # type: ignore[attr-defined]
    page.route(_SAVED, answer)


def test_two_windows_on_one_case_take_nothing_from_each_other(page: Page, site: str) -> None:
    page.expected_errors += ["412"]  # type: ignore[attr-defined]
    open_chest(page, site)
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_label("Accept finding 1")).to_be_visible()
    other.wait_for_load_state("networkidle")
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 1").check()
    other.get_by_label("Reject finding 2").check()
    expect(other.get_by_label("Accept finding 1")).to_be_checked()
    expect(other.locator(".reviewers")).to_contain_text("1 accepted, 1 rejected")
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted", "2": "rejected"}
    # The first window is behind now, and says another thing of what both have said.
    page.get_by_label("Accept finding 2").check()
    expect(page.locator(".reviewers")).to_contain_text("2 accepted")
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted", "2": "accepted"}
    other.close()


def test_what_a_failing_server_did_not_take_is_saved_once_it_answers(page: Page, site: str) -> None:
    open_chest(page, site)
    refuse_saves(page, 503, "the server is being shut down")
    page.get_by_label("Accept finding 1").check()
    alert = page.locator(".review [role=alert]")
    expect(alert).to_contain_text("could not be saved: the server is being shut down. Saving is retried")
    # It is in view wherever the page is.
    page.mouse.wheel(0, -5000)
    expect(alert).to_be_in_viewport()
    page.get_by_label("Reject finding 2").check()
    leaving: list[str] = []

    def stay(dialog: object) -> None:
        leaving.append(dialog.type)  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", stay)
    with page.expect_event("dialog"):
        page.close(run_before_unload=True)
    assert leaving == ["beforeunload"]
    assert reviews(page, site) == []
    page.unroute(_SAVED)
    expect(alert).to_be_hidden(timeout=15_000)
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted", "2": "rejected"}


def test_a_page_that_has_not_read_the_review_yet_asks_before_it_is_left(page: Page, site: str) -> None:
    open_chest(page, site)
    held: list[Route] = []
    page.route(_SAVED, lambda route: held.append(route) if route.request.method == "GET" else route.fallback())
    page.reload()
    page.get_by_label("Accept finding 1").check()
    with page.expect_event("dialog") as asked:
        page.on("dialog", lambda dialog: dialog.dismiss())
        page.close(run_before_unload=True)
    assert asked.value.type == "beforeunload"
    with page.expect_response(is_save):
        held[0].continue_()
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted"}


def test_what_waits_stays_with_the_reader_who_said_it(page: Page, site: str) -> None:
    open_chest(page, site)
    page.get_by_text("Reviewer and note").click()
    name = page.get_by_label("Reviewer", exact=True)
    name.fill("Ada")
    name.press("Enter")
    refuse_saves(page, 507, "the disk is full")
    page.get_by_label("Accept finding 1").check()
    alert = page.locator(".review [role=alert]")
    expect(alert).to_contain_text("the disk is full")
    name.fill("Grace")
    name.press("Enter")
    expect(name).to_have_value("Ada")
    expect(page.get_by_label("Accept finding 1")).to_be_checked()
    page.unroute(_SAVED)
    alert.get_by_role("button", name="Try again").click()
    expect(alert).to_be_hidden()
    assert [(one["reviewer"], one["verdicts"]) for one in reviews(page, site)] == [("Ada", {"1": "accepted"})]


def test_a_note_that_is_being_written_is_not_taken_away_by_a_save(page: Page, site: str) -> None:
    open_chest(page, site)
    page.get_by_text("Reviewer and note").click()
    held: list[Route] = []
    page.route(_SAVED, lambda route: held.append(route) if route.request.method == "PUT" else route.fallback())
    page.get_by_label("Accept finding 1").check()
    note = page.get_by_label("Note")
    note.press_sequentially("2 is a ves")
    with page.expect_response(is_save):
        held[0].continue_()
    page.unroute(_SAVED)
    expect(page.locator(".reviewers")).to_contain_text("1 accepted")
    note.press_sequentially("sel")
    with page.expect_response(is_save):
        page.get_by_label("Reject finding 2").check()
    expect(page.locator(".reviewers")).to_contain_text("1 accepted, 1 rejected")
    assert reviews(page, site)[0]["note"] == "2 is a vessel"


def test_a_case_that_is_deleted_meanwhile_is_said_to_be_gone(page: Page, site: str) -> None:
    page.expected_errors += ["404"]  # type: ignore[attr-defined]
    open_chest(page, site)
    case = page.request.get(f"{site}/api/medical/cases?limit=1").json()["cases"][0]
    assert page.request.delete(f"{site}{case['url']}").status == 204
    page.get_by_label("Accept finding 1").check()
    alert = page.locator(".review [role=alert]")
    expect(alert).to_have_text(
        f"The review could not be saved: medical has no case '{case['case']}'.", use_inner_text=True
    )
