"""Reviewing at the medical form: verdicts beside the findings, and nodules that were missed, saved at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect
from pydicom import dcmread

from tests.apps.medical.chests import pack, series
from tests.browser.medical_site import AT_MM, chest, hand_in, medical_site
from tests.browser.test_medical_reading import middle, open_chest

pytestmark = pytest.mark.browser
_SAVED = re.compile(r"/review$")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with medical_site(tmp_path_factory.mktemp("medical")) as address:
        yield address


def reviews(page: Page, site: str) -> list[dict[str, Any]]:
    """The reviews of the case that is shown."""
    case = re.search(r"case=([0-9a-f]+)", page.url)
    assert case is not None
    found: list[dict[str, Any]] = page.request.get(f"{site}/api/medical/cases/{case[1]}/review").json()["reviews"]
    return found


def is_save(response: Any) -> bool:
    return response.request.method == "PUT" and bool(_SAVED.search(response.url))


def test_verdicts_are_saved_at_once_and_shown_when_the_case_is_opened_again(page: Page, site: str) -> None:
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
    assert [one["verdicts"] for one in reviews(page, site)] == [{}]


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
    # A letter in the note is no key.
    page.get_by_text("Reviewer and note").click()
    page.get_by_label("Note").press_sequentially("rr")
    expect(page.get_by_label("Reject finding 2")).not_to_be_checked()


def test_what_a_key_says_of_a_finding_is_seen_beside_the_slices(page: Page, site: str) -> None:
    """On a narrow screen the list is out of sight, and after scrolling the finding that keys are about is elsewhere."""
    page.set_viewport_size({"width": 820, "height": 900})
    open_chest(page, site)
    said = page.locator(".slices output").nth(1)
    expect(said).to_have_text("Finding 1: undecided")
    page.keyboard.press("a")
    expect(said).to_have_text("Finding 1: accepted")
    expect(page.get_by_label("Accept finding 1")).not_to_be_in_viewport()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("r")
    elsewhere = "Finding 1 in slice 10 of 20 in the file: "
    expect(said).to_have_text(f"{elsewhere}rejected")
    page.keyboard.press("r")
    expect(said).to_have_text(f"{elsewhere}undecided")
    page.get_by_role("img", name="Axial CT").click()
    expect(said).to_contain_text(" HU at ")


def test_six_findings_are_seen_at_once_on_a_laptop(page: Page, site: str) -> None:
    page.set_viewport_size({"width": 1366, "height": 768})
    open_chest(page, site)
    first, second = (
        page.get_by_label(f"Accept finding {n}").locator("xpath=ancestor::li").bounding_box() for n in (1, 2)
    )
    assert first is not None and second is not None
    assert first["y"] >= 0 and first["y"] + 5 * (second["y"] - first["y"]) + first["height"] <= 768


def test_a_missed_nodule_is_added_where_the_cross_is_and_taken_away(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    add = page.get_by_role("button", name="Add", exact=True)
    expect(add).to_be_disabled()
    x, y = middle(canvas)
    page.mouse.click(x, y)
    position = page.locator(".slices output").nth(1).inner_text()
    page.get_by_label("Diameter of a missed nodule in mm").fill("8")
    with page.expect_response(is_save):
        add.click()
    (one,) = reviews(page, site)[0]["missed"]
    assert one["diameter_mm"] == 8 and one["centre_lps_mm"][2] == AT_MM[0][2]
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
    expect(rows).to_have_count(0)
    assert reviews(page, site)[0]["missed"] == []


def test_a_line_across_a_missed_nodule_is_its_centre_and_its_diameter(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    x, y = middle(canvas)
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=4)
    page.mouse.up()
    measured = float(page.locator(".slices output").nth(1).inner_text().split(" mm")[0])
    with page.expect_response(is_save):
        page.keyboard.press("m")
    (one,) = reviews(page, site)[0]["missed"]
    assert one["diameter_mm"] == measured > 5
    page.mouse.click(x, y)
    across = page.locator(".slices output").nth(1).inner_text()
    # The middle of the line, to a screen's pixel.
    side = "R" if one["centre_lps_mm"][0] < 0 else "L"
    told = float(re.search(rf"{side} (\d+\.\d)", across)[1])  # type: ignore[index]
    assert abs(told - abs(one["centre_lps_mm"][0])) < 1.5


def test_what_was_said_without_a_name_goes_under_the_readers_name(page: Page, site: str) -> None:
    open_chest(page, site)
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 1").check()
    page.get_by_text("Reviewer and note").click()
    name = page.get_by_label("Reviewer", exact=True)
    name.fill("Ada")
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        name.press("Enter")
    expect(page.locator(".review")).to_contain_text("Reviewed by Ada at")
    (one,) = reviews(page, site)
    assert one["reviewer"] == "Ada" and one["verdicts"] == {"1": "accepted"}
    # Another reader begins anew, and each sees that the other was there.
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


def say(page: Page, site: str, **said: Any) -> None:
    """Another reader's review of the case that is shown, from elsewhere."""
    case = re.search(r"case=([0-9a-f]+)", page.url)
    assert case is not None
    answer = page.request.put(f"{site}/api/medical/cases/{case[1]}/review", data=said)
    assert answer.ok, answer.text()


