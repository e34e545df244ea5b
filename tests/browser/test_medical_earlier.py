"""Comparing a case with an earlier scan in the medical form: the change of each finding, and the earlier slices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from apps.medical.adapters.nifti import nifti
from tests.browser.medical_site import chest, medical_site, upload_and_analyse
from tests.browser.test_medical_reading import open_chest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with medical_site(tmp_path_factory.mktemp("medical")) as address:
        yield address


def expect_slices(slices: Locator, *, now: int, before: int) -> None:
    """The slices that are shown beside each other, counted as the files store them."""
    for canvas, number, when in ((slices.nth(1), now, "now"), (slices.nth(2), before, "before")):
        expect(canvas).to_have_attribute(
            "aria-label", f"Axial CT, slice {number} of 20 in the file, {when}, lung window"
        )


def test_a_case_is_compared_with_an_earlier_one(page: Page, site: str) -> None:
    open_chest(page, site)
    page.get_by_text("Compare with an earlier scan").click()
    expect(page.get_by_text("There is no other case.")).to_be_visible()
    open_chest(page, site)
    page.get_by_text("Compare with an earlier scan").click()
    cases = page.get_by_label("The case of the earlier scan")
    expect(cases.locator("option")).to_have_count(1)
    expect(cases.locator("option")).to_have_text(
        re.compile(r"^20\d\d-\d\d-\d\d \d\d:\d\d UTC: 1 finding, 100 × 80 × 20 voxels \(.+\)$")
    )
    page.get_by_label("Days between the scans").fill("183")
    page.get_by_role("button", name="Compare").click()
    compared = page.get_by_label("Findings compared with the earlier scan").get_by_role("listitem")
    expect(compared).to_have_count(1)
    expect(compared).to_contain_text("9.0 → 9.0 mm")
    expect(compared).to_contain_text("stable")
    expect(page.get_by_text("Left out: 1 weaker mark of")).to_be_visible()
    slices = page.locator(".slices canvas")
    expect(slices).to_have_count(3)
    expect_slices(slices, now=10, before=10)
    page.locator(".earlier").get_by_label("Slice", exact=True).first.fill("12")
    expect_slices(slices, now=13, before=13)


def test_the_earlier_slices_follow_a_scan_that_is_stored_from_head_to_feet(
    page: Page, site: str, tmp_path: Path
) -> None:
    """As that of a patient who lay with the feet first: its slices are counted the other way."""
    open_chest(page, site)
    stored = chest()
    upside_down = replace(
        stored,
        voxels_zyx=np.ascontiguousarray(stored.voxels_zyx[::-1]),
        origin_lps_mm=tuple(stored.to_lps_mm([0, 0, 19]).tolist()),
        direction=np.diag([1.0, 1.0, -1.0]),
    )
    (tmp_path / "feet_first.nii.gz").write_bytes(nifti(upside_down))
    upload_and_analyse(page, site, tmp_path / "feet_first.nii.gz")
    page.get_by_text("Compare with an earlier scan").click()
    expect(page.get_by_label("The case of the earlier scan").locator("option").first).to_be_attached()
    page.get_by_role("button", name="Compare").click()
    slices = page.locator(".slices canvas")
    expect(slices).to_have_count(3)
    expect_slices(slices, now=11, before=10)
    page.locator(".earlier").get_by_label("Slice", exact=True).first.fill("12")
    expect_slices(slices, now=13, before=8)


def test_a_comparison_that_fails_says_why(page: Page, site: str) -> None:
    open_chest(page, site)
    open_chest(page, site)
    page.get_by_text("Compare with an earlier scan").click()
    earlier_case = page.get_by_label("The case of the earlier scan").locator("option").first
    expect(earlier_case).to_be_attached()
    page.expected_errors.append("404")  # type: ignore[attr-defined]
    page.request.delete(f"{site}/api/medical/cases/{earlier_case.get_attribute('value')}")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".earlier").get_by_role("alert")).to_contain_text("has no case")
    expect(page.get_by_role("button", name="Compare")).to_be_enabled()


def test_reviewer_names_do_not_change_the_text_direction_around_them(page: Page, site: str) -> None:
    """Neither a name in Hebrew nor a name with a right-to-left override character."""
    open_chest(page, site)
    review_url = f"{page.url.replace('/medical?case=', '/api/medical/cases/')}/review"
    missed = {"centre_lps_mm": [-54.0, 9.0, -340.0], "diameter_mm": 7.5}
    for name in ("Ada \u202egnol\u2069", "\u05e9\u05e8\u05d4\u202e"):
        body = {"reviewer": name, "verdicts": {"1": "rejected"}, "missed": [missed], "note": f"{name} 5"}
        assert page.request.put(review_url, data=body).ok
    hebrew = "\u2068\u05e9\u05e8\u05d4\u2069"
    page.reload()
    panel = page.locator(".review")
    expect(panel).to_contain_text(f"Reviewed by {hebrew} at")
    expect(panel).to_contain_text("Reviewed by Ada gnol at")
    expect(panel).to_contain_text("\u201c\u2068\u05e9\u05e8\u05d4 5\u2069\u201d")
    expect(page.locator(".findings").first).to_contain_text(f"Rejected by {hebrew}, rejected by Ada gnol")
    expect(page.locator(".findings.missed")).to_contain_text(f"Added by {hebrew}")
    open_chest(page, site)
    page.get_by_text("Compare with an earlier scan").click()
    option = page.get_by_label("The case of the earlier scan").locator("option").first
    expect(option).to_contain_text(f", reviewed by {hebrew}, Ada gnol")
