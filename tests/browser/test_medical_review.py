"""Reviewing in the medical form: verdicts on the findings and missed nodules, each saved immediately."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect
from pydicom import dcmread

from tests.apps.medical.chests import pack, series
from tests.browser.medical_site import AT_MM, chest, medical_site, upload_and_analyse
from tests.browser.test_medical_reading import centre, open_chest

pytestmark = pytest.mark.browser
_REVIEW_URL = re.compile(r"/review$")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with medical_site(tmp_path_factory.mktemp("medical")) as address:
        yield address


def reviews(page: Page, site: str) -> list[dict[str, Any]]:
    """The reviews of the case that is shown."""
    case = re.search(r"case=([0-9a-f]+)", page.url)
    assert case is not None
    entries: list[dict[str, Any]] = page.request.get(f"{site}/api/medical/cases/{case[1]}/review").json()["reviews"]
    return entries


def is_save(response: Any) -> bool:
    return response.request.method == "PUT" and bool(_REVIEW_URL.search(response.url))


def test_verdicts_are_saved_immediately_and_shown_when_the_case_is_reopened(page: Page, site: str) -> None:
    open_chest(page, site)
    assert reviews(page, site) == []
    with page.expect_response(is_save):
        page.get_by_label("Reject finding 2").check()
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 2").check()
    expect(page.get_by_label("Reject finding 2")).not_to_be_checked()
    expect(page.locator(".review")).to_contain_text(
        re.compile(r"Reviewed at 20\d\d-\d\d-\d\d \d\d:\d\d UTC: 1 accepted")
    )
    page.reload()
    expect(page.get_by_label("Accept finding 2")).to_be_checked()
    expect(page.get_by_label("Accept finding 1")).not_to_be_checked()
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 2").uncheck()
    assert [entry["verdicts"] for entry in reviews(page, site)] == [{}]


def test_keys_accept_and_reject_the_finding_that_is_shown(page: Page, site: str) -> None:
    open_chest(page, site)
    for key in ("a", "n", "r"):
        page.keyboard.press(key)
    expect(page.get_by_label("Accept finding 1")).to_be_checked()
    expect(page.get_by_label("Reject finding 2")).to_be_checked()
    expect(page.locator(".review")).to_contain_text("1 accepted, 1 rejected")
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted", "2": "rejected"}
    page.keyboard.press("r")
    expect(page.get_by_label("Reject finding 2")).not_to_be_checked()
    # Letters typed into the note are not verdicts.
    page.get_by_text("Reviewer and note").click()
    page.get_by_label("Note").press_sequentially("rr")
    expect(page.get_by_label("Reject finding 2")).not_to_be_checked()


def test_a_missed_nodule_is_added_from_the_keyboard(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    readout = page.locator(".slices output").nth(1)
    canvas.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowLeft")
    expect(readout).to_contain_text(" HU at R 6.0, A 3.0, F 350.0 mm")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowUp"):
        page.keyboard.press(f"Shift+{key}")
    expect(readout).to_contain_text(" HU at L 3.0, A 6.0, F 350.0 mm")
    with page.expect_response(is_save):
        page.keyboard.press("m")
    (missed,) = reviews(page, site)[0]["missed"]
    assert missed["centre_lps_mm"] == [3.0, -6.0, AT_MM[0][2] + 5.0]
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Escape")
    expect(readout).to_contain_text("Finding 1")


def test_a_missed_nodule_is_added_at_the_cross_and_removed(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    add = page.get_by_role("button", name="Add", exact=True)
    expect(add).to_be_disabled()
    x, y = centre(canvas)
    page.mouse.click(x, y)
    position = page.locator(".slices output").nth(1).inner_text()
    page.get_by_label("Diameter of a missed nodule in mm").fill("8")
    with page.expect_response(is_save):
        add.click()
    (missed,) = reviews(page, site)[0]["missed"]
    assert missed["diameter_mm"] == 8 and missed["centre_lps_mm"][2] == AT_MM[0][2]
    rows = page.locator(".findings.missed li")
    expect(rows).to_contain_text("8.0 mm")
    assert position.split(" at ")[1] in rows.inner_text()
    page.reload()
    expect(rows).to_have_count(1)
    page.keyboard.press("n")
    rows.get_by_role("button").nth(1).click()
    expect(canvas).to_have_attribute("aria-label", re.compile("slice 10 of 20"))
    with page.expect_response(is_save):
        page.get_by_role("button", name="Remove the missed nodule in slice 10 of 20 in the file").click()
    expect(page.get_by_label("Diameter of a missed nodule in mm")).to_be_focused()
    assert reviews(page, site)[0]["missed"] == []


def test_a_line_across_a_missed_nodule_sets_its_centre_and_diameter(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    x, y = centre(canvas)
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=4)
    page.mouse.up()
    measured = float(page.locator(".slices output").nth(1).inner_text().split(" mm")[0])
    with page.expect_response(is_save):
        page.keyboard.press("m")
    (missed,) = reviews(page, site)[0]["missed"]
    assert missed["diameter_mm"] == measured > 5
    page.mouse.click(x, y)
    across = page.locator(".slices output").nth(1).inner_text()
    # The centre of the line, to one screen pixel.
    side = "R" if missed["centre_lps_mm"][0] < 0 else "L"
    shown_mm = float(re.search(rf"{side} (\d+\.\d)", across)[1])  # type: ignore[index]
    assert abs(shown_mm - abs(missed["centre_lps_mm"][0])) < 1.5


def test_a_review_without_a_name_moves_to_the_name_that_is_entered(page: Page, site: str) -> None:
    open_chest(page, site)
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 1").check()
    page.get_by_text("Reviewer and note").click()
    name = page.get_by_label("Reviewer", exact=True)
    name.fill("Ada")
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        name.press("Enter")
    expect(page.locator(".review")).to_contain_text("Reviewed by Ada at")
    (entry,) = reviews(page, site)
    assert entry["reviewer"] == "Ada" and entry["verdicts"] == {"1": "accepted"}
    # Another reader starts a new review, and both reviewers are listed.
    name.fill("Grace")
    name.press("Enter")
    expect(page.get_by_label("Accept finding 1")).not_to_be_checked()
    with page.expect_response(is_save):
        page.get_by_label("Reject finding 1").check()
    page.reload()
    expect(page.get_by_label("Reject finding 1")).to_be_checked()
    expect(page.locator(".review .reviewers p")).to_have_count(2)
    page.goto(site)
    expect(page.locator(".recent")).to_contain_text("reviewed by Grace, Ada")


def save_review(page: Page, site: str, **review: Any) -> None:
    """Saves another reader's review of the case that is shown, not through the page."""
    case = re.search(r"case=([0-9a-f]+)", page.url)
    assert case is not None
    response = page.request.put(f"{site}/api/medical/cases/{case[1]}/review", data=review)
    assert response.ok, response.text()


