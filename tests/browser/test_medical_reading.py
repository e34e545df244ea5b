"""The medical form in a browser: reading a scan, and copying or printing the findings for a report."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.medical_site import medical_site

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with medical_site(tmp_path_factory.mktemp("medical")) as address:
        yield address


def open_chest(page: Page, site: str) -> Locator:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    canvas = page.get_by_role("application", name="Axial CT")
    expect(canvas).to_be_visible()
    page.wait_for_load_state("networkidle")
    return canvas


def centre(canvas: Locator) -> tuple[float, float]:
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def mean_grey(canvas: Locator) -> float:
    return float(
        canvas.evaluate(
            """canvas => { const d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let sum = 0;
            for (let i = 0; i < d.length; i += 4) sum += d[i];
            return (4 * sum) / d.length; }"""
        )
    )


def test_dragging_with_the_right_button_sets_level_and_width(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    x, y = centre(canvas)
    before = mean_grey(canvas)
    page.mouse.move(x, y)
    page.mouse.down(button="right")
    page.mouse.move(x, y + 60, steps=4)
    page.mouse.up(button="right")
    expect(canvas).to_have_attribute("aria-label", re.compile(r"window level -375, width 1500 HU$"))
    assert mean_grey(canvas) < before
    expect(page.get_by_role("button", name="Lung", exact=True)).to_have_attribute("aria-pressed", "false")
    page.mouse.move(x + 20, y)
    expect(canvas).to_have_attribute("aria-label", re.compile(r"window level -375, width 1500 HU$"))
    page.keyboard.press("1")
    expect(canvas).to_have_attribute("aria-label", re.compile("lung window$"))
    assert mean_grey(canvas) == before


def test_a_touchpad_scrolls_no_faster_than_a_wheel(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    page.mouse.move(*centre(canvas))
    expect(canvas).to_have_attribute("aria-label", re.compile("slice 10 of 20"))
    for _ in range(10):
        page.mouse.wheel(0, -10)
    expect(canvas).to_have_attribute("aria-label", re.compile("slice 12 of 20"))
    page.mouse.wheel(0, 100)
    expect(canvas).to_have_attribute("aria-label", re.compile("slice 11 of 20"))


def test_a_distance_is_measured_without_dragging(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    readout = page.locator(".slices output").nth(1)
    measure = page.get_by_role("button", name="Measure")
    x, y = centre(canvas)
    measure.click()
    page.mouse.click(x - 30, y)
    expect(readout).to_have_text(re.compile("the other end"))
    page.mouse.click(x + 30, y)
    expect(readout).to_have_text(re.compile(r"^\d+\.\d mm measured$"))
    expect(measure).to_have_attribute("aria-pressed", "false")
    # By keys: the cross is one end, and Shift with the arrow keys moves the other, by voxels of 3 mm.
    page.keyboard.press("Escape")
    for key in ("Shift+ArrowRight", "l", "Shift+ArrowRight", "Shift+ArrowRight"):
        page.keyboard.press(key)
    expect(readout).to_have_text("6.0 mm measured")
    page.keyboard.press("l")
    expect(measure).to_have_attribute("aria-pressed", "false")
    expect(readout).to_have_text("6.0 mm measured")


def test_the_window_can_be_entered(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    level = page.get_by_label("Level of the window in HU")
    expect(level).to_have_value("-600")
    level.fill("-375")
    level.press("Enter")
    expect(canvas).to_have_accessible_name(re.compile(r"window level -375, width 1500 HU$"))


def test_single_keys_can_be_turned_off(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    page.get_by_label("Keys act on the whole page").uncheck()
    current = page.locator(".findings button[aria-current=true] .rank")
    page.keyboard.press("n")
    page.keyboard.press("a")
    expect(current).to_have_text("1")
    expect(page.get_by_label("Accept finding 1")).not_to_be_checked()
    canvas.focus()
    page.keyboard.press("n")
    expect(current).to_have_text("2")
    page.reload()
    expect(page.get_by_label("Keys act on the whole page")).not_to_be_checked()


def test_the_keyboard_s_focus_is_visible_on_the_current_finding(page: Page, site: str) -> None:
    open_chest(page, site)
    current = page.locator(".findings button[aria-current=true]")
    outline = "node => [getComputedStyle(node).outlineColor, getComputedStyle(node).outlineOffset]"
    before = current.evaluate(outline)
    page.keyboard.press("Tab")  # from now on the focus is shown
    current.focus()
    assert current.evaluate(outline) != before


def test_the_label_of_a_measurement_stays_within_the_slice(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    x, y = centre(canvas)
    box = canvas.bounding_box()
    assert box is not None
    canvas.evaluate(
        """canvas => { const pen = canvas.getContext("2d"); const fill = pen.fillText;
        pen.fillText = (text, x, y) => {
          if (/mm$/.test(text)) window.labelExtent = [x, x + pen.measureText(text).width, canvas.width];
          fill.call(pen, text, x, y);
        }; }"""
    )
    page.mouse.move(x, y)
    page.mouse.down()
    edge = canvas.evaluate("canvas => Math.min(canvas.clientWidth, canvas.clientHeight * canvas.width / canvas.height)")
    page.mouse.move(x + edge / 2 - 4, y, steps=4)
    page.mouse.up()
    left, right, width = page.evaluate("window.labelExtent")
    assert left >= 0 and right <= width


def test_accepted_findings_are_copied_for_a_report(page: Page, site: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_chest(page, site)
    copy = page.get_by_role("button", name="Copy as text")
    copy.click()
    expect(page.locator(".copy [role=status]")).to_have_text("Copied.")
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.splitlines()[1] == (
        "1. 9.0 mm mean diameter (9.5 x 8.5 mm axial), 405 mm3; "
        "slice 10 of 20 in the file, R 60.0, P 0.0, F 355.0 mm; score 0.900"
    )
    assert "not verified" in text and "score 0.300" not in text
    # A rejected finding is left out; a weaker mark that the reader accepts is included.
    page.get_by_label("Reject finding 1").check()
    page.get_by_label("Accept finding 2").check()
    # The viewer's keys also work while a verdict has the focus.
    page.keyboard.press("n")
    expect(page.locator(".findings button[aria-current=true] .rank")).to_have_text("2")
    copy.click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()).includes('score 0.300')")
    assert "score 0.900" not in page.evaluate("navigator.clipboard.readText()")
    # Without access to the clipboard, for example over http, the text itself is shown.
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    copy.click()
    expect(page.get_by_label("Findings as text")).to_have_value(re.compile("1. 9.0 mm .*score 0.300; accepted"))


def test_the_printed_page_has_the_copied_findings_and_no_controls(page: Page, site: str) -> None:
    canvas = open_chest(page, site)
    page.emulate_media(media="print")
    expect(canvas).to_be_visible()
    expect(page.locator(".findings button").nth(0)).to_be_visible()
    expect(page.locator(".findings button").nth(1)).to_be_hidden()
    for name in ("Lung", "Copy as text"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_hidden()


def test_a_scan_that_was_not_searched_does_not_name_a_model(page: Page, site: str) -> None:
    open_chest(page, site)

    def without_lungs(route: Route) -> None:
        case = route.fetch().json()
        case["result"] |= {"lungs": None, "findings": [], "versions": {"known": 1}}
        route.fulfill(json=case)

    page.route(re.compile(r"/api/medical/cases/[0-9a-f]+$"), without_lungs)
    page.reload()
    expect(page.get_by_role("heading", name="Not searched")).to_be_visible()
    expect(page.locator(".reading")).to_contain_text("voxels of")
    expect(page.locator("#result")).not_to_contain_text("Found by")
    expect(page.get_by_role("button", name="Copy as text")).to_have_count(0)


@pytest.mark.parametrize("width", [1366, 600])
def test_the_slice_is_visible_when_a_finding_far_down_the_list_is_chosen(page: Page, site: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 768})
    canvas = open_chest(page, site)
    # As long as a list of a hundred findings.
    page.add_style_tag(content=".findings li { margin-bottom: 900px; }")
    page.locator(".findings button").nth(1).click()
    expect(canvas).to_have_attribute("aria-label", re.compile("slice 15 of 20"))
    expect(canvas).to_be_in_viewport(ratio=0.95)


def test_the_current_row_is_legible_with_forced_colours(page: Page, site: str) -> None:
    page.emulate_media(forced_colors="active")
    page.goto(f"{site}/medical")
    colours = page.evaluate(
        """() => {
        document.querySelector("#result").innerHTML = `<button aria-pressed=true>on</button>
          <button aria-pressed=false>off</button><table class=events><tr class=current><td>now</td></tr></table>`;
        const look = (node) => [getComputedStyle(node).color, getComputedStyle(node).backgroundColor];
        return [...document.querySelectorAll("#result button, #result td")].map(look); }"""
    )
    on, off, row = colours
    assert on != off and on == row and on[0] != on[1]


def test_only_the_result_is_scrolled_to_when_a_case_opens(page: Page, site: str) -> None:
    """Scrolling to the first finding as well would stop the smooth scrolling to the result halfway."""
    page.add_init_script(
        """window.scrolledTo = [];
        const scroll = Element.prototype.scrollIntoView;
        Element.prototype.scrollIntoView = function (...options) {
          window.scrolledTo.push(this.id || this.tagName);
          scroll.apply(this, options);
        };"""
    )
    page.set_viewport_size({"width": 1366, "height": 650})
    open_chest(page, site)
    page.reload()
    expect(page.get_by_role("application", name="Axial CT")).to_be_visible()
    page.wait_for_load_state("networkidle")
    assert page.evaluate("scrolledTo.at(-1)") == "result"
    page.keyboard.press("n")
    assert page.evaluate("scrolledTo.at(-1)") == "LI"


@pytest.mark.parametrize("height", [768, 650])
def test_six_findings_fit_on_a_laptop_screen(page: Page, site: str, height: int) -> None:
    """A browser leaves 650 pixels of 768 to the page."""
    page.set_viewport_size({"width": 1366, "height": height})
    page.emulate_media(reduced_motion="reduce")  # otherwise the positions may be read while the page scrolls
    open_chest(page, site)
    first, second = (
        page.get_by_label(f"Accept finding {n}").locator("xpath=ancestor::li").bounding_box() for n in (1, 2)
    )
    assert first is not None and second is not None
    assert first["y"] >= 0 and first["y"] + 5 * (second["y"] - first["y"]) + first["height"] <= height
    expect(page.get_by_role("slider", name="Slice")).to_be_in_viewport(ratio=1)


def test_a_weak_finding_is_described_as_such(page: Page, site: str) -> None:
    open_chest(page, site)
    rows = page.locator(".findings > li > button")
    expect(rows.nth(1)).to_have_accessible_description("Below the operating score")
    expect(rows.nth(0)).to_have_accessible_description("")


def test_the_list_scrolls_to_the_finding_that_a_key_selects(page: Page, site: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 330})
    open_chest(page, site)
    row = page.get_by_label("Findings, highest score first").locator("li").nth(1)
    expect(row).not_to_be_in_viewport(ratio=1)
    page.keyboard.press("n")
    expect(row.locator("[aria-current=true]")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("application", name="Axial CT")).to_be_in_viewport()


def test_a_verdict_given_by_a_key_is_shown_beside_the_slices(page: Page, site: str) -> None:
    """On a narrow screen the list is not visible, and another slice than that of the current finding may be shown."""
    page.set_viewport_size({"width": 820, "height": 900})
    open_chest(page, site)
    verdict = page.locator(".slices output").nth(1)
    expect(verdict).to_have_text("Finding 1: undecided")
    page.keyboard.press("a")
    expect(verdict).to_have_text("Finding 1: accepted")
    expect(page.get_by_label("Accept finding 1")).not_to_be_in_viewport()
    # A tablet has no keys: the verdict is under the slices, too.
    page.set_viewport_size({"width": 820, "height": 1180})
    beside = page.get_by_label("Accept the finding in the slices")
    expect(beside).to_be_checked()
    expect(beside).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Next finding").click()
    expect(beside).not_to_be_checked()
    beside.check()
    expect(verdict).to_have_text("Finding 2: accepted")
    page.get_by_role("button", name="Previous finding").click()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("r")
    prefix = "Finding 1 in slice 10 of 20 in the file: "
    expect(verdict).to_have_text(f"{prefix}rejected")
    page.keyboard.press("r")
    expect(verdict).to_have_text(f"{prefix}undecided")
    page.get_by_role("application", name="Axial CT").click()
    expect(verdict).to_contain_text(" HU at ")
