"""The driving form in a browser: switching between frames, and filtering and viewing the boxes of a frame."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Route, expect

from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.browser.test_driving_form import Site, count_white_pixels, driving_app, write_two_frames
from tests.conftest import serving
from tests.shared.serve.echo import until

pytestmark = pytest.mark.browser
PLAN = "canvas[aria-label^='Objects and LiDAR']"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("driving")
    app, truths = driving_app(root), write_two_frames(root / "frames")
    with serving(create_app(Settings(store=root / "store", warm=False, device="cpu"), {"driving": app})) as address:
        yield Site(address, root / "frames", truths)


def birds_eye_picture(page: Page) -> str:
    """The bird's-eye view's picture as a data URL, once the page has handled its input of the last two frames."""
    return str(
        page.locator(PLAN).evaluate(
            """canvas => new Promise((resolve) => requestAnimationFrame(() =>
            requestAnimationFrame(() => resolve(canvas.toDataURL()))))"""
        )
    )


def open_sample(page: Page, site: Site, name: str) -> None:
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name=name).click()
    expect(page.locator(".objects tbody tr").first).to_be_visible()
    page.wait_for_load_state("networkidle")


def test_a_late_frame_does_not_replace_the_one_requested_last(page: Page, site: Site) -> None:
    open_sample(page, site, "Two frames")
    first = page.locator("h2.found").inner_text()
    held_routes: list[Route] = []
    page.route("**/000001_points.bin", lambda route: held_routes.append(route))
    with page.expect_request("**/000001_points.bin"):
        page.get_by_role("button", name="000001").click()
    page.get_by_role("button", name="000000").click()
    page.wait_for_timeout(500)
    held_routes[0].continue_()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)
    expect(page.get_by_role("button", name="000000")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("h2.found")).to_have_text(first)


def test_a_frame_that_fails_to_load_is_reported_and_can_be_requested_again(page: Page, site: Site) -> None:
    open_sample(page, site, "Two frames")
    page.expected_errors.append("ERR_FAILED")  # type: ignore[attr-defined]
    page.expected_errors.append("Failed to fetch")  # type: ignore[attr-defined]
    page.route("**/000001_points.bin", lambda route: route.abort())
    page.get_by_role("button", name="000001").click()
    expect(page.locator("#result [role=alert]")).to_contain_text("The frame 000001 could not be shown")
    page.unroute("**/000001_points.bin")
    page.get_by_role("button", name="000001").click()
    expect(page.locator(".objects tbody tr").first).to_be_visible()


def test_keys_step_through_frames_and_keep_labels_and_filter(page: Page, site: Site) -> None:
    open_sample(page, site, "Two frames")
    labels = page.get_by_role("checkbox", name="Labels that came with the frame")
    labels.check()
    page.get_by_text("Filter").click()
    page.get_by_label("Score of at least").fill("0.7")
    page.get_by_text("Filter").focus()
    first = page.locator("h2.found").inner_text()
    page.keyboard.press("n")
    expect(page.get_by_role("button", name="000001")).to_have_attribute("aria-pressed", "true")
    expect(labels).to_be_checked()
    expect(page.get_by_label("Score of at least")).to_have_value("0.7")
    page.locator("main h1").click()
    page.keyboard.press("p")
    expect(page.get_by_role("button", name="000000")).to_have_attribute("aria-pressed", "true")
    # In a field, a key types a letter. Wait for the frame first, because loading it replaces the field.
    expect(page.locator("h2.found")).to_have_text(first)
    page.get_by_label("Score of at least").press("n")
    expect(page.get_by_role("button", name="000000")).to_have_attribute("aria-pressed", "true")


def test_many_frames_are_listed_with_their_box_counts_in_order_or_by_count(page: Page, site: Site) -> None:
    page.goto(f"{site.address}/driving")
    state = page.evaluate(
        """async () => {
          const { frameSwitcher } = await import("/static/driving/frames.js");
          const asked = [];
          let least = 0;
          const boxes = (n) => Array(n % 7).fill({ score: 1 - n / 200 });
          const frames = [...Array(200).keys()].map((n) => ({ frame: `f${n}`, boxes: boxes(n) }));
          const counted = (box) => box.score >= least;
          const { node, update } = frameSwitcher(frames, (frame) => asked.push(frame.frame), counted);
          document.querySelector("#result").append(node);
          const [before, next] = node.querySelectorAll("button");
          const selectors = ["label > span", "option"];
          const texts = () => selectors.map((selector) => node.querySelector(selector).textContent);
          const first = texts();
          before.click(); next.click(); next.click();
          node.querySelector("input").click();
          const fullest = texts();
          next.click();
          least = 0.5;
          update();
          const filtered = texts();
          next.click();
          return [node.querySelectorAll("button").length, first, fullest, filtered, asked];
        }"""
    )
    total, upper = sum(n % 7 for n in range(200)), sum(n % 7 for n in range(101))
    assert state == [
        2,
        [f"200 frames, {total} boxes: ", "f0 (0 boxes)"],
        [f"200 frames, {total} boxes: ", "f6 (6 boxes)"],
        [f"200 frames, {upper} boxes: ", "f6 (6 boxes)"],
        # f2 has two boxes; the next frame with two boxes follows it.
        ["f1", "f2", "f9", "f16"],
    ]


def test_the_box_counts_of_the_frames_follow_the_filter(page: Page, site: Site) -> None:
    open_sample(page, site, "Two frames")
    buttons = page.locator(".frames button")
    expect(buttons).to_have_text([f"00000{n} {len(truth)}" for n, truth in enumerate(site.truths)])
    page.get_by_text("Filter").click()
    page.get_by_label("Score of at least").fill("0.75")
    remaining = page.locator(".objects tbody tr").count()
    assert remaining < len(site.truths[0])
    expect(buttons.first).to_have_text(f"000000 {remaining}")


def test_boxes_are_filtered_by_score_and_class_in_every_view(page: Page, site: Site) -> None:
    open_sample(page, site, "One frame")
    rows = page.locator(".objects tbody tr")
    total = rows.count()
    scores = [float(text) for text in page.locator(".objects tbody td:nth-child(2)").all_inner_texts()]
    before = birds_eye_picture(page)
    page.get_by_text("Filter").click()
    page.get_by_label("Score of at least").fill("0.75")
    expect(rows).to_have_count(sum(score >= 0.75 for score in scores))
    expect(page.get_by_text(f"Filter: {rows.count()} of {total} boxes are shown")).to_be_visible()
    assert birds_eye_picture(page) != before
    page.get_by_label("Score of at least").fill("")
    page.get_by_role("checkbox", name="car", exact=True).uncheck()
    expect(rows.filter(has_text="car")).to_have_count(0)
    page.get_by_role("checkbox", name="car", exact=True).check()
    expect(rows).to_have_count(total)
    page.locator("main h1").hover()
    assert birds_eye_picture(page) == before


def test_hovering_over_a_box_shows_its_position(page: Page, site: Site) -> None:
    open_sample(page, site, "One frame")
    plan, selected = page.locator(PLAN), page.locator(".objects tr[aria-selected=true]")
    page.locator(".objects tbody tr").first.hover()
    expect(page.locator(".objects [role=status]")).to_have_text(
        re.compile(
            r"Chosen: \w+, [\d.]+ m away \([\d.]+ m ahead, [\d.]+ m to the (left|right)\), 1 of \d+ by distance\."
        )
    )
    page.locator("canvas[aria-label^='Camera']").click(position={"x": 5, "y": 5})
    expect(selected).to_have_count(0)
    plan.scroll_into_view_if_needed()
    box = plan.bounding_box()
    assert box is not None
    for step in range(0, 100, 2):
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * (1 - step / 100))
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * (1 - step / 100))
        page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * (1 - step / 100))
        if selected.count():
            break
    expect(selected).to_have_count(1)
    assert count_white_pixels(page, PLAN) > 0


def test_the_birds_eye_view_is_dragged_and_once_focused_zoomed_with_the_wheel(page: Page, site: Site) -> None:
    open_sample(page, site, "One frame")
    plan = page.locator(PLAN)
    plan.scroll_into_view_if_needed()
    box = plan.bounding_box()
    assert box is not None
    # A corner without a box, so that nothing is selected.
    x, y = box["x"] + 8, box["y"] + box["height"] - 8
    page.mouse.move(x, y)
    whole = birds_eye_picture(page)
    top = page.evaluate("scrollY")
    page.mouse.wheel(0, 40)
    page.wait_for_function("top => scrollY != top", arg=top)
    assert birds_eye_picture(page) == whole
    page.evaluate("top => scrollTo(0, top)", top)
    page.mouse.down()
    page.mouse.move(x + 60, y - 60, steps=5)
    page.mouse.up()
    until(lambda: birds_eye_picture(page) != whole, 30)
    moved = birds_eye_picture(page)
    page.mouse.wheel(0, -200)
    until(lambda: birds_eye_picture(page) != moved, 30)
    assert page.evaluate("scrollY") == top
    plan.press("Home")
    until(lambda: birds_eye_picture(page) == whole, 30)