def test_verdicts_of_other_readers_are_shown_beside_the_finding(page: Page, site: str) -> None:
    open_chest(page, site)
    missed = {"centre_lps_mm": [-54.0, 9.0, -340.0], "diameter_mm": 7.5}
    save_review(page, site, reviewer="Grace", verdicts={"1": "rejected"}, missed=[missed], note="1 is a vessel")
    save_review(page, site, reviewer="Ada", verdicts={"1": "accepted", "2": "accepted"})
    page.reload()
    rows = page.locator(".findings").first.locator("li")
    expect(rows.first).to_contain_text("Accepted by Ada, rejected by Grace")
    expect(rows.nth(1)).to_contain_text("Accepted by Ada")
    expect(page.get_by_role("group", name="Verdict on finding 1: accepted by Ada, rejected by Grace")).to_be_visible()
    expect(page.get_by_label("Accept finding 1")).not_to_be_checked()
    added = page.locator(".findings.missed li")
    expect(added).to_contain_text("Added by Grace")
    expect(added.get_by_role("button")).to_have_count(1)  # it can be viewed, but not removed
    expect(page.locator(".review")).to_contain_text("1 rejected, 1 missed. “1 is a vessel”")
    # A reader's own verdicts are not listed among those of others.
    page.get_by_text("Reviewer and note").click()
    page.get_by_label("Reviewer", exact=True).fill("Grace")
    page.get_by_label("Reviewer", exact=True).press("Enter")
    expect(page.get_by_text("Reviewer and note (Grace)")).to_be_visible()
    expect(page.get_by_label("Reject finding 1")).to_be_checked()
    expect(rows.first).to_contain_text("Accepted by Ada")
    expect(rows.first).not_to_contain_text("Grace")
    expect(added.get_by_role("button")).to_have_count(2)
    # The longest possible name does not overflow the list.
    save_review(page, site, reviewer="Prof. Dr. med. " + "x" * 49, verdicts={"1": "accepted"}, missed=[missed])
    page.reload()
    expect(page.get_by_text("Added by Prof.")).to_be_visible()
    count_overflowing = """list => [...list.querySelectorAll("*")].filter(
        node => node.getBoundingClientRect().right > list.getBoundingClientRect().right + 1).length"""
    assert [findings.evaluate(count_overflowing) for findings in page.locator(".findings").all()] == [0, 0]