def test_what_other_readers_said_stands_beside_the_finding(page: Page, site: str) -> None:
    open_chest(page, site)
    missed = {"centre_lps_mm": [-54.0, 9.0, -340.0], "diameter_mm": 7.5}
    say(page, site, reviewer="Grace", verdicts={"1": "rejected"}, missed=[missed], note="1 is a vessel")
    say(page, site, reviewer="Ada", verdicts={"1": "accepted", "2": "accepted"})
    page.reload()
    rows = page.locator(".findings").first.locator("li")
    expect(rows.first).to_contain_text("Accepted by Ada, rejected by Grace")
    expect(rows.nth(1)).to_contain_text("Accepted by Ada")
    expect(page.get_by_role("group", name="Verdict on finding 1: accepted by Ada, rejected by Grace")).to_be_visible()
    expect(page.get_by_label("Accept finding 1")).not_to_be_checked()
    added = page.locator(".findings.missed li")
    expect(added).to_contain_text("Added by Grace")
    expect(added.get_by_role("button")).to_have_count(1)  # to look at, not to take away
    expect(page.locator(".review")).to_contain_text("1 rejected, 1 missed. “1 is a vessel”")
    # A reader's own are no other's.
    page.get_by_text("Reviewer and note").click()
    page.get_by_label("Reviewer", exact=True).fill("Grace")
    page.get_by_label("Reviewer", exact=True).press("Enter")
    expect(page.get_by_text("Reviewer and note (Grace)")).to_be_visible()
    expect(page.get_by_label("Reject finding 1")).to_be_checked()
    expect(rows.first).to_contain_text("Accepted by Ada")
    expect(rows.first).not_to_contain_text("Grace")
    expect(added.get_by_role("button")).to_have_count(2)
    # The longest name stays within the list.
    say(page, site, reviewer="Prof. Dr. med. " + "x" * 49, verdicts={"1": "accepted"}, missed=[missed])
    page.reload()
    expect(page.get_by_text("Added by Prof.")).to_be_visible()
    beyond = """list => [...list.querySelectorAll("*")].filter(
        one => one.getBoundingClientRect().right > list.getBoundingClientRect().right + 1).length"""
    assert [one.evaluate(beyond) for one in page.locator(".findings").all()] == [0, 0]


def test_a_review_without_a_name_that_was_there_is_taken_over_on_request_alone(page: Page, site: str) -> None:
    open_chest(page, site)
    say(page, site, verdicts={"1": "accepted"}, note="whose?")
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
    said = {one["reviewer"]: (one["verdicts"], one["note"]) for one in reviews(page, site)}
    assert said == {"Ada": ({"2": "rejected"}, ""), None: ({"1": "accepted", "2": "rejected"}, "whose?")}
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        page.get_by_role("button", name="Add it to my review").click()
    expect(page.get_by_label("Accept finding 1")).to_be_checked()
    (one,) = reviews(page, site)
    assert one["reviewer"] == "Ada" and one["verdicts"] == {"1": "accepted", "2": "rejected"}
    assert one["note"] == "whose?"


def test_of_a_case_that_an_earlier_version_kept_the_form_says_that_there_is_no_report(
    page: Page, tmp_path: Path
) -> None:
    page.expected_errors += ["409"]  # type: ignore[attr-defined]
    with medical_site(tmp_path) as site:
        hand_in(page, site, pack(tmp_path, series(chest())))
        (kept,) = tmp_path.glob("store/cases/*/.lasting-report.json")
        kept.unlink()
        page.get_by_label("Accept finding 2").check()
        files = page.locator(".downloads")
        expect(files).to_contain_text("The case has no DICOM report")
        expect(files).to_contain_text("analyse the CT again")
        expect(files.get_by_role("link", name="Reviewed report")).to_be_hidden()


def test_the_form_says_of_what_the_reviewed_report_says_nothing(page: Page, site: str, tmp_path: Path) -> None:
    hand_in(page, site, pack(tmp_path, series(chest())))
    page.get_by_label("Accept finding 2").check()
    files = page.locator(".downloads")
    expect(files).to_contain_text("Reviewed report (DICOM) does not name the patient; partial: undecided on 1")
    page.get_by_label("Reject finding 1").check()
    expect(files).not_to_contain_text("partial")
    expect(files.get_by_role("link", name="Reviewed report (DICOM)")).to_be_visible()


