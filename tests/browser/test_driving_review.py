"""Reviewing in the driving form: verdicts on the boxes of each frame, and missed objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from apps.driving.service import DrivingCodec
from shared.app import find
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.driving.test_reviews import Known, sweep
from tests.browser.test_medical_review import is_save
from tests.conftest import serving

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(store=tmp_path_factory.mktemp("store"), warm=False, device="cpu", workers=0)
    known = replace(find("driving"), predictor=lambda artifacts, device: Known(), codec=DrivingCodec)
    with serving(create_app(settings, {"driving": known})) as address:
        yield address


def open_frames(page: Page, site: str, folder: Path, names: tuple[str, ...] = ("a", "b")) -> None:
    for number, name in enumerate(names):
        (folder / f"{name}.bin").write_bytes(sweep(number).tobytes())
    page.goto(f"{site}/driving")
    page.get_by_label("Sweep or image").set_input_files([str(folder / f"{name}.bin") for name in names])
    page.get_by_role("button", name="Find objects").click()
    expect(page.locator(".objects tbody tr")).to_have_count(2)
    page.wait_for_load_state("networkidle")


def review(page: Page, site: str) -> dict[str, Any]:
    """The only review of the newest case."""
    case = page.request.get(f"{site}/api/driving/cases?limit=1").json()["cases"][0]
    (only_review,) = page.request.get(f"{site}{case['url']}/review").json()["reviews"]
    return dict(only_review)


def test_boxes_of_each_frame_are_accepted_and_rejected(page: Page, site: str, tmp_path: Path) -> None:
    open_frames(page, site, tmp_path)
    with page.expect_response(is_save):
        page.get_by_label("Reject car at 30.0 m").check()
    with page.expect_response(is_save):
        page.get_by_role("button", name="Accept the others").click()
    expect(page.get_by_label("Accept car at 12.4 m")).to_be_checked()
    expect(page.get_by_role("button", name="Accept the others")).to_be_hidden()
    expect(page.get_by_text("Missed an object?")).to_be_focused()
    assert review(page, site)["verdicts"] == {"1": "accepted", "2": "rejected"}
    page.get_by_role("button", name="b", exact=True).click()
    expect(page.get_by_label("Accept car at 12.4 m")).not_to_be_checked()
    page.locator(".objects tbody button").first.click()
    with page.expect_response(is_save):
        page.keyboard.press("r")
    assert review(page, site)["verdicts"] == {"1": "accepted", "2": "rejected", "3": "rejected"}
    page.reload()
    expect(page.get_by_label("Reject car at 30.0 m")).to_be_checked()


def test_views_need_no_dragging_and_single_keys_can_be_turned_off(page: Page, site: str, tmp_path: Path) -> None:
    open_frames(page, site, tmp_path)
    expect(page.get_by_role("region", name="Result")).to_be_focused()
    plan = page.get_by_role("application", name="Objects and LiDAR points seen from above")
    before = plan.evaluate("canvas => canvas.toDataURL()")
    page.get_by_role("group", name="View from above").get_by_role("button", name="Zoom in").click()
    assert plan.evaluate("canvas => canvas.toDataURL()") != before
    plan.focus()
    page.keyboard.press("n")
    expect(page.get_by_role("button", name="b", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(plan).to_be_focused()
    switch = page.get_by_label("Keys act on the whole page")
    switch.uncheck()
    page.locator(".objects tbody button").first.focus()
    for key in ("a", "p"):
        page.keyboard.press(key)
    expect(page.get_by_role("button", name="b", exact=True)).to_have_attribute("aria-pressed", "true")
    accepted = page.locator(".objects").get_by_label("Accept").first
    expect(accepted).not_to_be_checked()
    plan.focus()
    page.keyboard.press("a")
    expect(accepted).to_be_checked()
    page.reload()
    expect(switch).not_to_be_checked()


def test_the_verdicts_are_visible_on_a_zoomed_page(page: Page, site: str, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 911, "height": 512})  # 1366 x 768 at 150 %
    open_frames(page, site, tmp_path)
    right_edges = "nodes => nodes.map(node => Math.round(node.getBoundingClientRect().right))"
    (table,) = page.locator(".objects .scroll").evaluate_all(right_edges)
    verdicts = page.locator(".objects .verdict").evaluate_all(right_edges)
    assert verdicts and max(verdicts) <= table


def test_accept_the_others_skips_boxes_that_the_filter_hides(page: Page, site: str, tmp_path: Path) -> None:
    open_frames(page, site, tmp_path)
    scores = [float(text) for text in page.locator(".objects tbody td:nth-child(2)").all_inner_texts()]
    page.get_by_text("Filter").click()
    page.get_by_label("Score of at least").fill(str(max(scores)))
    expect(page.locator(".objects tbody tr")).to_have_count(1)
    others = page.get_by_role("button", name="Accept the others")
    with page.expect_response(is_save):
        others.click()
    expect(others).to_be_hidden()
    assert list(review(page, site)["verdicts"].values()) == ["accepted"]
    page.get_by_label("Score of at least").fill("")
    expect(others).to_be_visible()


def test_a_missed_object_is_added_where_the_birds_eye_view_was_clicked(page: Page, site: str, tmp_path: Path) -> None:
    open_frames(page, site, tmp_path)
    page.get_by_text("Missed an object?").click()
    add = page.get_by_role("button", name="Add", exact=True)
    # The object has no position yet.
    expect(add).to_be_disabled()
    page.get_by_text("Missed an object?").click()
    plan = page.get_by_role("application", name="Objects and LiDAR points seen from above")
    plan.scroll_into_view_if_needed()
    box = plan.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2 + 40, box["y"] + box["height"] / 2)
    ahead, left = (float(page.get_by_label(name).input_value()) for name in ("Ahead, m", "Left, m"))
    assert left < 0
    page.get_by_label("Class of the missed object").select_option("pedestrian")
    page.get_by_label("Heading, °").fill("270")
    with page.expect_response(is_save):
        add.click()
    # A second click does not add it twice.
    expect(add).to_be_disabled()
    expect(page.get_by_label("Class of the missed object")).to_be_focused()
    (missed,) = review(page, site)["missed"]
    assert missed["frame"] == "a" and missed["name"] == "pedestrian" and missed["size_m"] == [0.8, 0.6, 1.8]
    assert missed["centre_lidar_m"][:2] == [ahead, left] and missed["yaw"] == -1.5708
    # It stands on the same ground as the frame's boxes, whose bottom is at -0.8 - 1.5 / 2.
    assert abs(missed["centre_lidar_m"][2] - (-1.55 + 0.9)) < 0.06
    page.reload()
    row = page.get_by_role("list", name="Missed objects").get_by_role("listitem")
    expect(row).to_contain_text("missed: pedestrian")
    page.get_by_role("button", name="b", exact=True).click()
    expect(row).to_have_count(0)
    page.get_by_role("button", name="a", exact=True).click()
    with page.expect_response(is_save):
        page.get_by_role("button", name="Remove the missed pedestrian").click()
    assert review(page, site)["missed"] == []
    expect(page.get_by_text("Missed an object?")).to_be_focused()


def test_a_missed_object_can_have_a_class_of_several_words(page: Page, site: str, tmp_path: Path) -> None:
    open_frames(page, site, tmp_path, ("lights",))
    page.get_by_text("Missed an object?").click()
    page.get_by_label("Class of the missed object").select_option("traffic light")
    page.get_by_label("Ahead, m").fill("20")
    page.get_by_label("Left, m").fill("-3")
    with page.expect_response(is_save):
        page.get_by_role("button", name="Add", exact=True).click()
    (missed,) = review(page, site)["missed"]
    assert missed["name"] == "traffic_light" and missed["centre_lidar_m"][:2] == [20, -3]
    expect(page.get_by_role("list", name="Missed objects")).to_contain_text("missed: traffic light, 20.2 m away")


def test_a_missed_object_can_be_of_any_class_of_the_network(page: Page, site: str, tmp_path: Path) -> None:
    """Also if the frame has no box of the class; its size is then that of the network's class."""
    open_frames(page, site, tmp_path, ("a",))
    page.get_by_text("Missed an object?").click()
    kinds = page.get_by_label("Class of the missed object")
    assert kinds.locator("option").all_text_contents() == ["car", "pedestrian", "construction vehicle", "forklift"]
    kinds.select_option("construction vehicle")
    sides = [page.get_by_label(f"{side}, m", exact=True).input_value() for side in ("Length", "Width", "Height")]
    assert sides == ["6.4", "2.7", "3.1"]


def test_a_size_that_the_network_does_not_state_is_asked_for(page: Page, site: str, tmp_path: Path) -> None:
    """CenterPoint has no anchors, so that an imported one has a car's size for all of its classes."""
    open_frames(page, site, tmp_path, ("a",))
    page.get_by_text("Missed an object?").click()
    page.get_by_label("Class of the missed object").select_option("forklift")
    sides = [page.get_by_label(f"{side}, m", exact=True) for side in ("Length", "Width", "Height")]
    assert [side.input_value() for side in sides] == ["", "", ""]
    for field in ("Ahead, m", "Left, m"):
        page.get_by_label(field, exact=True).fill("10")
    add = page.get_by_role("button", name="Add", exact=True)
    expect(add).to_be_disabled()
    for side, value in zip(sides, ("2.6", "1.2", "2.1"), strict=True):
        side.fill(value)
    with page.expect_response(is_save):
        add.click()
    (missed,) = review(page, site)["missed"]
    assert missed["name"] == "forklift" and missed["size_m"] == [2.6, 1.2, 2.1]