def test_an_earlier_review_without_a_name_is_taken_over_only_on_request(page: Page, site: str) -> None:
    open_chest(page, site)
    save_review(page, site, verdicts={"1": "accepted"}, note="whose?")
    page.reload()
    expect(page.get_by_label("Accept finding 1")).to_be_checked()
    with page.expect_response(is_save):
        page.get_by_label("Reject finding 2").check()
    page.get_by_text("Reviewer and note").click()
    with page.expect_response(is_save):
        page.get_by_label("Reviewer", exact=True).fill("Ada")
        page.get_by_label("Reviewer", exact=True).press("Enter")
    expect(page.locator(".review")).to_contain_text("Reviewed by Ada")
    expect(page.get_by_label("Accept finding 1")).not_to_be_checked()
    by_reviewer = {entry["reviewer"]: (entry["verdicts"], entry["note"]) for entry in reviews(page, site)}
    assert by_reviewer == {"Ada": ({"2": "rejected"}, ""), None: ({"1": "accepted", "2": "rejected"}, "whose?")}
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        page.get_by_role("button", name="Add it to my review").click()
    expect(page.get_by_label("Accept finding 1")).to_be_checked()
    (entry,) = reviews(page, site)
    assert entry["reviewer"] == "Ada" and entry["verdicts"] == {"1": "accepted", "2": "rejected"}
    assert entry["note"] == "whose?"


def test_the_form_says_that_a_case_of_an_earlier_version_has_no_report(page: Page, tmp_path: Path) -> None:
    page.expected_errors += ["409"]  # type: ignore[attr-defined]
    with medical_site(tmp_path) as site:
        upload_and_analyse(page, site, pack(tmp_path, series(chest())))
        (report_file,) = tmp_path.glob("store/cases/*/.lasting-report.json")
        report_file.unlink()
        page.get_by_label("Accept finding 2").check()
        files = page.locator(".downloads")
        expect(files).to_contain_text("The case has no DICOM report")
        expect(files).to_contain_text("analyse the CT again")
        expect(files.get_by_role("link", name="Reviewed report")).to_be_hidden()


def test_the_form_says_that_a_reviewed_report_is_partial_and_names_no_patient(
    page: Page, site: str, tmp_path: Path
) -> None:
    upload_and_analyse(page, site, pack(tmp_path, series(chest())))
    page.get_by_label("Accept finding 2").check()
    files = page.locator(".downloads")
    expect(files).to_contain_text("Reviewed report (DICOM) does not name the patient; partial: undecided on 1")
    page.get_by_label("Reject finding 1").check()
    expect(files).not_to_contain_text("partial")
    expect(files.get_by_role("link", name="Reviewed report (DICOM)")).to_be_visible()


def test_the_reports_name_the_patient_if_the_option_is_set(page: Page, site: str, tmp_path: Path) -> None:
    file = pack(tmp_path, series(chest(), PatientName="Doe^Jane", PatientID="4711"))
    page.goto(f"{site}/medical")
    page.get_by_label("Chest CT").set_input_files(file)
    page.get_by_label("Name the patient in the DICOM and FHIR files").check()
    page.get_by_role("button", name="Find nodules").click()
    page.get_by_label("Accept finding 1").check()
    files = page.locator(".downloads")
    for name in ("findings.sr.dcm", "Reviewed report (DICOM)"):
        with page.expect_download() as download:
            files.get_by_role("link", name=name).click()
        saved = dcmread(download.value.path())
        assert (saved.PatientName, saved.PatientID) == ("Doe^Jane", "4711"), name
    expect(files).not_to_contain_text("does not name the patient")