def test_the_patient_is_named_in_the_reports_where_that_is_asked_for(page: Page, site: str, tmp_path: Path) -> None:
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


def test_the_finding_that_a_key_goes_to_is_seen_in_the_list(page: Page, site: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 380})
    open_chest(page, site)
    row = page.get_by_label("Findings, highest score first").locator("li").nth(1)
    expect(row).not_to_be_in_viewport(ratio=1)
    page.keyboard.press("n")
    expect(row.locator("[aria-current=true]")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("img", name="Axial CT")).to_be_in_viewport()


def test_the_reviewed_report_is_among_the_files_once_there_is_something_to_report(
    page: Page, site: str, tmp_path: Path
) -> None:
    hand_in(page, site, pack(tmp_path, series(chest())))
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
    # Another's review that came since is not what this reader sees, nor what is saved here.
    case = re.search(r"case=([0-9a-f]+)", page.url)
    assert case is not None
    other = page.request.put(
        f"{site}/api/medical/cases/{case[1]}/review", data={"reviewer": "Grace", "verdicts": {"1": "accepted"}}
    )
    assert other.ok
    page.reload()
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "findings.reviewed.sr.dcm"
    saved = dcmread(download.value.path())
    (said,) = [item.TextValue for item in saved.ContentSequence if "Reviewed by" in item.get("TextValue", "")]
    assert said.startswith("Reviewed by Doe^Jörg & Söhne on ") and "1 software finding accepted, 1 rejected." in said
    page.get_by_text("Reviewer and note").click()
    page.get_by_label("Reviewer", exact=True).fill("Eve")
    page.get_by_label("Reviewer", exact=True).press("Enter")
    expect(page.get_by_label("Accept finding 2")).not_to_be_checked()
    expect(link).to_have_attribute("href", re.compile(r"reviewer=Grace$"))


def test_what_is_no_dicom_has_no_reviewed_report(page: Page, site: str) -> None:
    open_chest(page, site)
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 1").check()
    expect(page.locator(".review")).to_contain_text("1 accepted")
    expect(page.locator(".downloads").get_by_role("link", name="findings.csv")).to_be_visible()
    expect(page.locator(".downloads").get_by_role("link", name="Reviewed report")).to_be_hidden()


def test_a_case_without_findings_is_marked_as_reviewed_and_that_is_taken_back(page: Page, site: str) -> None:
    open_chest(page, site)
    page.get_by_text("Reviewer and note").click()
    with page.expect_response(is_save):
        page.get_by_role("button", name="Mark as reviewed").click()
    assert [one["verdicts"] for one in reviews(page, site)] == [{}]
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        page.get_by_role("button", name="Withdraw the review").click()
    expect(page.locator(".review")).not_to_contain_text("Reviewed at")
    assert reviews(page, site) == []


def test_a_verdict_before_the_earlier_review_is_there_takes_nothing_of_it_away(page: Page, site: str) -> None:
    open_chest(page, site)
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 1").check()
    held: list[Route] = []

    def hold(route: Route) -> None:
        if route.request.method == "GET":
            held.append(route)
        else:
            route.fallback()

    page.route(_SAVED, hold)
    page.reload()
    page.get_by_label("Reject finding 2").check()
    with page.expect_response(is_save):
        held[0].continue_()
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted", "2": "rejected"}


def test_nothing_is_saved_over_a_review_that_could_not_be_read(page: Page, site: str) -> None:
    page.expected_errors += ["503"]  # type: ignore[attr-defined]
    open_chest(page, site)
    with page.expect_response(is_save):
        page.get_by_label("Accept finding 1").check()
    page.route(_SAVED, lambda route: route.fulfill(status=503, json={"detail": "the server is being shut down"}))
    page.reload()
    expect(page.locator(".review [role=alert]")).to_contain_text(
        "could not be read, so nothing is saved: the server is"
    )
    page.get_by_label("Reject finding 2").click()
    expect(page.get_by_label("Reject finding 2")).not_to_be_checked()
    page.unroute(_SAVED)
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted"}


def test_a_review_that_cannot_be_saved_says_so(page: Page, site: str) -> None:
    page.expected_errors += ["507"]  # type: ignore[attr-defined]
    open_chest(page, site)

    def full(route: Route) -> None:
        if route.request.method == "PUT":
            route.fulfill(status=507, json={"detail": "the review is not kept: the disk of the store is full"})
        else:
            route.fallback()

    page.route(_SAVED, full)
    page.get_by_label("Accept finding 1").check()
    expect(page.locator(".review [role=alert]")).to_contain_text("could not be saved: the review is not kept: the disk")
    page.unroute(_SAVED)
    page.get_by_label("Accept finding 2").check()
    expect(page.locator(".review [role=alert]")).to_be_hidden()
    assert reviews(page, site)[0]["verdicts"] == {"1": "accepted", "2": "accepted"}
