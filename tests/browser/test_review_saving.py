"""Saving a review in a form: two windows on one case, a server that fails in between, and edits during a save."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.medical_site import medical_site
from tests.browser.test_medical_reading import open_chest
from tests.browser.test_medical_review import _REVIEW_URL, is_save, reviews

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with medical_site(tmp_path_factory.mktemp("medical")) as address:
        yield address


def refuse_saves(page: Page, status: int, detail: str) -> None:
    """Answers every save of the page with this error instead of sending it to the server."""

    def answer(route: Route) -> None:
        if route.request.method == "PUT":
            route.fulfill(status=status, json={"detail": detail})
        else:
            route.fallback()

    page.expected_errors += [str(status)]  # type: ignore[attr-defined]
    page.route(_REVIEW_URL, answer)


def test_two_windows_on_one_case_do_not_overwrite_each_other(page: Page, site: str) -> None:
    page.expected_errors += ["412"]  # type: ignore[attr-defined]
    open_chest(page, site)
    second_window = page.context.new_page()
    second_window.goto(page.url)
    expect(second_window.get_by_label("Accept finding 1")).to_be_visible()
    second_window.wait_for_load_state("networkidle")
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 1").check()
    second_window.get_by_label("Reject finding 2").check()
    expect(second_window.get_by_label("Accept finding 1")).to_be_checked()
    expect(second_window.locator(".reviewers")).to_contain_text("1 accepted, 1 rejected")
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted", "2": "rejected"}
    # The first window is out of date now, and changes a verdict that the second window set.
    page.get_by_label("Accept finding 2").check()
    expect(page.locator(".reviewers")).to_contain_text("2 accepted")
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted", "2": "accepted"}
    second_window.close()


def test_a_failed_save_is_retried_until_the_server_accepts_it(page: Page, site: str) -> None:
    open_chest(page, site)
    refuse_saves(page, 503, "the server is being shut down")
    page.get_by_label("Accept finding 1").check()
    alert = page.locator(".review [role=alert]")
    expect(alert).to_contain_text("could not be saved: the server is being shut down. Saving is retried")
    # The message stays in view when the page is scrolled.
    page.mouse.wheel(0, -5000)
    expect(alert).to_be_in_viewport()
    page.get_by_label("Reject finding 2").check()
    dialogs: list[str] = []

    def stay(dialog: object) -> None:
        dialogs.append(dialog.type)  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", stay)
    with page.expect_event("dialog"):
        page.close(run_before_unload=True)
    assert dialogs == ["beforeunload"]
    assert reviews(page, site) == []
    page.unroute(_REVIEW_URL)
    expect(alert).to_be_hidden()
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted", "2": "rejected"}


def test_a_page_asks_before_it_is_left_with_a_verdict_that_is_not_saved(page: Page, site: str) -> None:
    open_chest(page, site)
    held_routes: list[Route] = []
    page.route(
        _REVIEW_URL, lambda route: held_routes.append(route) if route.request.method == "GET" else route.fallback()
    )
    page.reload()
    page.get_by_label("Accept finding 1").check()
    with page.expect_event("dialog") as dialog_info:
        page.on("dialog", lambda dialog: dialog.dismiss())
        page.close(run_before_unload=True)
    assert dialog_info.value.type == "beforeunload"
    with page.expect_response(is_save):
        held_routes[0].continue_()
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted"}


def test_an_unsaved_verdict_stays_with_the_reader_who_gave_it(page: Page, site: str) -> None:
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
    page.unroute(_REVIEW_URL)
    alert.get_by_role("button", name="Try again").click()
    expect(alert).to_be_hidden()
    assert [(entry["reviewer"], entry["verdicts"]) for entry in reviews(page, site)] == [("Ada", {"1": "accepted"})]


def test_a_save_does_not_overwrite_a_note_that_is_being_typed(page: Page, site: str) -> None:
    open_chest(page, site)
    page.get_by_text("Reviewer and note").click()
    held_routes: list[Route] = []
    page.route(
        _REVIEW_URL, lambda route: held_routes.append(route) if route.request.method == "PUT" else route.fallback()
    )
    page.get_by_label("Accept finding 1").check()
    note = page.get_by_label("Note")
    note.press_sequentially("2 is a ves")
    with page.expect_response(is_save):
        held_routes[0].continue_()
    page.unroute(_REVIEW_URL)
    expect(page.locator(".reviewers")).to_contain_text("1 accepted")
    note.press_sequentially("sel")
    with page.expect_response(is_save):
        page.get_by_label("Reject finding 2").check()
    expect(page.locator(".reviewers")).to_contain_text("1 accepted, 1 rejected")
    assert reviews(page, site)[0]["note"] == "2 is a vessel"


def test_saving_a_review_of_a_deleted_case_reports_that_it_is_gone(page: Page, site: str) -> None:
    page.expected_errors += ["404"]  # type: ignore[attr-defined]
    open_chest(page, site)
    # In the question that precedes a deletion, the keys of the page do nothing, and Escape closes it.
    page.get_by_role("button", name="Delete this case").click()
    for key in ("a", "Escape"):
        page.keyboard.press(key)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_label("Accept finding 1")).not_to_be_checked()
    case = page.request.get(f"{site}/api/medical/cases?limit=1").json()["cases"][0]
    assert page.request.delete(f"{site}{case['url']}").status == 204
    page.get_by_label("Accept finding 1").check()
    alert = page.locator(".review [role=alert]")
    expect(alert).to_have_text(
        f"The review could not be saved: medical has no case '{case['case']}'.", use_inner_text=True
    )