def test_the_reviewed_report_is_offered_once_a_finding_is_accepted(page: Page, site: str, tmp_path: Path) -> None:
    upload_and_analyse(page, site, pack(tmp_path, series(chest())))
    link = page.locator(".downloads").get_by_role("link", name="Reviewed report (DICOM)")
    with page.expect_response(is_save):
        page.get_by_label("Reject finding 1").check()
    expect(page.locator(".review")).to_contain_text("1 rejected")
    expect(link).to_be_hidden()
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 2").check()
    page.get_by_text("Reviewer and note").click()
    page.get_by_label("Reviewer", exact=True).fill("Doe^Jörg & Söhne")
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        page.get_by_label("Reviewer", exact=True).press("Enter")
    # A later review by another reader does not replace this reader's review on the page or in the report.
    case = re.search(r"case=([0-9a-f]+)", page.url)
    assert case is not None
    grace_response = page.request.put(
        f"{site}/api/medical/cases/{case[1]}/review", data={"reviewer": "Grace", "verdicts": {"1": "accepted"}}
    )
    assert grace_response.ok
    page.reload()
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "findings.reviewed.sr.dcm"
    saved = dcmread(download.value.path())
    (text,) = [item.TextValue for item in saved.ContentSequence if "Reviewed by" in item.get("TextValue", "")]
    assert text.startswith("Reviewed by Doe^Jörg & Söhne on ") and "1 software finding accepted, 1 rejected." in text
    page.get_by_text("Reviewer and note").click()
    page.get_by_label("Reviewer", exact=True).fill("Eve")
    page.get_by_label("Reviewer", exact=True).press("Enter")
    expect(page.get_by_label("Accept finding 2")).not_to_be_checked()
    expect(link).to_have_attribute("href", re.compile(r"reviewer=Grace$"))


def test_a_case_that_is_not_from_dicom_has_no_reviewed_report(page: Page, site: str) -> None:
    open_chest(page, site)
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 1").check()
    expect(page.locator(".review")).to_contain_text("1 accepted")
    expect(page.locator(".downloads").get_by_role("link", name="findings.csv")).to_be_visible()
    expect(page.locator(".downloads").get_by_role("link", name="Reviewed report")).to_be_hidden()


def test_a_case_is_marked_as_reviewed_without_verdicts_and_the_review_is_withdrawn(page: Page, site: str) -> None:
    open_chest(page, site)
    page.get_by_text("Reviewer and note").click()
    with page.expect_response(is_save):
        page.get_by_role("button", name="Mark as reviewed").click()
    assert [entry["verdicts"] for entry in reviews(page, site)] == [{}]
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        page.get_by_role("button", name="Withdraw the review").click()
    expect(page.locator(".review")).not_to_contain_text("Reviewed at")
    assert reviews(page, site) == []


def test_a_verdict_given_before_the_earlier_review_is_loaded_does_not_overwrite_it(page: Page, site: str) -> None:
    open_chest(page, site)
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 1").check()
    held_routes: list[Route] = []

    def hold(route: Route) -> None:
        if route.request.method == "GET":
            held_routes.append(route)
        else:
            route.fallback()

    page.route(_REVIEW_URL, hold)
    page.reload()
    page.get_by_label("Reject finding 2").check()
    with page.expect_response(is_save):
        held_routes[0].continue_()
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted", "2": "rejected"}


def test_a_review_that_could_not_be_read_is_not_overwritten(page: Page, site: str) -> None:
    page.expected_errors += ["503"]  # type: ignore[attr-defined]
    open_chest(page, site)
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 1").check()
    page.route(_REVIEW_URL, lambda route: route.fulfill(status=503, json={"detail": "the server is being shut down"}))
    page.reload()
    expect(page.locator(".review [role=alert]")).to_contain_text(
        "could not be read, so nothing is saved: the server is"
    )
    page.get_by_label("Reject finding 2").click()
    expect(page.get_by_label("Reject finding 2")).not_to_be_checked()
    page.unroute(_REVIEW_URL)
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted"}


def test_a_failed_save_is_reported_and_the_next_one_includes_it(page: Page, site: str) -> None:
    page.expected_errors += ["507"]  # type: ignore[attr-defined]
    open_chest(page, site)

    def full(route: Route) -> None:
        if route.request.method == "PUT":
            route.fulfill(status=507, json={"detail": "the review is not kept: the disk of the store is full"})
        else:
            route.fallback()

    page.route(_REVIEW_URL, full)
    page.get_by_label("Accept finding 1").check()
    expect(page.locator(".review [role=alert]")).to_contain_text("could not be saved: the review is not kept: the disk")
    page.unroute(_REVIEW_URL)
    page.get_by_label("Accept finding 2").check()
    expect(page.locator(".review [role=alert]")).to_be_hidden()
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted", "2": "accepted"}
